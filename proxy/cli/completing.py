"""Words for the shell's completion that only a daemon knows. One that does not answer at once has none."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import click
from click.shell_completion import CompletionItem

LIMIT_S = 0.5


def zones(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The zones of the site."""
    return _items(
        {name: f"through {', '.join(zone['tunnels'])}" for name, zone in _told("status", "zones")}, begun
    )


def tunnels(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The tunnels of the site."""
    return _items({name: tunnel["state"] for name, tunnel in _told("status", "tunnels")}, begun)


def flows(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The oldest open flows."""
    return _items({flow["id"]: flow["destination"] for flow in _told("flows", "flows")}, begun)


def users(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Who is inside."""
    return _items({bubble["user"]: "" for bubble in _told("status", "bubbles")}, begun)


def _items(words: dict[str, str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(word, help=more) for word, more in words.items() if word.startswith(begun)]


def _told(what: str, part: str) -> Any:
    """A part of the daemon's answer: pairs of a table, or a list; nothing without one."""
    from proxy import ipc, pieces
    from proxy.messages.admin import Answer, Ask
    from proxy.paths import admin_sockets
    from proxy.run import RunError, connect

    with contextlib.suppress(RunError, ipc.LinkBroken, OSError, ValueError, KeyError):
        with connect(admin_sockets(os.getuid(), os.environ), LIMIT_S) as link:
            ipc.send(link, Ask(what, "{}"))
            answer = pieces.receive(link)
        found = json.loads(answer.text)[part] if isinstance(answer, Answer) else []
        return list(found.items()) if isinstance(found, dict) else found
    return []
