"""The carrier: every way in which a flow ends, and what each side sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from loopback import LOOPS, Run, Site, pair, read_all, runner, turns

from proxy.channel import Aborted, Backlog, Channel, PlainChannel, Reset, tls_client, tls_server
from proxy.flow import Because, Budget, Origin, Transfer
from proxy.relay import Counts, End, Ending, Meter, relay

RULE = Because(Origin.GUARD, "no-big-uploads")


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@dataclass
class Carried:
    """A relay at work: the program's end, the destination's end, and what is between."""

    program: PlainChannel
    destination: PlainChannel
    client: PlainChannel
    upstream: PlainChannel
    counts: Counts
    task: asyncio.Task[Ending]


def carry(
    budgets: Sequence[Budget] = (), admitted: Callable[[], bool] = lambda: True, meter: Meter | None = None
) -> Carried:
    program, client = map(PlainChannel, pair())
    upstream, destination = map(PlainChannel, pair())
    counts = Counts()
    work = relay(client, upstream, admitted=admitted, budgets=budgets, counts=counts, meter=meter)
    task = asyncio.create_task(work)
    return Carried(program, destination, client, upstream, counts, task)


async def assert_reset(*channels: Channel) -> None:
    for channel in channels:
        with pytest.raises(Reset):
            await read_all(channel)


def test_a_server_that_answers_after_the_end_of_file(run: Run) -> None:
    async def main() -> None:
        flow = carry()
        await flow.program.write(b"b\nc\na\n")
        await flow.program.write_eof()
        lines = (await read_all(flow.destination)).splitlines()
        await flow.destination.write(b"\n".join(sorted(lines)))
        await flow.destination.write_eof()
        assert await read_all(flow.program) == b"a\nb\nc"
        assert await flow.task == Ending(End.FINISHED)
        assert flow.counts == Counts(uploaded=6, downloaded=5)
        await flow.program.close()
        await flow.destination.close()

    run(main())


def test_a_server_that_ends_first_still_hears_the_client(run: Run) -> None:
    async def main() -> None:
        flow = carry()
        await flow.destination.write(b"banner")
        await flow.destination.write_eof()
        assert await read_all(flow.program) == b"banner"
        await flow.program.write(b"upload")
        await flow.program.write_eof()
        assert await read_all(flow.destination) == b"upload"
        assert await flow.task == Ending(End.FINISHED)
        await flow.program.close()
        await flow.destination.close()

    run(main())


@dataclass(frozen=True)
class Death:
    id: str
    kill: Callable[[Carried], None]
    end: End
    seen_by: Callable[[Carried], tuple[Channel, ...]]


DEATHS = (
    Death("the program resets", lambda f: f.program.abort(), End.CLIENT_RESET, lambda f: (f.destination,)),
    Death(
        "the destination resets",
        lambda f: f.destination.abort(),
        End.UPSTREAM_RESET,
        lambda f: (f.program,),
    ),
    Death(
        "the flow table cuts the client",
        lambda f: f.client.abort(),
        End.CUT,
        lambda f: (f.program, f.destination),
    ),
    Death(
        "the flow table cuts the upstream",
        lambda f: f.upstream.abort(),
        End.CUT,
        lambda f: (f.program, f.destination),
    ),
)


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "busy"])
@pytest.mark.parametrize("case", DEATHS, ids=lambda case: case.id)
def test_a_death_on_one_side_is_a_reset_on_the_other(run: Run, case: Death, idle: bool) -> None:
    async def main() -> None:
        flow = carry()
        writing = None
        if not idle:
            writing = asyncio.create_task(flow.program.write(b"x" * 50_000_000))
        await turns()
        case.kill(flow)
        # A destination that does not read keeps a dead program from being noticed, and nothing passes.
        _, ending = await asyncio.gather(assert_reset(*case.seen_by(flow)), flow.task)
        assert ending.end is case.end
        if writing is not None:
            with pytest.raises((Reset, Aborted)):
                await writing
        flow.program.abort()
        flow.destination.abort()

    run(main())


def test_not_a_byte_passes_once_the_flow_is_not_admitted(run: Run) -> None:
    async def main() -> None:
        leased = True
        flow = carry(admitted=lambda: leased)
        await flow.program.write(b"before")
        assert await flow.destination.read() == b"before"
        leased = False
        await flow.program.write(b"after")
        assert await flow.task == Ending(End.NOT_ADMITTED)
        with pytest.raises(Reset):
            await flow.destination.read()
        await assert_reset(flow.program)

    run(main())


def test_a_lapse_is_noticed_for_the_other_direction_and_for_an_end_of_file(run: Run) -> None:
    async def main() -> None:
        for act in ("bytes", "end"):
            leased = True
            flow = carry(admitted=lambda: leased)  # noqa: B023 (each flow ends within its turn)
            await turns()
            leased = False
            if act == "bytes":
                await flow.destination.write(b"down")
            else:
                await flow.destination.write_eof()
            assert await flow.task == Ending(End.NOT_ADMITTED)
            await assert_reset(flow.program, flow.destination)

    run(main())


def test_a_raising_judge_denies(run: Run) -> None:
    async def main() -> None:
        def judge() -> bool:
            raise LookupError("no such lease")

        flow = carry(admitted=judge)
        await flow.program.write(b"secret")
        ending = await flow.task
        assert ending.end is End.FAULT
        assert isinstance(ending.fault, LookupError)
        await assert_reset(flow.program, flow.destination)

    run(main())


@dataclass(frozen=True)
class Bound:
    id: str
    budgets: tuple[Budget, ...]
    sent: int
    passes: int
    cut: bool


UP, DOWN = Transfer.UPLOAD, Transfer.DOWNLOAD
BOUNDS = (
    Bound("exactly the budget passes", (Budget(UP, 1000, RULE),), 1000, 1000, False),
    Bound("one byte more is cut at the byte", (Budget(UP, 1000, RULE),), 1001, 1000, True),
    Bound("a budget of nothing lets nothing pass", (Budget(UP, 0, RULE),), 1, 0, True),
    Bound("the tightest decides", (Budget(UP, 900, RULE), Budget(UP, 10, RULE)), 11, 10, True),
    Bound("the other direction's does not count", (Budget(DOWN, 10, RULE),), 1000, 1000, False),
    Bound("far more, in many chunks", (Budget(UP, 300_001, RULE),), 2_000_000, 300_001, True),
)


@pytest.mark.parametrize("case", BOUNDS, ids=lambda case: case.id)
def test_budget(run: Run, case: Bound) -> None:
    async def main() -> None:
        flow = carry(case.budgets)
        reading = asyncio.create_task(_count_to_the_end(flow.destination))
        if case.cut:
            writing = asyncio.create_task(flow.program.write(b"x" * case.sent))
            assert await flow.task == Ending(End.BUDGET, RULE)
            await asyncio.wait([writing])
            await assert_reset(flow.program)
            writing.exception()
        else:
            await flow.program.write(b"x" * case.sent)
            await flow.program.write_eof()
            await flow.destination.write_eof()
            assert await flow.task == Ending(End.FINISHED)
            await flow.program.close()
        got, reset = await reading
        # A reset may overtake bytes that were sent; it never lets more through.
        assert got == case.passes if not reset else got <= case.passes
        assert reset is case.cut
        assert flow.counts.uploaded == case.passes
        flow.destination.abort()

    run(main())


async def _count_to_the_end(channel: Channel) -> tuple[int, bool]:
    count = 0
    try:
        while data := await channel.read():
            count += len(data)
    except Reset:
        return count, True
    return count, False


def test_a_reader_that_does_not_read_holds_the_writer_back(run: Run) -> None:
    async def main() -> None:
        flow = carry()
        writing = asyncio.create_task(flow.destination.write(b"x" * 100_000_000))
        last = -1
        while flow.counts.downloaded != last:
            last = flow.counts.downloaded
            await turns(200)
        assert not writing.done()
        assert flow.counts.downloaded < 10_000_000  # kernel buffers and one chunk
        flow.client.abort()
        assert await flow.task == Ending(End.CUT)
        with pytest.raises(Reset):
            await writing
        await assert_reset(flow.program)

    run(main())


def test_a_cancelled_relay_leaves_nothing_open(run: Run) -> None:
    async def main() -> None:
        flow = carry()
        await turns()
        flow.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flow.task
        await assert_reset(flow.program, flow.destination)

    run(main())


def test_a_fault_within_leaves_nothing_open(run: Run) -> None:
    class Broken(PlainChannel):
        async def read(self) -> bytes:
            raise ZeroDivisionError

    async def main() -> None:
        program, ours = pair()
        theirs, destination = pair()
        ending = await relay(
            PlainChannel(ours), Broken(theirs), admitted=lambda: True, budgets=(), counts=Counts()
        )
        assert ending.end is End.FAULT
        assert isinstance(ending.fault, ZeroDivisionError)
        await assert_reset(PlainChannel(program), PlainChannel(destination))

    run(main())


def test_a_truncated_tunnel_is_no_end_of_file_to_the_program(run: Run, site: Site) -> None:
    async def main() -> None:
        program, ours = pair()
        near, far = pair()
        serving = asyncio.create_task(tls_server(far, site.for_server(), 90))
        upstream = await tls_client(near, site.for_client(), "gate.example", {site.server.pin}, 90)
        server = await serving
        task = asyncio.create_task(
            relay(PlainChannel(ours), upstream, admitted=lambda: True, budgets=(), counts=Counts())
        )
        await server.write(b"half")
        far.shutdown(socket.SHUT_WR)
        assert (await task).end is End.UPSTREAM_TRUNCATED
        await assert_reset(PlainChannel(program), server)

    run(main())


async def _stays_unsent(channel: PlainChannel) -> bool:
    """Whether the peer has no room; what it has, and has only not acknowledged yet, it soon does."""
    for _ in range(30):
        if not channel.unsent():
            return False
        await asyncio.sleep(0.01)
    return True


def test_what_came_before_a_truncation_arrives_and_then_the_reset(run: Run, site: Site) -> None:
    """A gateway that ends its TLS without close_notify, as apache2 does: not a byte that it sent is lost."""

    async def main() -> None:
        program, ours = pair()
        near, far = pair()
        serving = asyncio.create_task(tls_server(far, site.for_server(), 90))
        upstream = await tls_client(near, site.for_client(), "gate.example", {site.server.pin}, 90)
        server = await serving
        client, counts = PlainChannel(ours), Counts()
        task = asyncio.create_task(relay(client, upstream, admitted=lambda: True, budgets=(), counts=counts))
        sent = 0
        while not await _stays_unsent(client):  # until some of it waits on our side
            await server.write(b"x" * 16_384)
            sent += 16_384
            while counts.downloaded < sent:
                await asyncio.sleep(0)
        far.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.1)  # without the wait for the program it is all over by then
        reader, got = PlainChannel(program), 0
        with contextlib.suppress(Reset):
            while data := await reader.read():
                got += len(data)
            raise AssertionError("a truncation is no end of file")
        assert got == sent
        assert (await task).end is End.UPSTREAM_TRUNCATED
        server.abort()

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_everything_arrives_through_two_relays_and_tls(run: Run, site: Site, seed: int) -> None:
    """The whole way of a flow: program, relay, TLS, relay, destination; both directions at once."""
    chance = random.Random(seed)
    up, down = (chance.randbytes(chance.randrange(1, 6_000_000)) for _ in range(2))

    async def send(channel: Channel, data: bytes, sizes: random.Random) -> None:
        at = 0
        while at < len(data):
            size = sizes.choice([1, 100, 16_384, 16_385, 300_000])
            await channel.write(data[at : at + size])
            at += size
        await channel.write_eof()

    async def main() -> None:
        backlog = Backlog()
        (program, a), (b, c), (d, destination) = pair(), pair(), pair()
        serving = asyncio.create_task(tls_server(c, site.for_server(), 30, backlog))
        tunnel = await tls_client(b, site.for_client(), "gate.example", {site.server.pin}, 30, backlog)
        counts = Counts(), Counts()
        relays = [
            relay(PlainChannel(a, backlog), tunnel, admitted=lambda: True, budgets=(), counts=counts[0]),
            relay(
                await serving, PlainChannel(d, backlog), admitted=lambda: True, budgets=(), counts=counts[1]
            ),
        ]
        ends = PlainChannel(program), PlainChannel(destination)
        carried = asyncio.gather(*relays)
        sending = asyncio.gather(
            send(ends[0], up, random.Random(seed)), send(ends[1], down, random.Random(seed + 1))
        )
        got_down, got_up = await asyncio.gather(read_all(ends[0]), read_all(ends[1]))
        await sending
        assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
        assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
        assert await carried == [Ending(End.FINISHED)] * 2
        assert counts[0] == counts[1] == Counts(len(up), len(down))
        assert backlog.held_bytes == 0
        for end in ends:
            await end.close()

    run(main())


class _Shared:
    """A bound that is shared: so many bytes in all, and who asks waits a little."""

    def __init__(self, left: int) -> None:
        self.left = left

    async def allow(self, transfer: Transfer, wanted: int) -> int:
        await asyncio.sleep(0)
        allowed = min(self.left, wanted) if transfer is Transfer.UPLOAD else wanted
        self.left -= allowed if transfer is Transfer.UPLOAD else 0
        return allowed

    def because(self, transfer: Transfer) -> Because:
        return RULE


def test_a_quota_ends_a_flow_at_the_byte(run: Run) -> None:
    async def main() -> None:
        meter = _Shared(1_000_000)
        for sent in (600_000, 600_000):
            flow = carry(meter=meter)
            reading = asyncio.create_task(_count_to_the_end(flow.destination))
            writing = asyncio.create_task(flow.program.write(b"x" * sent))
            if meter.left >= sent:
                await writing
                await flow.program.write_eof()
                await flow.destination.write_eof()
                assert await flow.task == Ending(End.FINISHED) and (await reading)[0] == sent
                await flow.program.close()
            else:
                assert await flow.task == Ending(End.QUOTA, RULE)
                await asyncio.wait([writing])
                writing.exception()
                assert (await reading)[0] <= 400_000 and flow.counts.uploaded == 400_000
                await assert_reset(flow.program)
            flow.destination.abort()

    run(main())
