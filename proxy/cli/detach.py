"""`zonegate detach`: end an attach."""

from __future__ import annotations

import os

import click

from proxy import attach, ipc
from proxy.cli.attach import target
from proxy.cli.errors import fail
from proxy.paths import admin_sockets
from proxy.run import RunError


@click.command("detach", short_help="end an attach; its network has no way out then")
@click.option("--netns", metavar="NAME", help="A network namespace of `ip netns`.")
@click.option("--pid", type=int, help="The network namespace of a process.")
def command(netns: str | None, pid: int | None) -> None:
    """End the `zonegate attach` of a network namespace. It is left without a way out.

    \b
    sudo zonegate detach --netns lab
    """
    wanted = target(netns, pid)
    try:
        bubble = attach.detach(wanted, admin_sockets(os.getuid(), os.environ))
    except (attach.AttachError, RunError, ipc.LinkBroken) as error:
        fail(str(error))
    click.echo(f"{wanted.words} (bubble {bubble}) is detached; nothing that it sends goes anywhere")
