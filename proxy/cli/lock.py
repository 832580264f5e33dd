"""`zonegate lock`: cut every flow and refuse new ones, until it is opened again."""

from __future__ import annotations

import json
import sys

import click

from proxy.cli import amounts
from proxy.cli.ask import order
from proxy.cli.completing import users, zones
from proxy.cli.errors import warn


@click.command("lock", short_help="cut and refuse every flow until unlocked")
@click.option("-z", "--zone", help="One zone; else every zone.", shell_complete=zones)
@click.option("--user", metavar="LOGIN", help='One user, or "#uid".', shell_complete=users)
@click.option("-r", "--reason", default="", help="What programs and people are told.")
@click.option("--json", "as_json", is_flag=True, help="The answer, for programs.")
def command(zone: str | None, user: str | None, reason: str, as_json: bool) -> None:
    """Cut every flow and admit none until `zonegate unlock`.

    It is written to the disk before this command returns, and outlives the daemon, SIGKILL and a restart.
    Who runs the daemon locks for everybody, or for one user; everybody else for themselves. Exit code 1
    when something of it could not be done; then it says what.

    \b
    zonegate lock --reason "laptop lost"
    zonegate lock --zone corporate --user alice
    """
    done = order("lock", zone=zone or "", user=user or "", reason=reason)
    for line in done["trouble"]:
        warn(line)
    click.echo(json.dumps(done, indent=2) if as_json else f"locked; {amounts.count(done['cut'], 'flow')} cut")
    sys.exit(1 if done["trouble"] else 0)
