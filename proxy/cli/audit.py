"""`zonegate audit`: what was recorded of flows, for people and for programs, and whether it is whole."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from proxy import chain, ipc, pieces, trail
from proxy.cli.completing import zones
from proxy.cli.errors import fail, warn
from proxy.cli.folding import tell
from proxy.messages.admin import Answer, Ask
from proxy.paths import Places, admin_sockets
from proxy.run import RunError, connect
from proxy.trail import Filters, Found

LOOK_S = 0.25


def _directory(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        help="The directory of the records.  [default: the daemon's, or where yours would be]",
    )(function)


@click.group("audit", short_help="what was recorded of flows, and whether it is whole")
def command() -> None:
    """Read the records of flows and verify their chain. Only who runs the daemon can.

    \b
    zonegate audit tail -f
    zonegate audit show --user alice --verdict block --since 2026-01-05
    zonegate audit verify --head 3f2a…
    """


@command.command("tail", short_help="the last records, and what comes")
@click.option(
    "-n", "count", default=20, show_default=True, type=click.IntRange(min=0), help="So many records."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is recorded from now on.")
@click.option("--json", "as_json", is_flag=True, help="The records as they are written.")
@_directory
def tail(count: int, follow: bool, as_json: bool, directory: Path | None) -> None:
    """Show the last records, of all zones and workers, in the order of their times.

    \b
    zonegate audit tail
    zonegate audit tail -n 5 -f
    """
    place = _place(directory)
    following = trail.Following(place)
    try:
        for found in following.latest(count):
            _print(found, as_json)
        while follow:
            time.sleep(LOOK_S)
            for found in following.new():
                _print(found, as_json)
    except KeyboardInterrupt:
        return
    except OSError as error:
        _cannot(place, error)


@command.command("show", short_help="the records that fit")
@click.option("-z", "--zone", shell_complete=zones, help="Of a zone.")
@click.option("--user", help="Of a user.")
@click.option("--flow", help="Of one flow: the reference in brackets that a refused program is shown.")
@click.option("--to", metavar="HOST", help="To a host; *.corp.example is every name below it.")
@click.option("--verdict", type=click.Choice(["block", "tunnel", "direct"]), help="With a verdict.")
@click.option("--rule", metavar="ID", help="Decided by a rule, a guard, or a part of the gate.")
@click.option("--since", metavar="TIME", help="From a time on, such as 2026-01-05 or 2026-01-05T10:00.")
@click.option("--until", metavar="TIME", help="Before a time. Without a zone, times are local.")
@click.option("--json", "as_json", is_flag=True, help="The records as they are written.")
@_directory
def show(as_json: bool, directory: Path | None, **wanted: str | None) -> None:
    """Show the records that fit every option, in the order of their times.

    Exit code 1 where there is none.

    \b
    zonegate audit show --flow 9b4a70-3
    zonegate audit show --user alice --verdict block
    """
    place = _place(directory)
    try:
        filters = Filters.of(**{key: value for key, value in wanted.items() if value})
        none, oldest = True, ""
        for found in trail.Following(place).new():
            oldest = oldest or trail.time_of(found)
            if filters.admits(found):
                none = False
                _print(found, as_json)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        _cannot(place, error)
    if none:
        there = f"the oldest there is of {oldest}" if oldest else "there is none yet"
        warn(f"no record in {place} fits: {there}; another place is named with --dir")
    sys.exit(1 if none else 0)


@command.command("verify", short_help="whether all are there and unchanged")
@click.option(
    "--head", default=chain.NOTHING_BEFORE, help="A head that was noted earlier; it must be in the chain."
)
@click.option("--json", "as_json", is_flag=True, help="The answer, for programs.")
@_directory
def verify(head: str, as_json: bool, directory: Path | None) -> None:
    """Verify that every sealed segment is there and unchanged, and follows the noted head.

    Prints the present head: note it somewhere else, for the next time. Exit code 0 when all is whole, 1 when
    something was changed, removed, exchanged or shortened (a line for each), 2 when it cannot be read.

    \b
    zonegate audit verify
    """
    place = _place(directory)
    if len(head) != len(chain.NOTHING_BEFORE) or set(head) - set("0123456789abcdef"):
        fail(f'"{head:.80}" is no head; it has 64 hexadecimal digits, as `zonegate audit verify` prints them')
    try:
        found = chain.verify(place, head)
    except OSError as error:
        _cannot(place, error)
    if as_json:
        value = {
            "good": not found.problems,
            "directory": str(place),
            "sealed": found.sealed,
            "open": list(found.open),
            "head": found.head,
            "problems": list(found.problems),
        }
        click.echo(json.dumps(value, indent=2))
    else:
        for problem in found.problems:
            warn(problem)
        click.echo(
            f"{'damaged' if found.problems else 'whole'}: {found.sealed} sealed, {len(found.open)} still open"
        )
        click.echo(f"head {found.head}")
    sys.exit(1 if found.problems else 0)


def _place(told: Path | None) -> Path:
    """The directory that was named, or that of the daemon that answers, or where this user's would be."""
    if told is not None:
        return told
    try:
        with connect(admin_sockets(os.getuid(), os.environ)) as link:
            ipc.send(link, Ask("status", "{}"))
            answer = pieces.receive(link)
        if isinstance(answer, Answer):
            return Path(json.loads(answer.text)["state"]) / "audit"
    except (RunError, ipc.LinkBroken, OSError, ValueError, KeyError):
        pass
    return Places.of(None, None, os.environ).state / "audit"


def _cannot(place: Path, error: OSError) -> NoReturn:
    cure = (
        "only who runs the daemon reads its records"
        if isinstance(error, PermissionError)
        else "name it with --dir"
    )
    fail(f"{place}: the records cannot be read: {error.strerror}; {cure}")


def _print(found: Found, as_json: bool) -> None:
    if not as_json:
        tell(trail.line(found))
    elif found.record is not None:
        click.echo(found.text)
    else:
        click.echo(json.dumps({"record": "unreadable", "segment": found.segment, "text": found.text[:1000]}))
