"""`zonegate flows`: who is connected where, through what, how much and how fast, and why it may."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.cli import amounts
from proxy.cli.ask import ask_pages
from proxy.cli.folding import PIPED_WIDTH, columns

EVERY_S = 1.0
MOST_SHOWN = 200  # to people; a pipe has all
WIDE = 100  # columns in which a table has room for reasons beside the rest
WHO = 16  # columns for a person where there is little room
LEAST = 16  # columns that a destination keeps
OTHER_LINES = 3  # the heading, the summary and the cursor's own

type Row = dict[str, Any]


@click.command("flows", short_help="who is connected where, how fast, and why")
@click.option("-w", "--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --watch a line each second.")
def command(watch: bool, as_json: bool) -> None:
    """Show the open flows: yours, or everybody's if you run the daemon.

    The rate is that of the last second with --watch, and the average of the flow's life without.

    \b
    zonegate flows --watch
    zonegate flows --json | jq '.[] | select(.bytes_up > 1e6) | .destination'
    """
    console = Console(highlight=False, width=None if columns() else PIPED_WIDTH)
    if not watch:
        rows = found()
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        else:
            most = MOST_SHOWN if console.is_terminal else None
            console.print(shown(rows, {}, console.width, most))
        return
    try:
        _watch(console, as_json=as_json)
    except KeyboardInterrupt:
        return


def found() -> list[Row]:
    """Every open flow, the oldest of each zone first."""
    return [row for page in ask_pages("flows") for row in page["flows"]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the flows had carried at one moment."""

    at: float
    carried: Mapping[str, int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Sample:
        """The sample of an answer that has just come."""
        return cls(time.monotonic(), {row["id"]: _carried(row) for row in rows})

    def rates_since(self, before: Sample) -> dict[str, float]:
        """Bytes a second of each flow that was open at both moments."""
        passed_s = max(0.001, self.at - before.at)
        return {
            flow: max(0, carried - before.carried[flow]) / passed_s
            for flow, carried in self.carried.items()
            if flow in before.carried
        }


def _carried(row: Row) -> int:
    return int(row["bytes_up"]) + int(row["bytes_down"])


def _watch(console: Console, *, as_json: bool) -> None:
    before: Sample | None = None
    with Live(console=console, screen=console.is_terminal and not as_json, auto_refresh=False) as live:
        while True:
            rows = found()
            now = Sample.of(rows)
            rates = now.rates_since(before) if before else {}
            if as_json:
                click.echo(json.dumps([{**row, "rate": round(rates.get(row["id"], 0.0))} for row in rows]))
            else:
                live.update(shown(rows, rates, console.width, console.height - OTHER_LINES), refresh=True)
            before = now
            time.sleep(EVERY_S)


def shown(rows: Sequence[Row], rates: Mapping[str, float], width: int, most: int | None = None) -> Group:
    """The table: the fastest first, at most so many, and what they all amount to."""
    speed = {row["id"]: rates.get(row["id"], _carried(row) / max(0.001, row["age_s"])) for row in rows}
    ordered = sorted(rows, key=lambda row: (-round(speed[row["id"]]), -row["age_s"]))
    several = len({row["zone"] for row in rows}) > 1
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("flow" if wide else "flow, age", no_wrap=True)
    table.add_column("who", no_wrap=True, overflow="ellipsis", max_width=None if wide else WHO)
    table.add_column("destination", no_wrap=True, ratio=3, min_width=LEAST, style="bold")
    if wide:
        table.add_column("by", no_wrap=True)
        table.add_column("age", no_wrap=True, justify="right")
    elif most is not None:
        most = max(1, most // 2)  # each has a second line
    for heading in ("up", "down", "rate"):
        table.add_column(heading, no_wrap=True, justify="right")
    if wide:
        table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=2, style="dim")
    for row in ordered[:most]:
        who = Text(f"{row['user']}@{row['zone']}" if several else row["user"])
        by, age = f"{row['tunnel']} {row['protocol']}", amounts.age(row["age_s"])
        to = _End(row["destination"])
        carried = [Text(amounts.size(row[key])) for key in ("bytes_up", "bytes_down")]
        carried.append(Text(amounts.rate(speed[row["id"]])))
        if wide:
            table.add_row(Text(row["id"]), who, to, Text(by), Text(age), *carried, Text(row["because"]))
        else:
            why = Text(f"{by}, {row['because']}", "not bold dim", no_wrap=True, overflow="ellipsis")
            table.add_row(Group(Text(row["id"]), Text(age, "dim")), who, Group(to, why), *carried)
    return Group(table, _summary(rows, speed, most)) if rows else Group(Text("no flow is open"))


@dataclass(frozen=True, slots=True)
class _End:
    """A destination; what does not fit is left out of its beginning, since domain and port say most."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, options.max_width)
        yield Text(self.text if len(self.text) <= room else f"…{self.text[len(self.text) - room + 1 :]}")


def _summary(rows: Sequence[Row], speed: Mapping[str, float], most: int | None) -> Text:
    hidden = len(rows) - len(rows[:most])
    words = amounts.count(len(rows), "flow")
    if total := amounts.rate(sum(speed.values())):
        words += f", {total}"
    if hidden:
        words += f"; {hidden} slower ones are not shown, see --json"
    return Text(words, "dim")
