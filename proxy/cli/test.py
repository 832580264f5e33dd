"""`zonegate test`: policy tests without knowing pytest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from proxy.cli.errors import fail, fail_at
from proxy.cli.folding import tell
from proxy.policy import files
from proxy.policy.cover import TooHard
from proxy.policy.coverage import Coverage, measure
from proxy.policy.examples import Suite, covered, describe, run
from proxy.policy.mutants import survivors
from proxy.policy.prove import Prover
from proxy.policy.source import Problems
from proxy.policy.telling import tell_finding


@dataclass(frozen=True, slots=True)
class _Failure:
    """A test that failed. Those of one file with the same `cause` failed alike; "" is like no other."""

    file: str
    name: str
    told: str
    cause: str = ""


@dataclass(slots=True)
class _Tally:
    """What the run has come to so far."""

    passed: int = 0
    failures: list[_Failure] = field(default_factory=list)
    decided: dict[str, tuple[Suite, set[str]]] = field(default_factory=dict)


@click.command("test", short_help="run policy tests and their claims")
@click.argument("paths", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--mutants", is_flag=True, help="Put small faults into each policy; each must fail a test.")
@click.option("--cov-fail-under", type=float, metavar="PERCENT", help="Fail below this coverage.")
@click.option("--json", "as_json", is_flag=True, help="The result, for programs.")
def command(paths: tuple[Path, ...], mutants: bool, cov_fail_under: float | None, as_json: bool) -> None:
    """Run the tests and prove the claims of policy test files, or of all below a folder.

    Exit code 0 where all hold, 1 where one does not, 2 where a file cannot be read.

    \b
    zonegate test policies/
    """
    tally = _Tally()
    if not paths and not Path("policies").is_dir():
        fail(files.NOTHING_HERE)
    found = list(files.find(paths or (Path("policies"),), files.TEST_SUFFIX))
    if not found:
        fail("no policy tests there; name *.test.yaml files or a folder of them")
    for path in found:
        try:
            _run(files.load_suite(path), mutants, tally)
        except Problems as problems:
            fail_at(problems.render())
        except TooHard as error:
            fail(str(error))
    coverages = [measure(suite.policy, ids) for suite, ids in tally.decided.values()]
    if cov_fail_under is not None:
        low = [c for c in coverages if c.percent < cov_fail_under]
        tally.failures += [
            _Failure("", c.policy.name, f"coverage {c.percent:.0f}% is below the limit") for c in low
        ]
    _print(tally, coverages, as_json)
    sys.exit(1 if tally.failures else 0)


def _run(suite: Suite, mutants: bool, tally: _Tally) -> None:
    """Raises TooHard where a claim needs z3."""
    results = [run(suite.policy, case) for case in suite.cases]
    for result in results:
        told = describe(suite.policy, result.case) if result.failures else ""
        _count(tally, suite.file, result.case.id, told, "; ".join(result.failures[:1]))
    prover = Prover(suite.policy, suite.claims) if suite.claims else None
    for claim in suite.claims:
        assert prover is not None
        told = "\n".join(map(tell_finding, prover.check(claim)))
        _count(tally, suite.file, f"prove::{claim.id}", told and f"{claim.at}: {claim.id}\n{told}")
    for survivor in survivors(suite) if mutants else ():
        _count(tally, suite.file, "mutants", str(survivor))
    _, ids = tally.decided.setdefault(suite.policy.model.file, (suite, set()))
    ids |= covered(results)


def _count(tally: _Tally, file: str, name: str, told: str, cause: str = "") -> None:
    if told:
        tally.failures.append(_Failure(file, f"{file}::{name}", told, cause))
    else:
        tally.passed += 1


def _print(tally: _Tally, coverages: list[Coverage], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_value(tally, coverages), indent=2))
        return
    for alike in _alike(tally.failures):
        tell(f"FAILED {alike[0].name}\n{alike[0].told}")
        if len(alike) > 1:
            tell(f"  and {len(alike) - 1} more alike, {alike[0].cause}:")
        for one in alike[1:]:
            tell(f"    {one.told.partition('\n')[0]}")
        click.echo()
    for coverage in coverages:
        share = f"{coverage.decided} of {coverage.total} rules and guards"
        click.echo(f"{coverage.policy.name}: {share} decided a test flow, {coverage.percent:.0f}%")
        for gap in coverage.gaps:
            click.echo(f"  {gap}")
    click.echo(f"{tally.passed} passed, {len(tally.failures)} failed")


def _alike(failures: Sequence[_Failure]) -> list[list[_Failure]]:
    """Failures by file and cause, in the order in which each cause was seen first."""
    found: dict[object, list[_Failure]] = {}
    for one in failures:
        found.setdefault((one.file, one.cause) if one.cause else id(one), []).append(one)
    return list(found.values())


def _value(tally: _Tally, coverages: list[Coverage]) -> dict[str, Any]:
    return {
        "passed": tally.passed,
        "failed": [{"id": one.name, "message": one.told} for one in tally.failures],
        "coverage": [
            {
                "policy": coverage.policy.name,
                "hash": coverage.policy.hash,
                "percent": round(coverage.percent, 1),
                "gaps": [
                    {"id": gap.id, "where": str(gap.at), "example": gap.example} for gap in coverage.gaps
                ],
            }
            for coverage in coverages
        ],
    }
