"""`zonegate stop`: end the daemon."""

from __future__ import annotations

import click

from proxy.cli.ask import ask
from proxy.messages.admin import Stop


@click.command("stop", short_help="end the daemon and its bubbles")
@click.option("--keep-bubbles", is_flag=True, help="Leave programs running, shut in, for the next daemon.")
def command(keep_bubbles: bool) -> None:
    """End the daemon. Bubbles get SIGTERM and go with it, unless they are kept.

    A kept bubble has no way out until a new daemon is up; then its programs go on where they were.

    \b
    zonegate stop
    zonegate stop --keep-bubbles && zonegate up   # programs go on
    """
    ask(Stop(keep_bubbles))
