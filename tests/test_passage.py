"""The way of one flow, with real sockets, a real gateway and real records: what is judged, recorded, dialled,
carried and shown, in that order."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from corporate_end import destination, echo
from first_words import hello, request
from leased import Leased, leased
from loopback import LOOPS, Run, Site, pair, read_all, runner

from proxy import hearing
from proxy.audit import AuditUnwritable, EndRecord, Record, Segment, Tally, VerdictRecord, decode
from proxy.channel import PlainChannel, Reset, lingering
from proxy.flow import NEVER, Flow, Protocol, Verdict
from proxy.flow_table import FlowTable
from proxy.gate import Admission, Gate, gate_refusal
from proxy.passage import Passage
from proxy.policy import load
from proxy.policy.model import Quota
from proxy.purse import Accounts, Got
from proxy.visitor import Visitor

POLICY = b"""
policy: 1
name: passage
define:
  zones: [corporate]
  destinations: {site: [site.example], literal: [127.0.0.0/8], nowhere: [wan.example]}
  windows: {work: ["mon-fri 08:00-18:00"]}
guards:
  - {id: no-blocked, match: {to: [b.example]}, at_most: block, because: it is closed}
rules:
  - {id: web, match: {to: site, protocol: [http, https], user: web}, verdict: tunnel}
  - {id: code, match: {to: site, protocol: ssh, user: code}, verdict: tunnel}
  - {id: any, match: {to: [site, literal, nowhere], user: any}, verdict: tunnel}
  - {id: timed, match: {to: site, window: work, user: timed}, verdict: tunnel}
"""
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
VISITOR = Visitor("0-0123456789ab", "structural")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


class World:
    """A passage through a real tunnel, the destination behind it, and what was written down."""

    def __init__(self, tunnel: Leased, port: int, records: Path) -> None:
        self.tunnel, self.port, self._file = tunnel, port, records
        self.now = NOON
        self.gate = Gate(load(POLICY, "passage.policy.yaml"), (tunnel.egress,))
        self.table = FlowTable(100)
        self.was_reset = False
        fd = os.open(records, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.segment = Segment(fd, max_bytes=1 << 20)
        numbers = map("f{}".format, itertools.count(1))
        self.passage = Passage(self.gate, self.table, self.segment, lambda: self.now, lambda: next(numbers))

    def flow(self, user: str = "any", **changes: Any) -> Flow:
        made = Flow(
            zone="corporate", user=user, port=self.port, at=self.now, name="site.example", address=NEVER
        )
        return replace(made, **changes)

    def enter(self, flow: Flow) -> tuple[PlainChannel, asyncio.Task[None]]:
        """The program's end of a new connection, and its passage."""
        near, far = pair()
        task = asyncio.create_task(self.passage.pass_through(PlainChannel(near), flow, VISITOR))
        return PlainChannel(far), task

    async def say(self, flow: Flow, *pieces: bytes, end: bool = True) -> bytes:
        """What a program that says this reads to the end; `was_reset` says whether that end was a reset."""
        program, task = self.enter(flow)
        heard = b""
        try:
            for piece in pieces:
                await program.write(piece)
            if end:
                await program.write_eof()
            heard = await read_all(program)
        except Reset:
            self.was_reset = True
        finally:
            program.abort()
            await task
        return heard

    def records(self) -> list[Record]:
        return [decode(line) for line in self._file.read_bytes().splitlines()]

    def verdict(self) -> VerdictRecord:
        """The one verdict that there is."""
        (found,) = [record for record in self.records() if isinstance(record, VerdictRecord)]
        return found

    def end(self) -> EndRecord:
        """The one end that there is."""
        (found,) = [record for record in self.records() if isinstance(record, EndRecord)]
        return found


