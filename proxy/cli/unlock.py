"""`zonegate unlock`: open what was locked."""

from __future__ import annotations

import json
import sys

import click

from proxy.cli import amounts
from proxy.cli.ask import order
from proxy.cli.completing import users, zones
from proxy.cli.errors import warn


@click.command("unlock", short_help="open what was locked")
@click.option("-z", "--zone", help="One zone; else every lock.", shell_complete=zones)
@click.option("--user", metavar="LOGIN", help="What was locked for one user.", shell_complete=users)
@click.option("--json", "as_json", is_flag=True, help="The answer, for programs.")
def command(zone: str | None, user: str | None, as_json: bool) -> None:
    """Open what `zonegate lock` locked; `zonegate status` shows what there is.

    Who runs the daemon may open everything; everybody else what they locked themselves.

    \b
    zonegate unlock
    zonegate unlock --zone corporate --user alice
    """
    done = order("unlock", zone=zone or "", user=user or "")
    for line in done["trouble"]:
        warn(line)
    what = f"opened {amounts.count(len(done['unlocked']), 'lock')}"
    click.echo(json.dumps(done, indent=2) if as_json else what)
    sys.exit(1 if done["trouble"] else 0)
