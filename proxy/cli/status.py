"""`zonegate status`: what is up, what is proved, and who is inside."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy import remains
from proxy.cli import amounts, folding
from proxy.cli.ask import ask, value_of
from proxy.cli.errors import warn
from proxy.messages.admin import Ask
from proxy.paths import admin_sockets

MOST_SHOWN = 50  # bubbles, to people
WIDE = 100  # columns in which a tunnel has room for its peer beside the rest


@click.command("status", short_help="what is up, what is proved, who is inside")
@click.option("--json", "as_json", is_flag=True, help="The whole answer, for programs.")
def command(as_json: bool) -> None:
    """Show tunnels and what is proved of them, locks, bubbles, and what is wrong.

    Exit code 0 when every tunnel is attested, records can be written, nothing is locked and the last reload
    was taken; else 1, and 2 when no daemon answers.

    \b
    zonegate status
    zonegate status --json
    """
    found = value_of(ask(Ask("status", "{}"), tell_waiting))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found, folding.console())
    wrong = found["trouble"] or found["locks"] or found["reload"]["failed"]
    well = all(tunnel["attested"] for tunnel in found["tunnels"].values()) and not wrong
    sys.exit(0 if well else 1)


def tell_waiting() -> None:
    """Without a daemon: the bubbles that the last one left, if any."""
    run = admin_sockets(os.getuid(), os.environ)[0].parent
    for one in remains.remaining(run):
        warn(f"bubble {one.bubble} (pid {one.pid}) waits for a daemon, shut in")


def show(found: dict[str, Any], console: Console) -> None:
    """Print a status for people."""

    def say(words: str, style: str = "") -> None:
        console.print(Text(folding.fold(words, console.width if console.is_terminal else 0), style))

    policy = found["policy"]
    reload = found["reload"]
    say(f"policy       {policy['name']} ({policy['hash'][:12]}), read {reload['loaded_at']}")
    say(f"enforcement  {found['enforcement']}")
    if found["enforcement"] != "structural":
        say("             programs can go around this gate", "bold red")
    for lock in found["locks"]:
        where = f"zone {lock['zone']}" if lock["zone"] else "every zone"
        whose = "" if lock["uid"] < 0 else f" for user {_login(lock['uid'])}"
        say(f"{where} is {lock['words']}{whose}; to open: zonegate unlock", "bold red")
    if failed := reload["failed"]:
        say(f"the reload at {failed['at']} failed, and nothing was changed:", "bold red")
        for line in failed["words"].splitlines():
            say(f"  {line}")
    for trouble in found["trouble"]:
        say(f"new flows are denied: {trouble}", "bold red")
    for warning in found["warnings"]:
        say(warning, "bold yellow")
    console.print(tunnel_table(found["tunnels"], console.width))
    for name, tunnel in found["tunnels"].items():
        if not tunnel["attested"]:
            say(f"  {name}: {tunnel['words']}")
    for quota in found["quotas"]:
        say(*_quota(quota))
    for one in found["waiting"][:MOST_SHOWN]:
        say(f"bubble {one['id']} (pid {one['pid']}) is not served, and has no way out")
    console.print(_rest(found["waiting"], "that are not served"), end="")
    if found["listeners"]:
        console.print(_listeners(found))
    for one in found["listeners"]:
        say(f"  {one['name']}: {one['words']}", "yellow")
    if found["bubbles"]:
        console.print(_bubbles(found))
        console.print(_rest(found["bubbles"], "that are served"), end="")
        for worker in found["workers"]:
            say(_worker(worker), "italic dim")
    else:
        say("no bubble; start a program in one: zonegate run -- PROGRAM")


def _login(uid: int) -> str:
    """A user's name; #uid where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _quota(quota: dict[str, Any]) -> tuple[str, str]:
    used, limit = quota["used_bytes"], quota["limit_bytes"]
    what = f"{quota['transfer']} of {quota['destination']} per {quota['per']}, {quota['who']}"
    words = f"quota  {what}: {amounts.size(used)} of {amounts.size(limit)}, until {quota['until']}"
    return words, "bold red" if used >= limit else ""


_WHOLE = ("kind", "state", "proof", "zone", "user", "pid", "enforcement", "login")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, style="", header_style="dim", overflow="fold", no_wrap=column in _WHOLE)
    return table


def tunnel_table(tunnels: dict[str, Any], width: int) -> Table:
    """Tunnels by name, and what is proved of each; where there is little room the peer stands below."""
    wide = width >= WIDE
    table = _table(
        "tunnel",
        "kind",
        "state",
        "gateway" if wide else "gateway, peer",
        *(["peer"] if wide else []),
        "proof",
    )
    for name, tunnel in tunnels.items():
        good = tunnel["attested"]
        age = tunnel["proof_age_s"]
        peer = tunnel["peer"][:19] + "…" if tunnel["peer"] else ""
        table.add_row(
            name,
            tunnel["kind"],
            Text(tunnel["state"], "green" if good else "bold red"),
            *([tunnel["gateway"], peer] if wide else [f"{tunnel['gateway']}\n{peer}".strip()]),
            f"{age:.1f} s ago" if good and age is not None else "",
        )
    return table


def _listeners(found: dict[str, Any]) -> Table:
    table = _table("listener", "kind", "address", "zone", "login", "enforcement")
    for one in found["listeners"]:
        table.add_row(*(one[key] for key in ("name", "kind", "address", "zone", "auth", "enforcement")))
    return table


def _bubbles(found: dict[str, Any]) -> Table:
    table = _table("bubble", "zone", "user", "pid", "enforcement")
    for bubble in found["bubbles"][:MOST_SHOWN]:
        row = [bubble[key] for key in ("id", "zone", "user", "pid", "enforcement")]
        if bubble["attached"]:
            row[0] = f"{bubble['id']} ({bubble['attached']})"
        table.add_row(*map(str, row))
    return table


def _rest(rows: Sequence[object], what: str) -> str:
    """A line about those that are not shown, where there are any."""
    hidden = len(rows) - MOST_SHOWN
    return f"and {hidden} more {what}, see --json\n" if hidden > 0 else ""


def _worker(worker: dict[str, Any]) -> str:
    flows = f"{worker['open_flows']} open, {worker['admitted']} admitted, {worker['refused']} refused"
    if (beside := worker["inspector"]) is not None:
        flows += f"; requests inspected: {beside['admitted']} admitted, {beside['refused']} refused"
    return f"zone {worker['zone']} of {worker['user']}: {flows}"
