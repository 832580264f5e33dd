"""`zonegate diff`: what an edit of a policy means, flow by flow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from proxy.cli.errors import fail, fail_at
from proxy.cli.folding import tell
from proxy.cli.revisions import load_either
from proxy.policy.cover import TooHard
from proxy.policy.diff import compare
from proxy.policy.duty_diff import compare_duties
from proxy.policy.source import Problems
from proxy.policy.telling import change_value, tell_changes


@click.command("diff", short_help="which flows an edit of a policy changes")
@click.argument("old")
@click.argument("new")
@click.option("--json", "as_json", is_flag=True, help="The changes, for programs.")
@click.option("--fail-looser", is_flag=True, help="Exit with 1 where any flow gets a looser verdict.")
def command(old: str, new: str, as_json: bool, fail_looser: bool) -> None:
    """Compare two policies: files, or REVISION:FILE for a file as it was in git.

    OLD may be a revision alone: the file NEW as it was then. The first line says whether anything is
    looser; then a row for each pair of rules between which flows moved, with one of those flows.

    \b
    zonegate diff old.policy.yaml new.policy.yaml
    zonegate diff HEAD:acme.policy.yaml acme.policy.yaml
    """
    try:
        one, two = load_either(old, _file_of(new)), load_either(new, None)
        changes, duties = compare(one, two), compare_duties(one.model, two.model)
    except Problems as problems:
        fail_at(problems.render())
    except TooHard as error:
        fail(str(error))
    looser = any(change.is_looser for change in changes) or any(duty.is_looser for duty in duties)
    if as_json:
        told = [{"looser": duty.is_looser, "text": duty.text} for duty in duties]
        found = {"looser": looser, "changes": [change_value(c) for c in changes], "destinations": told}
        click.echo(json.dumps(found, indent=2))
    else:
        for line in tell_changes(changes, duties):
            tell(line)
    sys.exit(1 if looser and fail_looser else 0)


def _file_of(what: str) -> Path:
    """The file part of a file or of `REVISION:FILE`."""
    return Path(what) if Path(what).exists() or ":" not in what else Path(what.partition(":")[2])
