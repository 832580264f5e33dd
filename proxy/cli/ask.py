"""Asking the daemon: one question, one answer."""

from __future__ import annotations

import json
import os
from typing import Any

from proxy import ipc
from proxy.cli.errors import fail
from proxy.messages.admin import Answer, Ask, Denied, Stop
from proxy.paths import admin_sockets
from proxy.run import RunError, connect


def ask(question: Ask | Stop) -> str:
    """The text of the daemon's answer; ends the command with one line if there is none."""
    accepted: list[type[Answer | Denied]] = [Answer, Denied]
    try:
        link = connect(admin_sockets(os.getuid(), os.environ))
        with link:
            ipc.send(link, question)
            answer, fds = ipc.receive(link, accepted)
            ipc.close_all(fds)
    except RunError as error:
        fail(str(error))
    except ipc.LinkBroken as error:
        fail(f"the daemon went away: {error}")
    if isinstance(answer, Denied):
        fail(answer.reason)
    return answer.text


def ask_json(what: str, **parameters: Any) -> dict[str, Any]:
    """The daemon's answer to a question with parameters."""
    found = json.loads(ask(Ask(what, json.dumps(parameters))))
    if not isinstance(found, dict):
        fail("the daemon's answer is not one")
    if "error" in found:
        fail(str(found["error"]))
    return found
