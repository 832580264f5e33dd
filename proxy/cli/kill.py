"""`zonegate kill`: cut open flows by hand."""

from __future__ import annotations

import json
import sys

import click

from proxy.cli import amounts
from proxy.cli.ask import order
from proxy.cli.completing import flows, users
from proxy.cli.errors import fail, warn


@click.command("kill", short_help="cut open flows by hand")
@click.argument("flow", required=False, default="", shell_complete=flows)
@click.option("--user", metavar="LOGIN", help='Those of a user, or of "#uid".', shell_complete=users)
@click.option(
    "--to", metavar="HOST[:PORT]", help="Those to a destination; *.corp.example is every name below it."
)
@click.option("--json", "as_json", is_flag=True, help="The answer, for programs.")
def command(flow: str, user: str | None, to: str | None, as_json: bool) -> None:
    """Reset one FLOW (its id is in `zonegate flows`), or all that fit every option.

    Your own; everybody's if you run the daemon. A program may connect again: to keep it out, edit the policy
    and `zonegate reload`, or `zonegate lock`. Exit code 1 when there was nothing to cut.

    \b
    zonegate kill 9b4a70-3
    zonegate kill --to www.pastehub.example
    zonegate kill --user alice --to "*.corp.example:443"
    """
    if not (flow or user or to):
        fail("name a flow, or --user or --to; see: zonegate flows")
    done = order("kill", flow=flow, user=user or "", to=to or "")
    for line in done["trouble"]:
        warn(line)
    if not done["cut"]:
        warn("no open flow fits; see: zonegate flows")
    click.echo(json.dumps(done, indent=2) if as_json else f"{amounts.count(done['cut'], 'flow')} cut")
    sys.exit(0 if done["cut"] and not done["trouble"] else 1)
