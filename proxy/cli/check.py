"""`zonegate check`: what is wrong with policy files, for people, for programs and for CI."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from proxy.cli.errors import fail
from proxy.policy import files
from proxy.policy.cover import TooHard
from proxy.policy.lint import Lint, Site, lint
from proxy.policy.source import Problem, Problems


@click.command("check", short_help="what is wrong with policy files")
@click.argument("paths", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="A list of problems, for programs.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["text", "line", "github"]),
    default="text",
    help="text shows the line; line is one line each, as compilers print; github annotates a change.",
)
@click.option(
    "--no-inspection",
    metavar="ZONE",
    multiple=True,
    help="A zone where the gate does not look into requests: warns of rules on method, path and content_type "
    "there, which would block.",
)
@click.option(
    "--remote-names",
    metavar="ZONE",
    multiple=True,
    help="A zone whose tunnel is mtls, where the gateway resolves names and the gate learns no address: "
    "warns of what blocks networks there.",
)
@click.option(
    "--schema",
    type=click.Choice(["policy-1", "policy-test-1"]),
    help="Print a JSON Schema for editors; needs no FILE.",
)
def command(
    paths: tuple[Path, ...],
    as_json: bool,
    shape: str,
    no_inspection: tuple[str, ...],
    remote_names: tuple[str, ...],
    schema: str | None,
) -> None:
    """Check policy files and policy test files, or all below a folder.

    Exit code 0 where every file is good (warnings and notes do not count), 1 where one is not, 2 where
    there is none. --schema prints a schema for editors and needs no FILE.

    \b
    zonegate check acme.policy.yaml
    """
    if schema:
        click.echo((Path(files.__file__).parent / "schema" / f"{schema}.json").read_text(), nl=False)
        return
    if not paths:
        raise click.UsageError("no files; name policy files or a folder of them")
    site = Site(no_inspection, remote_names, datetime.now(UTC).date())
    found = [
        *files.find(paths, files.POLICY_SUFFIX),
        *files.find(filter(Path.is_dir, paths), files.TEST_SUFFIX),
    ]
    if not found:
        fail(files.NO_POLICY)
    lints: list[Lint] = []
    rendered: list[str] = []
    for path in found:
        try:
            ours = _check(path, site)
            lints += ours
            rendered += [str(line) for line in ours]
        except Problems as problems:
            lints += [_of_problem(problem) for problem in problems.problems]
            rendered.append(problems.render())
    _print(lints, rendered, len(found), "json" if as_json else shape)
    sys.exit(1 if any(line.severity == "error" for line in lints) else 0)


def _check(path: Path, site: Site) -> list[Lint]:
    """Raises Problems."""
    if path.name.endswith(files.TEST_SUFFIX):
        files.load_suite(path)
        return []
    try:
        return lint(files.load_policy(path), site)
    except TooHard as error:
        return [Lint(str(path), 1, 1, "error", str(error))]


def _of_problem(problem: Problem) -> Lint:
    return Lint(problem.file, problem.line, problem.col, "error", problem.message)


def _print(lints: list[Lint], rendered: list[str], count: int, shape: str) -> None:
    match shape:
        case "json":
            values = [
                {
                    "file": line.file,
                    "line": line.line,
                    "col": line.col,
                    "severity": line.severity,
                    "message": line.message,
                }
                for line in lints
            ]
            click.echo(json.dumps(values, indent=2))
        case "line":
            for line in lints:
                click.echo(str(line))
        case "github":
            for line in lints:
                kind = "notice" if line.severity == "note" else line.severity
                message = line.message.replace("%", "%25").replace("\n", "%0A")
                click.echo(f"::{kind} file={line.file},line={line.line},col={line.col}::{message}")
        case _:
            for text in rendered:
                click.echo(text)
            click.echo(", ".join(_summary(lints, count)), err=True)


def _summary(lints: list[Lint], count: int) -> Iterator[str]:
    """How much of each there is; notes only where there are any."""
    found = Counter(line.severity for line in lints)
    yield _count(count, "file")
    yield _count(found["error"], "error")
    yield _count(found["warning"], "warning")
    if found["note"]:
        yield _count(found["note"], "note")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
