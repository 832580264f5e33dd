"""`zonegate cleanup`: end what a killed daemon left behind."""

from __future__ import annotations

import os

import click

from proxy import remains
from proxy.cli.errors import fail
from proxy.paths import admin_sockets
from proxy.run import RunError, connect


@click.command("cleanup", short_help="end the bubbles that a killed daemon left")
def command() -> None:
    """End the bubbles of a daemon that is not there any more, and forget its socket.

    They have no way out since it went; a new daemon would take them on again: zonegate up

    \b
    zonegate cleanup
    """
    socket = admin_sockets(os.getuid(), os.environ)[0]
    try:
        connect([socket]).close()
    except RunError:
        found = remains.remaining(socket.parent)
        remains.end(found)
        for name in (socket.name, remains.FILE):
            (socket.parent / name).unlink(missing_ok=True)
        unbegun = remains.end_unbegun()
        click.echo(f"ended {len(found)} bubble{'' if len(found) == 1 else 's'}")
        if unbegun:
            click.echo(f"ended {unbegun} sandbox{'' if unbegun == 1 else 'es'} that had not begun")
    else:
        fail("a daemon is running; to end it and its bubbles: zonegate stop")
