"""`zonegate leaktest`: does anything leave a zone here?"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy import ipc
from proxy.cli.errors import fail
from proxy.leaktest.judge import Judged, Verdict
from proxy.leaktest.places import LeaktestError
from proxy.leaktest.trial import Found, Request, test
from proxy.paths import admin_sockets
from proxy.run import RunError

WIDTH = 160  # where no terminal says how wide it is
WIDE = 120  # columns in which there is room for what is expected beside what was seen
_STYLES = {
    Verdict.HELD: ("✓", "green"),
    Verdict.ABSENT: ("–", "dim"),
    Verdict.NOT_SHOWN: ("?", "bold yellow"),
    Verdict.LEAK: ("✗", "bold red"),
}


@click.command("leaktest", short_help="try every way out of a zone on this machine")
@click.option("-z", "--zone", default="corporate", show_default=True, help="The zone to test.")
@click.option("--netns", metavar="NAME", help="A network namespace of `ip netns` in place of a new bubble.")
@click.option("--pid", type=int, help="The network namespace of a process in place of a new bubble.")
@click.option("--disturb", is_flag=True, help="States that cut everybody's flows, too.")
@click.option(
    "--row", "rows", multiple=True, help="Only attempts of this row of docs/threats.md, such as N2."
)
@click.option("--json", "as_json", is_flag=True, help="The whole result, for programs.")
def command(
    zone: str, netns: str | None, pid: int | None, disturb: bool, rows: tuple[str, ...], as_json: bool
) -> None:
    """Try every way out of a bubble that is known, and say what was seen outside of it.

    Each attempt is made first where there is a way out, and must be seen there. As root all devices of this
    machine are looked at; as a user, listeners on its addresses. Nothing of the daemon's is changed.

    Exit code 0 when everything held, 1 on a leak, 2 when something could not be shown.

    \b
    zonegate leaktest
    sudo zonegate leaktest --netns lab
    """
    if netns and pid:
        fail("--netns and --pid name one namespace each; give one of them")
    named = f"netns {netns}" if netns else f"the network of process {pid}" if pid else ""
    sockets = admin_sockets(os.getuid(), os.environ)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    network = _open(Path("/run/netns") / netns if netns else Path(f"/proc/{pid}/ns/net")) if named else None
    for number in (signal.SIGTERM, signal.SIGHUP):  # however it ends, what it brought about is undone
        signal.signal(number, signal.default_int_handler)
    try:
        request = Request(zone, sockets, disturb, network, named, rows)
        found = test(request, lambda words: None if as_json else progress.print(f"… {words}", style="dim"))
        if as_json:
            click.echo(json.dumps(_value(found), indent=2))
        else:
            show(found, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
        sys.stdout.flush()
    except (LeaktestError, RunError, ipc.LinkBroken) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted: nothing was shown")
    except Exception as error:  # left to others it would end with 1, which says that something leaked
        _break_off(error)
    sys.exit(code_of(found))


def _break_off(error: Exception) -> NoReturn:
    """End with 2 and one line, whatever went wrong and whether or not anybody reads the output."""
    sys.stdout = io.StringIO()  # what is left in the real one is not tried again at exit
    words = " ".join(f"{type(error).__name__}: {error}".split())
    fail(f"the test broke off, and nothing was shown ({words})")


def _open(path: Path) -> int:
    if os.getuid():
        fail("only root may enter a namespace that is not a bubble's")
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        fail(f"{path}: {error.strerror}")


def code_of(found: Found) -> int:
    """The exit code of a test."""
    verdicts = {one.verdict for one in found.judged}
    if Verdict.LEAK in verdicts:
        return 1
    return 2 if Verdict.NOT_SHOWN in verdicts or found.missed or not found.judged else 0


def show(found: Found, console: Console) -> None:
    """Print a result for people."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    wide = console.width >= WIDE
    for name in ("", "row", "attempt", *(["expected"] if wide else ())):
        table.add_column(name, header_style="dim", no_wrap=True)
    table.add_column("seen", header_style="dim", overflow="fold")
    for one in found.judged:
        mark, style = _STYLES[one.verdict]
        seen = Text(one.why if one.verdict is Verdict.HELD else f"{one.verdict}: {one.why}", style)
        attempt = one.attempt
        expected = [attempt.expected] if wide else []
        table.add_row(Text(mark, style), attempt.row, attempt.title, *expected, seen)
    console.print(table)
    console.print()
    tunnels = ", ".join(f"{name} {state}" for name, state in found.tunnels.items())
    console.print(f"zone       {found.zone} ({tunnels or 'no tunnel'})")
    console.print(f"rounds     {'; '.join(found.rounds)}")
    console.print(f"looked at  {found.captured or 'listeners on this machine only'}")
    for what, why in found.not_tried.items():
        console.print(f"not tried  {what}: {why}")
    console.print(Text(*verdict_of(found)))


def verdict_of(found: Found) -> tuple[str, str]:
    """The last line, and its style."""
    counts = _counts(found)
    tried = f"{len(found.judged)} ways out, {counts[Verdict.HELD]} held"
    if counts[Verdict.ABSENT]:
        tried += f", {counts[Verdict.ABSENT]} not on this machine"
    if counts[Verdict.LEAK]:
        return f"{tried}, {counts[Verdict.LEAK]} LEAK", "bold red"
    if found.missed:
        return (
            f"{tried}, but {found.missed} frames were missed: try again when less is going on",
            "bold yellow",
        )
    if counts[Verdict.NOT_SHOWN]:
        return f"{tried}, {counts[Verdict.NOT_SHOWN]} could not be shown", "bold yellow"
    return f"{tried}: nothing left the zone", "bold green"


def _counts(found: Found) -> dict[Verdict, int]:
    return {verdict: sum(one.verdict is verdict for one in found.judged) for verdict in Verdict}


def _value(found: Found) -> dict[str, Any]:
    return {
        "zone": found.zone,
        "tunnels": found.tunnels,
        "rounds": found.rounds,
        "not_tried": found.not_tried,
        "captured": found.captured,
        "missed": found.missed,
        "result": verdict_of(found)[0],
        "counts": _counts(found),
        "attempts": [_row(one) for one in found.judged],
    }


def _row(one: Judged) -> dict[str, Any]:
    attempt = one.attempt
    return {
        "row": attempt.row,
        "attempt": attempt.title,
        "expected": attempt.expected,
        "verdict": one.verdict,
        "seen": one.why,
        "control": asdict(one.control),
        "tries": [asdict(tried) for tried in one.tries],
    }