@pytest.fixture
def world(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @asynccontextmanager
    async def make(port_means: Protocol | None = None, serve: Any = echo) -> AsyncIterator[World]:
        async with leased(site, tmp_path) as tunnel, destination(serve) as port:
            monkeypatch.setattr(hearing, "BY_PORT", {port: port_means} if port_means else {})
            there = World(tunnel, port, tmp_path / "records")
            try:
                yield there
            finally:
                there.segment.close()

    return make


type Make = Callable[..., Any]

# -- carried -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carried:
    sentence: str
    user: str
    says: bytes
    protocol: Protocol
    port_means: Protocol | None = None

    def __str__(self) -> str:
        return self.sentence


CARRIED = [
    Carried("a request that was waited for", "web", request(), Protocol.HTTP, Protocol.HTTP),
    Carried("a request on another port", "web", request(), Protocol.HTTP),
    Carried("a TLS hello that was waited for", "web", hello(), Protocol.HTTPS, Protocol.HTTPS),
    Carried("ssh on the word of its port", "code", b"SSH-2.0-x\r\n", Protocol.SSH, Protocol.SSH),
    Carried("ssh on another port, when it shows itself", "code", b"SSH-2.0-x\r\n", Protocol.SSH),
    Carried("any bytes where the rule asks for no protocol", "any", b"\0\1\2", Protocol.TCP),
    Carried("nothing at all, which is a flow too", "any", b"", Protocol.TCP),
]


@pytest.mark.parametrize("case", CARRIED, ids=str)
def test_what_is_admitted_is_carried_whole_and_recorded_twice(run: Run, world: Make, case: Carried) -> None:
    async def main() -> None:
        async with world(case.port_means) as there:
            assert await there.say(there.flow(case.user), case.says) == case.says
            verdict, end = there.verdict(), there.end()
            assert (verdict.verdict, verdict.tunnel, verdict.enforcement) == (
                Verdict.TUNNEL,
                "hq",
                "structural",
            )
            assert (verdict.name, verdict.address, verdict.port) == ("site.example", None, there.port)
            assert (verdict.protocol, verdict.flow, verdict.bubble) == (case.protocol, "f1", VISITOR.bubble)
            assert (verdict.peer, verdict.proof_age_s) == (there.tunnel.end.site.server.pin, 0.0)
            assert (end.of, end.why) == (verdict, "finished by both ends")
            assert (end.bytes_up, end.bytes_down) == (len(case.says), len(case.says))
            tallies = there.passage.recorder.tallies
            assert (tallies.admitted, tallies.refused) == (1, 0)
            assert (tallies.bytes_up, tallies.bytes_down) == (len(case.says), len(case.says))
            assert len(there.table) == 0

    run(main())


def test_what_was_read_to_judge_comes_first_and_once(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            whole = request() + b"x" * 300_000
            pieces = [whole[at : at + 7] for at in range(0, 70, 7)]
            assert await there.say(there.flow("web"), *pieces, whole[70:]) == whole

    run(main())


def test_a_server_that_speaks_first_is_heard_before_the_client_says_a_word(run: Run, world: Make) -> None:
    async def greet(channel: PlainChannel) -> None:
        await channel.write(b"SSH-2.0-server\r\n")
        await echo(channel)

    async def main() -> None:
        async with world(Protocol.SSH, greet) as there:
            program, task = there.enter(there.flow("code"))
            assert await program.read() == b"SSH-2.0-server\r\n"
            await program.write(b"SSH-2.0-client\r\n")
            assert await program.read() == b"SSH-2.0-client\r\n"
            await program.write_eof()
            assert await program.read() == b""
            await task
            program.abort()
            assert there.end().why == "finished by both ends"

    run(main())


def test_a_literal_address_is_dialled_and_recorded_as_one(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world() as there:
            literal = there.flow(name=NEVER, address=ip_address("127.0.0.1"))
            assert await there.say(literal, b"hello") == b"hello"
            assert (there.verdict().name, there.verdict().address) == (None, ip_address("127.0.0.1"))

    run(main())


# -- refused -----------------------------------------------------------------------------------------

PAGE = b"HTTP/1.1 403 Forbidden\r\n"
ODD = b"HTTP/1.1 400 Bad Request\r\n"
AWAY = b"HTTP/1.1 503 Service Unavailable\r\n"
ALERT = bytes.fromhex("15030300020231")
RESET = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """`shown` is how the answer begins, and empty for a reset."""

    sentence: str
    user: str
    says: bytes
    shown: bytes
    because: str
    port_means: Protocol | None = None
    name: str = "site.example"

    def __str__(self) -> str:
        return self.sentence


TWO_HOSTS = request("site.example", "Host: e.example")
HTTP, HTTPS, SSH = Protocol.HTTP, Protocol.HTTPS, Protocol.SSH
REFUSED = [
    Refused("a request sees a page", "nobody", request(), PAGE, "default", HTTP),
    Refused("a guard is named", "any", request("b.example"), PAGE, "no-blocked", HTTP, "b.example"),
    Refused("a TLS client sees an alert", "nobody", hello(), ALERT, "default", HTTPS),
    Refused("anything else is reset", "nobody", b"\0\1\2", RESET, "default", HTTP),
    Refused("where nothing can be shown it is reset at once", "nobody", request(), RESET, "default", SSH),
    Refused("a request on a port of no protocol sees a page too", "nobody", request(), PAGE, "default"),
    Refused("a TLS client on such a port sees an alert", "nobody", hello(), ALERT, "default"),
    Refused("a request for another name", "web", request("evil.example"), PAGE, "names-disagree", HTTP),
    Refused("a hello for another name", "web", hello("evil.example"), ALERT, "names-disagree", HTTPS),
    Refused("a request with two hosts", "web", TWO_HOSTS, ODD, "malformed", HTTP),
    Refused("a request without an end", "web", request()[:-2], ODD, "malformed", HTTP),
    Refused("what is another protocol than the rule's", "web", b"SSH-2.0-x\r\n", RESET, "default", HTTP),
    Refused("what says nothing where its protocol counts", "web", b"", RESET, "no-first-bytes", HTTP),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_refused_is_recorded_and_shown_and_never_dialled(
    run: Run, world: Make, case: Refused
) -> None:
    async def main() -> None:
        async with world(case.port_means) as there:
            shown = await there.say(there.flow(case.user, name=case.name), case.says)
            assert shown.startswith(case.shown) and bool(shown) is bool(case.shown)
            assert there.was_reset is not bool(case.shown), "an end of file would look like an empty answer"
            if shown.startswith(b"HTTP"):
                assert b"f1" in shown, "the reference to the record"
                assert case.because.encode() in shown
            verdict = there.verdict()
            assert (verdict.verdict, verdict.because.id) == (Verdict.BLOCK, case.because)
            assert (verdict.tunnel, verdict.peer) == (None, None)
            assert len(there.records()) == 1
            assert (there.tunnel.holder.dials, there.passage.recorder.tallies.refused) == (0, 1)

    run(main())


def test_a_refusal_reaches_a_client_that_goes_on_sending(run: Run, world: Make) -> None:
    """An answer that is followed by a reset is lost where the client had not read it yet."""

    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            body = request("site.example", "Content-Length: 900000").replace(b"GET", b"POST") + b"x" * 900_000
            assert (await there.say(there.flow("nobody"), body)).startswith(PAGE)

    run(main())


def test_a_client_that_never_ends_does_not_keep_its_refusal_open(
    run: Run, world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.05)

    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            assert (await there.say(there.flow("nobody"), request(), end=False)).startswith(PAGE)

    run(main())


def test_a_silent_client_is_not_waited_for_for_ever(
    run: Run, world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "FIRST_BYTES_LIMIT_S", 0.05)

    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            assert await there.say(there.flow("web"), end=False) == b""
            assert there.verdict().because.id == "no-first-bytes"

    run(main())


def test_who_may_be_waiting_for_the_server_is_not_kept_waiting_for_a_refusal(
    run: Run, world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "FIRST_BYTES_LIMIT_S", 3600)
    monkeypatch.setattr(hearing, "UNKNOWN_PORT_LIMIT_S", 0.01)

    async def main() -> None:
        async with world() as there:
            assert await there.say(there.flow("nobody"), end=False) == b""
            assert there.verdict().because.id == "default"

    run(main())


def test_what_was_refused_before_the_gate_was_asked_is_shown_and_recorded(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            near, far = pair()
            program = PlainChannel(far)
            refusal = gate_refusal("own-address", "it is the gate's own")
            task = asyncio.create_task(
                there.passage.refuse(PlainChannel(near), there.flow(), refusal, VISITOR)
            )
            await program.write(request())
            await program.write_eof()
            assert (await read_all(program)).startswith(PAGE)
            await task
            assert there.verdict().because == refusal.because
            program.abort()

    run(main())


def test_a_client_that_has_gone_raises_nothing(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            for user in ("web", "nobody"):
                program, task = there.enter(there.flow(user))
                await program.write(b"GET")
                program.abort()
                await task
                near, far = pair()
                far.close()
                refusal = gate_refusal("own-address", "it is the gate's own")
                await there.passage.refuse(PlainChannel(near), there.flow(user), refusal, VISITOR)

    run(main())


# -- no record, no flow ------------------------------------------------------------------------------


class Unwritable(Tally):
    """Records of a disk that is full."""

    def verdict(self, record: VerdictRecord) -> None:
        raise AuditUnwritable("the disk is full")

    def end(self, record: EndRecord) -> None:
        raise AuditUnwritable("the disk is full")


def test_without_a_record_there_is_no_flow_and_it_is_said(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            there.passage.recorder.records = Unwritable()
            shown = await there.say(there.flow("web"), request())
            assert shown.startswith(AWAY) and b"nothing can be recorded: the disk is full" in shown
            assert there.tunnel.holder.dials == 0
            assert (there.passage.recorder.tallies.admitted, there.passage.recorder.tallies.refused) == (0, 1)

    run(main())


def test_the_verdict_is_on_the_disk_before_anything_is_dialled(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            written: list[int] = []

            async def before() -> None:
                written.append(len(there.records()))

            there.tunnel.holder.before = before
            await there.say(there.flow("web"), request())
            assert written[0] == 1

    run(main())


def test_a_refusal_is_a_refusal_also_when_it_cannot_be_recorded(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            there.passage.recorder.records = Unwritable()
            assert (await there.say(there.flow("nobody"), request())).startswith(PAGE)

    run(main())


def test_an_end_that_cannot_be_recorded_cuts_nothing(run: Run, world: Make) -> None:
    class NoEnds(Tally):
        def end(self, record: EndRecord) -> None:
            raise AuditUnwritable("the disk is full")

    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            there.passage.recorder.records = NoEnds()
            assert await there.say(there.flow("web"), request()) == request()

    run(main())


# -- what cannot be dialled --------------------------------------------------------------------------


def test_a_destination_that_the_gateway_refuses_is_told_in_its_words(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            shown = await there.say(there.flow(name="wan.example"), request("wan.example"))
            assert shown.startswith(PAGE) and b"the gateway answered 403" in shown
            assert there.end().why.startswith("could not be dialled: the gateway answered 403")
            assert there.verdict().verdict is Verdict.TUNNEL

    run(main())


def test_a_tunnel_that_does_not_carry_is_told_with_what_to_do(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            there.tunnel.holder.trouble = "gw.example:8443 cannot be reached"
            shown = await there.say(there.flow(), request())
            assert shown.startswith(AWAY) and b"cannot be reached" in shown and b"zonegate status" in shown

    run(main())


# -- what changes while a flow is dialled ------------------------------------------------------------

CHANGED = "no longer admitted when it was dialled"


def lapse(there: World) -> None:
    there.tunnel.clock.ns += 3_000_000_000


def close_and_prove_again(there: World) -> None:
    lapse(there)
    there.tunnel.lease()


def forbid(there: World) -> None:
    there.gate.policy = load(
        POLICY.replace(b"id: timed, match: {to: site", b"id: timed, match: {to: nowhere"), "p"
    )


def reword(there: World) -> None:
    there.gate.policy = load(POLICY + b"# the same, in another version\n", "p")


def evening(there: World) -> None:
    there.now = NOON.replace(hour=18)


def yesterday_evening(there: World) -> None:
    there.now = NOON.replace(day=4, hour=18)


@dataclass(frozen=True, slots=True)
class Change:
    sentence: str
    happens: Callable[[World], None]
    lost: bool

    def __str__(self) -> str:
        return self.sentence


CHANGES = [
    Change("the lease has lapsed", lapse, True),
    Change("the lease has lapsed and there is another", close_and_prove_again, True),
    Change("a new policy does not admit it", forbid, True),
    Change("a new policy admits it too", reword, False),
    Change("its time is over, by the same policy", evening, True),
    Change("the clock is set back to before its time", yesterday_evening, True),
]


@pytest.mark.parametrize("case", CHANGES, ids=str)
def test_what_changes_between_the_judgement_and_the_first_byte(run: Run, world: Make, case: Change) -> None:
    got: list[bytes] = []

    async def listen(channel: PlainChannel) -> None:
        while data := await channel.read():
            got.append(data)
            await channel.write(data)
        await channel.write_eof()
        await channel.close()

    async def main() -> None:
        async with world(serve=listen) as there:

            async def before() -> None:
                case.happens(there)

            there.tunnel.holder.before = before
            heard = await there.say(there.flow("timed"), b"secret")
            assert (heard, there.was_reset) == (b"" if case.lost else b"secret", case.lost)
            assert got == ([] if case.lost else [b"secret"])
            assert there.end().why == (CHANGED if case.lost else "finished by both ends")
            assert there.passage.recorder.tallies.admitted == (0 if case.lost else 1)

    run(main())


# -- cut ---------------------------------------------------------------------------------------------


def test_no_byte_passes_once_the_lease_has_lapsed(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world() as there:
            program, task = there.enter(there.flow())
            await program.write(b"before")
            assert await program.read() == b"before"
            lapse(there)
            await program.write(b"after")
            with pytest.raises(Reset):
                await program.read()
            await task
            assert there.end().why == "no longer admitted"
            assert there.end().bytes_down == len(b"before")

    run(main())


def test_a_flow_that_is_cut_from_the_table_is_reset_and_says_why(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world() as there:
            program, task = there.enter(there.flow())
            await program.write(b"before")
            assert await program.read() == b"before"
            assert there.table.of_bubble(VISITOR.bubble) == 1
            assert there.table.cut(lambda flow: flow.tunnel == "hq", "tunnel hq lost") == 1
            with pytest.raises(Reset):
                await program.read()
            await task
            assert there.end().why == "cut by the gate: tunnel hq lost"
            assert len(there.table) == 0

    run(main())


@pytest.mark.parametrize("when", ["while it is dialled", "while it is carried"])
def test_a_bubble_that_ends_ends_its_flow_with_a_record(run: Run, world: Make, when: str) -> None:
    async def main() -> None:
        async with world() as there:
            if when == "while it is dialled":
                dialling, never = asyncio.Event(), asyncio.Event()

                async def before() -> None:
                    dialling.set()
                    await never.wait()

                there.tunnel.holder.before = before
            program, task = there.enter(there.flow())
            if when == "while it is dialled":
                await dialling.wait()
            else:
                await program.write(b"x")
                await program.read()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Reset):
                await program.read()
            assert there.end().why.startswith("cut by the gate")
            assert len(there.table) == 0
            if when == "while it is dialled":
                never.set()

    run(main())


SSH_HELLO = b"SSH-2.0-x\r\n"


@dataclass(frozen=True, slots=True)
class FirstWords:
    sentence: str
    user: str
    port_means: Protocol | None
    client: bytes
    server: bytes
    why: str

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        FirstWords("a client on the port of ssh that is none", "code", SSH, request(), SSH_HELLO, "client"),
        FirstWords(
            "a server on the port of ssh that is none", "code", SSH, SSH_HELLO, b"220 hi\r\n", "server"
        ),
        FirstWords(
            "another name where any protocol goes", "any", None, request("e.example"), b"", "e.example"
        ),
    ],
    ids=str,
)
def test_first_words_that_disprove_the_flow_reach_nobody(run: Run, world: Make, case: FirstWords) -> None:
    got: list[bytes] = []

    async def serve(channel: PlainChannel) -> None:
        if case.server:
            await channel.write(case.server)
        while data := await channel.read():
            got.append(data)

    async def main() -> None:
        async with world(case.port_means, serve) as there:
            heard = await there.say(there.flow(case.user), case.client)
            why = there.end().why
            assert why.startswith("cut by the gate: ") and case.why in why
            if "client" in case.sentence or not case.server:
                assert got == []
            else:
                assert heard == b""

    run(main())


def test_a_tally_keeps_neither_names_nor_addresses(run: Run, world: Make) -> None:
    async def main() -> None:
        async with world() as there:
            tally = there.passage.recorder.records = Tally()
            await there.say(there.flow(), b"hello")
            await there.say(there.flow("nobody"), b"")
            assert (tally.flows[Verdict.TUNNEL], tally.flows[Verdict.BLOCK]) == (1, 1)
            assert (tally.bytes_up, tally.bytes_down) == (5, 5)
            assert there.records() == []

    run(main())


# -- quotas ------------------------------------------------------------------------------------------


def _accounts(left: list[int]) -> Accounts:
    async def ask(user: str, quota: Quota, wanted: int) -> Got:
        granted = min(left[0], wanted)
        left[0] -= granted
        return Got(granted, int(NOON.timestamp()) + 3600, "" if granted else "used up")

    return Accounts(ask, lambda: NOON)


def test_a_flow_draws_on_its_quota_and_the_next_one_is_refused(run: Run, world: Make) -> None:
    policy = b"""
policy: 1
name: quotas
define:
  zones: [corporate]
  destinations: {site: {to: site.example, quota: {upload: 1GiB, per: user, every: day}}}
rules: [{id: any, match: {to: site}, verdict: tunnel}]
"""

    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            there.gate.policy = load(policy, "quotas.yaml")
            assert b"nobody keeps it" in await there.say(there.flow(), request())
            left = [2000]
            there.passage._accounts = _accounts(left)
            assert await there.say(there.flow(), b"x" * 1500) == b"x" * 1500
            await there.say(there.flow(), b"x" * 1500)
            assert there.was_reset
            refused = await there.say(there.flow(), request())
            assert refused.startswith(b"HTTP/1.1 403") and b"opens again 2026-01-05 13:00 UTC" in refused
            ends = [record for record in there.records() if isinstance(record, EndRecord)]
            assert sum(end.bytes_up for end in ends) == 2000 and "quota used up" in ends[-1].why

    run(main())


def test_what_has_to_be_scanned_is_never_relayed(run: Run, world: Make) -> None:
    """Also where the judge was told the request, and so would let the flow go."""
    policy = b"""
policy: 1
name: scans
define: {zones: [corporate], destinations: {site: {to: site.example, scan: [card-numbers]}}}
rules: [{id: any, match: {to: site}, verdict: tunnel}]
"""

    async def main() -> None:
        async with world(Protocol.HTTP) as there:
            there.gate.policy = load(policy, "scans.yaml")
            known = there.flow(protocol=Protocol.HTTP, method="POST", path="/")
            assert isinstance(there.gate.ask(known), Admission)
            assert b"is scanned" in await there.say(known, request())
            assert there.verdict().because.id == "unscanned"

    run(main())
