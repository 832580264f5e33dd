"""`zonegate attach`: a network namespace that is there already becomes a zone."""

from __future__ import annotations

import os

import click

from proxy import attach
from proxy.cli.errors import fail
from proxy.paths import admin_sockets
from proxy.run import RunError


def target(netns: str | None, pid: int | None) -> attach.Target:
    """The namespace that was meant; ends the command with one line if there is none."""
    if os.getuid() != 0:
        fail("only root may attach a namespace; an ordinary user has bubbles: zonegate run -- PROGRAM")
    if (netns is None) == (pid is None):
        fail("say which namespace: --netns NAME or --pid N")
    try:
        return attach.named(netns) if netns is not None else attach.of_process(pid or 0)
    except attach.AttachError as error:
        fail(str(error))


def say(line: str) -> None:
    """One line to standard error, where a service manager's journal reads it."""
    click.echo(f"zonegate: {line}", err=True)


@click.command("attach", short_help="make a container's network a zone")
@click.option("-z", "--zone", default="corporate", show_default=True, help="The zone that it is to be.")
@click.option("--netns", metavar="NAME", help="A network namespace of `ip netns`.")
@click.option("--pid", type=int, help="The network namespace of a process.")
def command(zone: str, netns: str | None, pid: int | None) -> None:
    """Serve a network namespace that was there before, such as a container started without a network.

    It must have no device but lo. It is served until Ctrl-C or `zonegate detach`, which give nothing back: it
    is left without a way out, and may be attached again.

    \b
    podman run -d --network none --name web IMAGE
    zonegate attach --pid $(podman inspect -f {{.State.Pid}} web)
    """
    wanted = target(netns, pid)
    if not wanted.apart:
        say("its programs see this machine's files, and so its Unix sockets: it is only cooperative")
    try:
        attach.attach(wanted, zone, admin_sockets(os.getuid(), os.environ), say)
    except (attach.AttachError, RunError) as error:
        fail(str(error), 1)
