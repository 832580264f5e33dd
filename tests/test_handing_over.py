"""From a worker to its inspector, and what orders to both come to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from leased import Clock, unconnected
from loopback import LOOPS, pair, runner

from proxy import handing_over, ipc
from proxy.channel import PlainChannel
from proxy.channel.plain import Channel
from proxy.egress import Grant
from proxy.flow import NEVER, Because, Flow, Judgement, Origin, Protocol, Refusal
from proxy.gate import Inspect
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
JUDGEMENT = Judgement(None, Because(Origin.GATE, "undecided", ""))
ANY: Any = None
INSPECT = Inspect(unconnected(Clock()), Grant(1, "sha256:peer", 0.1), JUDGEMENT, ANY)
BEHIND = replace(INSPECT, addresses=(ip_address("10.1.2.3"), ip_address("fd00::3")))


def test_a_flow_goes_with_its_socket_and_what_was_read() -> None:
    async def main() -> None:
        asked: list[object] = []
        handing = HandingOver(asked.append)
        near, far = pair()
        client = PlainChannel(near)
        client.unread(b" and unread")
        giving = asyncio.create_task(handing(client, FLOW, b"read", VISITOR, "f1", INSPECT))
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
        assert await handing(PlainChannel(far), FLOW, b"", VISITOR, "f2", INSPECT) is None and len(asked) == 1
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
        assert await handing(PlainChannel(near), FLOW, b"", VISITOR, "f1", INSPECT) is None
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
        giving = asyncio.create_task(handing(client, FLOW, b"", VISITOR, "f1", INSPECT))
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


def test_judged_addresses_go_with_it_and_the_tunnel_that_they_are_behind() -> None:
    async def main() -> None:
        handing = HandingOver(lambda _: None)
        ours, theirs = ipc.pair()
        hearing = asyncio.create_task(handing.hear(ours))
        await asyncio.sleep(0)
        for answer, addresses, tunnel in ((BEHIND, ("10.1.2.3", "fd00::3"), "hq"), (INSPECT, (), "")):
            near, far = pair()
            assert await handing(PlainChannel(near), FLOW, b"", VISITOR, "f1", answer) is None
            message, fds = ipc.receive(theirs, [TakeOver])
            assert (message.addresses, message.tunnel) == (addresses, tunnel)
            ipc.close_all(fds)
            far.close()
        theirs.close()
        await hearing

    runner("asyncio")(main())


class Within:
    """A client whose bytes are not its socket's: what is read of it was unpacked here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


async def carried(end: Callable[[PlainChannel, socket.socket], Awaitable[None]]) -> None:
    """A client that cannot be given away, the inspector's end of it, and the client's own."""
    handing = HandingOver(lambda _: None)
    ours, theirs = ipc.pair()
    hearing = asyncio.create_task(handing.hear(ours))
    await asyncio.sleep(0)
    near, far = pair()
    client: Any = Within(PlainChannel(near))
    giving = asyncio.create_task(handing(client, FLOW, b"read", VISITOR, "f1", INSPECT))
    await asyncio.sleep(0)
    _, fds = ipc.receive(theirs, [TakeOver])
    assert ipc.read_file(fds[1]) == b"read"
    inspector = PlainChannel(socket.socket(fileno=fds[0]))
    far.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(far, b"a request")
    assert await inspector.read() == b"a request"
    await inspector.write(b"an answer")
    assert await loop.sock_recv(far, 99) == b"an answer"
    await end(inspector, far)
    async with asyncio.timeout(60):
        assert await giving is None
    inspector.abort()
    far.close()
    theirs.close()
    await hearing


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_cannot_be_given_away_is_carried(loop: str) -> None:
    async def finish(inspector: PlainChannel, far: socket.socket) -> None:
        await inspector.write_eof()
        assert await asyncio.get_running_loop().sock_recv(far, 99) == b""
        far.close()
        assert await inspector.read() == b""

    runner(loop)(carried(finish))


@pytest.mark.parametrize("loop", LOOPS)
def test_what_an_inspector_cuts_is_no_end_of_file(loop: str) -> None:
    """Also where it has read everything: the client is reset."""

    async def cut(inspector: PlainChannel, far: socket.socket) -> None:
        inspector.abort()
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(far, 99)

    runner(loop)(carried(cut))
