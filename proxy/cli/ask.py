"""Asking the daemon and telling it: each question has one answer."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from proxy import ipc, pieces
from proxy.cli.errors import fail
from proxy.messages.admin import Ask, Denied, Order, Stop
from proxy.paths import admin_sockets
from proxy.run import RunError, connect

ORDER_LIMIT_S = 120.0  # a policy that is compiled beside a busy worker takes its time


def ask(question: Ask | Order | Stop, otherwise: Callable[[], None] = lambda: None) -> str:
    """The text of the daemon's answer; ends the command with one line if there is none.

    Where no daemon listens, `otherwise` may say more first.
    """
    try:
        with connect(admin_sockets(os.getuid(), os.environ)) as link:
            link.settimeout(ORDER_LIMIT_S if isinstance(question, Order) else link.gettimeout())
            return _say(link, question)
    except RunError as error:
        otherwise()
        fail(str(error))


def ask_json(what: str, **parameters: Any) -> dict[str, Any]:
    """The daemon's answer to a question with parameters."""
    return value_of(ask(Ask(what, json.dumps(parameters))))


def order(what: str, **parameters: Any) -> dict[str, Any]:
    """What the daemon did."""
    return value_of(ask(Order(what, json.dumps(parameters))))


def ask_pages(what: str) -> Iterator[dict[str, Any]]:
    """Every page of an answer that is longer than a message; `next` of one is the `after` of the other."""
    try:
        with connect(admin_sockets(os.getuid(), os.environ)) as link:
            after: Any = None
            while True:
                page = value_of(_say(link, Ask(what, json.dumps({"after": after}))))
                yield page
                after = page["next"]
                if after is None:
                    return
    except RunError as error:
        fail(str(error))


def _say(link: socket.socket, question: Ask | Order | Stop) -> str:
    try:
        ipc.send(link, question)
        answer = pieces.receive(link)
    except ipc.LinkBroken as error:
        fail(f"the daemon went away: {error}")
    if isinstance(answer, Denied):
        fail(answer.reason)
    return answer.text


def value_of(text: str) -> dict[str, Any]:
    """An answer; ends the command with one line where it says what is wrong."""
    found = json.loads(text)
    if not isinstance(found, dict):
        fail("the daemon's answer is not one")
    if "error" in found:
        fail(str(found["error"]))
    return found
