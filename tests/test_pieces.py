"""Answers of any length reach the command that asked."""

from __future__ import annotations

import asyncio
import json
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from proxy import commands, ipc, pieces
from proxy.admin import Peer
from proxy.cli import flows, status
from proxy.link import Link
from proxy.messages.admin import TO_SUPERVISOR, Answer, AnswerPart, Ask, Denied, ToSupervisor
from proxy.supervisor import Supervisor

EXTREMES = st.sampled_from(["", "x", '"', "\0", "\u00fc", "\U0001f600"])


@given(EXTREMES, st.integers(0, 3), st.integers(-1, 1))
def test_every_piece_is_a_message_and_together_they_are_the_answer(one: str, many: int, more: int) -> None:
    text = one * max(0, many * pieces.PIECE_CHARACTERS + more)
    messages = list(pieces.cut(Answer(text)))
    assert "".join(message.text for message in messages if not isinstance(message, Denied)) == text
    assert [type(message) for message in messages] == [AnswerPart] * (len(messages) - 1) + [Answer]
    assert all(len(ipc.encode(message)) <= ipc.MAX_MESSAGE_BYTES for message in messages)


def test_a_short_answer_and_a_refusal_are_one_message() -> None:
    for message in (Answer("short"), Denied("no")):
        assert list(pieces.cut(message)) == [message]


def test_a_long_answer_of_the_daemon_reaches_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps([f'"{number}"' for number in range(40_000)])

    async def answer(*_: object) -> Answer:
        return Answer(text)

    async def main() -> None:
        monkeypatch.setattr(commands, "answer", answer)
        ours, theirs = ipc.pair()
        link: Link[ToSupervisor] = Link(ours, TO_SUPERVISOR)
        supervisor: Any = object()
        serving = asyncio.create_task(Supervisor._serve(supervisor, Peer(link, 1, 0, 0)))
        for _ in range(2):
            ipc.send(theirs, Ask("status", "{}"))
            assert await asyncio.to_thread(pieces.receive, theirs) == Answer(text)
        theirs.close()
        with pytest.raises(ipc.LinkBroken):
            await serving

    asyncio.run(main())


# -- and people can read it --------------------------------------------------------------------------


def test_a_thousand_bubbles_fit_a_screen_and_are_counted() -> None:
    bubble = {"zone": "corporate", "user": "ana", "pid": 1, "enforcement": "structural", "attached": ""}
    worker = {"zone": "corporate", "open_flows": 1, "admitted": 2, "refused": 3, "inspector": None}
    found = {
        "policy": {"name": "p", "hash": "0" * 64},
        "reload": {"loaded_at": "now", "failed": None},
        "enforcement": "structural",
        **{key: [] for key in ("locks", "trouble", "warnings", "quotas", "listeners")},
        "tunnels": {},
        "waiting": [{"id": f"w{number}", "pid": 1} for number in range(60)],
        "bubbles": [{**bubble, "id": f"b{number}"} for number in range(1000)],
        "workers": [{**worker, "user": user} for user in ("ana", "ben")],
    }
    console = Console(record=True, width=100, file=StringIO())
    status.show(found, console)
    lines = console.export_text().splitlines()
    assert len(lines) < 120
    assert "and 950 more that are served, see --json" in lines
    assert "and 10 more that are not served, see --json" in lines
    assert [line for line in lines if " open, " in line] == [
        f"zone corporate of {user}: 1 open, 2 admitted, 3 refused" for user in ("ana", "ben")
    ]


def table(width: int, count: int, most: int | None) -> list[str]:
    """Flows, as a terminal of so many columns shows them."""
    row = {
        "user": "ana", "zone": "corporate", "destination": "a.example:443", "tunnel": "hq", "protocol": "tls",
        "age_s": 10.0, "bytes_up": 0, "bytes_down": 1024, "because": "rule any",
    }  # fmt: skip
    rows = [{**row, "id": f"f{number}"} for number in range(count)]
    console = Console(record=True, width=width, file=StringIO())
    console.print(flows.shown(rows, {}, width, most))
    return console.export_text().splitlines()


def test_ten_thousand_flows_are_summed_up_for_people() -> None:
    lines = table(100, 10_000, flows.MOST_SHOWN)
    assert len(lines) < flows.MOST_SHOWN + 5
    assert "10000 flows" in lines[-1] and "9800 slower ones are not shown" in lines[-1]


def test_a_narrow_terminal_shows_reasons_too() -> None:
    heading, flow, reason, summary = table(80, 1, 10)
    assert "why" not in heading and "a.example:443" in flow
    assert reason.split() == ["10", "s", "hq", "tls,", "rule", "any"]
    assert flow.index("a.example") == reason.index("hq tls") and summary.startswith("1 flow")
    assert len(table(80, 100, 10)) == 1 + 10 + 1, "no more lines than there is room for"
    assert table(100, 1, 10)[1].rstrip().endswith("rule any")


def test_a_destination_without_room_keeps_its_domain_and_port() -> None:
    row = {
        "id": "909777-12345", "user": "a.contractor.with.a.long.name", "zone": "corporate", "tunnel": "hq",
        "destination": f"{'x' * 70}.corp.example:443", "protocol": "tls", "age_s": 7900.0,
        "bytes_up": 1 << 40, "bytes_down": 1 << 40, "because": "rule any",
    }  # fmt: skip
    for width, least in ((80, "p.example:443"), (60, ":443"), (120, "p.example:443")):
        console = Console(record=True, width=width, file=StringIO())
        console.print(flows.shown([row], {}, width))
        flow = console.export_text().splitlines()[1]
        assert f"{least} " in flow and "…" in flow and (width < 80 or flow.startswith("909777-12345 ")), flow
