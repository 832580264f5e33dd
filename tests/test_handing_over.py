"""From a worker to its inspector, and what orders to both come to."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from typing import Any

import pytest
from loopback import pair, runner

from proxy import handing_over, ipc
from proxy.channel import PlainChannel
from proxy.flow import NEVER, Flow, Protocol, Refusal
from proxy.handing_over import HandingOver
from proxy.messages.inspection import TakeOver, WantInspector
from proxy.messages.worker import BubbleGone
from proxy.visitor import Visitor

FLOW = Flow(
    zone="corporate",
    user="any",
    groups=frozenset({"b", "a"}),
    port=443,
    at=datetime.now(UTC),
    name="site.example",
    address=NEVER,
    protocol=Protocol.HTTPS,
)
VISITOR = Visitor("b1", "structural")


def test_a_flow_goes_with_its_socket_and_what_was_read() -> None:
    async def main() -> None:
        asked: list[object] = []
        handing = HandingOver(asked.append)
        near, far = pair()
        client = PlainChannel(near)
        client.unread(b" and unread")
        giving = asyncio.create_task(handing(client, FLOW, b"read", VISITOR, "f1"))
        await asyncio.sleep(0)
        assert asked == [WantInspector()]
        ours, theirs = ipc.pair()
        hearing = asyncio.create_task(handing.hear(ours))
        assert await giving is None
        message, fds = ipc.receive(theirs, [TakeOver])
        assert (message.number, message.name, message.port, message.protocol) == (
            "f1", "site.example", 443, "https",
        )  # fmt: skip
        assert (message.user, message.groups, message.address) == ("any", ("a", "b"), "")
        assert ipc.read_file(fds[1]) == b"read and unread"
        with socket.socket(fileno=fds[0]) as given:
            given.sendall(b"hello")
            assert far.recv(10) == b"hello"
        with pytest.raises(ConnectionError):
            await client.write(b"more")  # nothing of it is left here
        assert await handing(PlainChannel(far), FLOW, b"", VISITOR, "f2") is None and len(asked) == 1
        theirs.close()
        await hearing

    runner("asyncio")(main())


def test_that_a_bubble_has_ended_is_said_behind_its_last_flow() -> None:
    async def main() -> None:
        handing = HandingOver(lambda _: None)
        handing.forget("b1")  # nobody is there who could have a flow of it
        ours, theirs = ipc.pair()
        hearing = asyncio.create_task(handing.hear(ours))
        await asyncio.sleep(0)
        near, far = pair()
        assert await handing(PlainChannel(near), FLOW, b"", VISITOR, "f1") is None
        handing.forget("b1")
        _, fds = ipc.receive(theirs, [TakeOver])
        ipc.close_all(fds)
        assert ipc.receive(theirs, [BubbleGone]) == (BubbleGone("b1"), [])
        far.close()
        theirs.close()
        await hearing

    runner("asyncio")(main())


@pytest.mark.parametrize("reason", ["it ended", ""])
def test_without_an_inspector_it_is_refused(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(handing_over, "START_LIMIT_S", 0.05 if not reason else 15.0)
        asked: list[Any] = []
        handing = HandingOver(asked.append)
        near, far = pair()
        client = PlainChannel(near)
        giving = asyncio.create_task(handing(client, FLOW, b"", VISITOR, "f1"))
        await asyncio.sleep(0)
        if reason:
            handing.refused(reason)
        found = await giving
        assert isinstance(found, Refusal) and found.because.id == "no-inspector"
        assert (reason or "does not start") in found.because.text
        await client.write(b"a page")  # the client is still there to be told
        client.abort()
        far.close()

    runner("asyncio")(main())
