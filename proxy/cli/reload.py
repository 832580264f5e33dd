"""`zonegate reload`: have the daemon read its files again."""

from __future__ import annotations

import json
import sys

import click

from proxy.cli.ask import order
from proxy.cli.folding import tell


@click.command("reload", short_help="have the daemon read its files again")
@click.option("--check", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="The answer, for programs.")
def command(check: bool, as_json: bool) -> None:
    """Read site file, policy, certificates and keys again, and take them whole or not at all.

    Says what changed and what was cut: flows that the new policy would not admit, and every flow of a zone
    whose tunnels, people or limits changed. All others go on, and so do programs. Where anything is wrong
    with the files, everything stays as it was and the exit code is 2. SIGHUP does the same.

    \b
    zonegate reload --check && zonegate reload
    zonegate diff HEAD:acme.policy.yaml acme.policy.yaml  # which flows change
    """
    done = order("reload", check=check)
    if as_json:
        done.pop("lines")
        click.echo(json.dumps(done, indent=2))
    else:
        tell("\n".join(done["lines"]))
    sys.exit(1 if done["trouble"] else 0)
