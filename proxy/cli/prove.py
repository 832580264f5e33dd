"""`zonegate prove`: what holds of every flow there can be, and a flow on which it does not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click

from proxy.cli.errors import fail, fail_at
from proxy.cli.folding import tell
from proxy.policy import Policy, files
from proxy.policy.cover import TooHard, has_z3
from proxy.policy.examples import Claim
from proxy.policy.lint import severity_of, told_in_full
from proxy.policy.prove import EngineName, Finding, Prover
from proxy.policy.source import Problems
from proxy.policy.telling import finding_value, tell_finding


@click.command("prove", short_help="prove claims over all flows, find dead rules")
@click.argument("paths", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["auto", "boxes", "z3"]),
    default="auto",
    show_default=True,
    help="boxes needs nothing and does for about 200 rules; z3 is for more, and needs zonegate[prove]; "
    "auto takes boxes, and z3 where that would take too long. The answers are the same.",
)
@click.option("--json", "as_json", is_flag=True, help="The findings, for programs.")
def command(paths: tuple[Path, ...], engine: EngineName, as_json: bool) -> None:
    """Prove the claims of test files, and of every policy that no rule is dead and no route unstable.

    Unlike a test, a proof speaks of all flows: every user, name, address, port, time and request. Exit
    code 0 where all holds, 1 where something does not (each with a flow that shows it), 2 where a file
    cannot be read.

    \b
    zonegate prove acme.policy.yaml
    """
    if engine == "z3" and not has_z3():
        fail("z3 is not installed; install zonegate[prove]")
    if not paths and not Path("policies").is_dir():
        fail(files.NOTHING_HERE)
    paths = paths or (Path("policies"),)
    proved = 0
    findings: list[Finding] = []
    try:
        for policy, claims in _subjects(paths) or fail(files.NO_POLICY):
            count, found = _prove(policy, claims, engine)
            proved += count
            findings += found
    except Problems as problems:
        fail_at(problems.render())
    except TooHard as error:
        fail(str(error) or "this policy is too large for boxes; use --engine auto or z3")
    failed = [finding for finding in findings if severity_of(finding) == "error"]
    if as_json:
        click.echo(json.dumps({"proved": proved, "findings": [finding_value(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            severity = severity_of(finding)
            head = "FAILED" if severity == "error" else severity
            told = replace(finding, message=told_in_full(finding))
            tell(f"{head} {finding.id} ({finding.kind})\n{tell_finding(told)}")
        click.echo(f"{proved} proved, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def _subjects(paths: tuple[Path, ...]) -> list[tuple[Policy, tuple[Claim, ...]]]:
    """Each policy that is named or tested, with the claims about it. Raises Problems."""
    found: dict[str, tuple[Policy, tuple[Claim, ...]]] = {}
    named = [path for path in paths if path.name.endswith(files.TEST_SUFFIX)]
    folders = [path for path in paths if path.is_dir()]
    for path in files.find((*named, *folders), files.TEST_SUFFIX):
        suite = files.load_suite(path)
        policy, claims = found.get(suite.policy.model.file, (suite.policy, ()))
        found[suite.policy.model.file] = policy, (*claims, *suite.claims)
    for path in files.find([p for p in paths if p not in named], files.POLICY_SUFFIX):
        if not any(Path(file).resolve() == path.resolve() for file in found):
            found[str(path)] = files.load_policy(path), ()
    return list(found.values())


def _prove(policy: Policy, claims: tuple[Claim, ...], engine: EngineName) -> tuple[int, list[Finding]]:
    """How many things hold, and what speaks against the rest. Raises TooHard."""
    prover = Prover(policy, claims, engine)
    answers = [prover.check(claim) for claim in claims if not (claim.no_dead_rules or claim.no_idle_guards)]
    idle = list(prover.idle_guards())
    answers += [list(prover.dead_rules()), list(prover.unstable_routes())]
    if any(claim.no_idle_guards for claim in claims):
        idle = [Finding("claim", f.id, f.message, f.where) for f in idle]
    found = [finding for answer in (*answers, idle) for finding in answer]
    return sum(not answer for answer in answers), found
