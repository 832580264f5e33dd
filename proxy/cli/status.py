"""`zonegate status`: what is up, what is proved, and who is inside."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.cli.ask import ask_json


@click.command("status", short_help="what is up, what is proved, who is inside")
@click.option("--json", "as_json", is_flag=True, help="The whole answer, for programs.")
def command(as_json: bool) -> None:
    """Show tunnels and what is proved of them, zones, bubbles, and what is wrong.

    Exit code 0 when every tunnel is attested and records can be written, else 1.
    """
    found = ask_json("status")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found, Console(highlight=False, soft_wrap=True))
    well = all(tunnel["attested"] for tunnel in found["tunnels"].values()) and not found["trouble"]
    sys.exit(0 if well else 1)


def show(found: dict[str, Any], console: Console) -> None:
    """Print a status for people."""
    policy = found["policy"]
    console.print(f"policy       {policy['name']} ({policy['hash'][:12]})")
    console.print(f"enforcement  {found['enforcement']}")
    if found["enforcement"] != "structural":
        console.print(Text("             programs can go around this gate", "bold red"))
    for trouble in found["trouble"]:
        console.print(Text(f"new flows are denied: {trouble}", "bold red"))
    for warning in found["warnings"]:
        console.print(Text(warning, "bold yellow"))
    console.print(_tunnels(found))
    for name, tunnel in found["tunnels"].items():
        if not tunnel["attested"]:
            console.print(f"  {name}: {tunnel['words']}")
    if found["bubbles"]:
        console.print(_bubbles(found))
    else:
        console.print("no bubble; start a program in one: zonegate run -- PROGRAM")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, style="", header_style="dim", overflow="fold")
    return table


def _tunnels(found: dict[str, Any]) -> Table:
    table = _table("tunnel", "state", "gateway", "peer", "proof")
    for name, tunnel in found["tunnels"].items():
        good = tunnel["attested"]
        age = tunnel["proof_age_s"]
        table.add_row(
            name,
            Text(tunnel["state"], "green" if good else "bold red"),
            tunnel["gateway"],
            tunnel["peer"][:19] + "…" if tunnel["peer"] else "",
            f"{age:.1f} s ago" if good and age is not None else "",
        )
    return table


def _bubbles(found: dict[str, Any]) -> Table:
    table = _table("bubble", "zone", "user", "pid", "enforcement")
    for bubble in found["bubbles"]:
        row = (bubble[key] for key in ("id", "zone", "user", "pid", "enforcement"))
        table.add_row(*map(str, row))
    for worker in found["workers"]:
        flows = f"{worker['open_flows']} open, {worker['admitted']} admitted, {worker['refused']} refused"
        table.caption = f"zone {worker['zone']}: {flows}"
        table.caption_justify = "left"
    return table
