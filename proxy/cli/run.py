"""`zonegate run`: a program in a bubble."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from proxy.bubble import View, missing_program
from proxy.cli.completing import zones
from proxy.cli.errors import fail
from proxy.paths import admin_sockets, zone_home
from proxy.run import RunError, run


@click.command(
    "run", short_help="run a program in a bubble", context_settings={"ignore_unknown_options": True}
)
@click.option(
    "-z", "--zone", default="corporate", show_default=True, shell_complete=zones, help="The zone to enter."
)
@click.option(
    "--share",
    type=click.Path(exists=True, resolve_path=True, path_type=Path),
    multiple=True,
    help="A file or directory of yours for the program; your home or / makes it only cooperative.",
)
@click.option("--share-home", is_flag=True, help="Your own home in the bubble; it is then only cooperative.")
@click.option(
    "--wayland", is_flag=True, help="Your Wayland display; see what your compositor lets clients do."
)
@click.option("--x11", is_flag=True, help="Your X11 display; its other clients can watch the program.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def command(
    zone: str,
    share: tuple[Path, ...],
    share_home: bool,
    wayland: bool,
    x11: bool,
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM in a bubble: everything that it sends is judged, and leaves only through the tunnel.

    It has a home of its own for each zone, sees the system read-only, and nothing of your files.
    Its exit code becomes this command's. Without PROGRAM it is your shell.

    \b
    zonegate run --wayland -- firefox
    zonegate run -- curl https://intranet.corp.example/
    zonegate run --zone lab --share ~/project -- make test
    """
    home = Path(os.environ.get("HOME") or "/")
    own = zone_home(zone, os.environ) if zone.replace("-", "").isalnum() else None
    if own is None:
        fail(f'"{zone}" is no name of a zone')
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{own}: the zone's home cannot be made: {error.strerror}")
    view = View(
        zone=zone,
        uid=os.getuid(),
        gid=os.getgid(),
        home=home,
        zone_home=own,
        command=program or (os.environ.get("SHELL", "/bin/sh"),),
        share=share,
        share_home=share_home,
        wayland=wayland,
        x11=x11,
        variables=dict(os.environ),
    )
    if view.uid == 0 and sys.stderr.isatty():
        click.echo("zonegate: a bubble of root can change what root owns in /dev; better be a user", err=True)
    if view.cooperative:
        click.echo("zonegate: sharing that makes this bubble only cooperative: see --share", err=True)
    for flag, asked, variable in (("--wayland", wayland, "WAYLAND_DISPLAY"), ("--x11", x11, "DISPLAY")):
        if asked and not os.environ.get(variable):
            fail(f"there is no {variable} here; {flag} needs one", 125)
    if absent := missing_program(view):
        fail(*absent)
    try:
        sys.exit(run(view, admin_sockets(os.getuid(), os.environ)))
    except RunError as error:
        fail(str(error), 125)
