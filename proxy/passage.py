"""The way of one flow, however it came in: judged, recorded, dialled, carried, recorded again.

Wires one flow through gate, audit, egress and relay, in that order and no other: nothing is dialled
before the verdict is on record, and nothing is carried that is not in the flow table. Makes no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol as Interface

from proxy import first_bytes, refusals, resolving
from proxy.audit import AuditUnwritable, EndRecord, Segment, Tally, VerdictRecord
from proxy.channel.plain import Channel, PlainChannel
from proxy.egress import DialFailed, Grant
from proxy.first_bytes import Seen
from proxy.flow import UNKNOWN, Because, Flow, Missing, Origin, Protocol, Refusal, Verdict
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import TUNNEL_CURE, Admission, Gate, Inspect, NeedsAddress, Wait, disagreement, gate_refusal
from proxy.purse import Accounts, Pocket, pocket_of
from proxy.refusals import Notice
from proxy.relay import End, relay
from proxy.vetted import SERVER_FIRST, vetted_client, vetted_upstream

FIRST_BYTES_LIMIT_S, UNKNOWN_PORT_LIMIT_S = 10.0, 0.5
LINGER_S, LINGER_BYTES = 2.0, 1 << 20
# What a gateway that refuses says of its reason; every other status is its own "no".
BY_GATEWAY = {502: "unreachable", 504: "silent-destination"}
# Provisional protocols, by port. Where the server speaks first a flow is dialled on the port's word, and
# both sides are held to it; for the rest nothing goes upstream before the client has proved it.
BY_PORT = {22: Protocol.SSH, 80: Protocol.HTTP, 443: Protocol.HTTPS, 853: Protocol.TLS}


class Manner(Interface):
    """How a client speaks to the gate itself, before and while it speaks to its destination."""

    @property
    def trouble(self) -> str:
        """What ended the flow, where that is known better here than where bytes are carried."""

    async def proceed(self) -> None:
        """Let the client speak to its destination, if it was not let yet. Raises ConnectionError."""

    def shown(self, notice: Notice) -> bytes | None:
        """What the client reads of a refusal; None where it hears its destination already."""

    def upstream(self, channel: Channel) -> Channel:
        """The destination's side, as this client is to read it."""

    def given(self, client: Channel, first: bytes) -> tuple[Channel, bytes]:
        """The client's own connection, and what it said first, for whoever takes the flow over."""


class Captured:
    """The client knows of no gate: its first word is for its destination, and so is the answer to it."""

    trouble = ""

    async def proceed(self) -> None:
        """It never asked."""

    def shown(self, notice: Notice) -> bytes | None:
        """It hears its destination, or what speaks in its place."""
        return None

    def upstream(self, channel: Channel) -> Channel:
        """As it is."""
        return channel

    def given(self, client: Channel, first: bytes) -> tuple[Channel, bytes]:
        """As it came."""
        return client, first


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whose flow it is (a bubble; a listener and the client's address), how it came in, and under which
    promise it is enforced."""

    bubble: str
    enforcement: str
    manner: Manner = field(default_factory=Captured)


@dataclass(slots=True)
class Tallies:
    """What a worker counts over its life."""

    admitted: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


type HandOver = Callable[[PlainChannel, Flow, bytes, Visitor, str], Awaitable[Refusal | None]]
UNSCANNED = gate_refusal("unscanned", "what goes there is scanned, and here it could not be")
NO_INSPECTOR = gate_refusal("no-inspector", "it has to be inspected, and there is no inspector here")


class Passage:
    """Carries flows of one zone. `records` is the audit; `now` and `number` are the clock and the ids.

    `hand_over` gives a flow, with what the client has said, to an inspector; a Refusal when there is none.
    """

    def __init__(
        self,
        gate: Gate,
        table: FlowTable,
        records: Segment | Tally,
        now: Callable[[], datetime],
        number: Callable[[], str],
        hand_over: HandOver | None = None,
        accounts: Accounts | None = None,
    ) -> None:
        self._gate, self._table, self.records = gate, table, records
        self._hand_over, self._accounts = hand_over, accounts
        self._now, self.number = now, number
        self.tallies = Tallies()

    async def pass_through(self, client: Channel, flow: Flow, visitor: Visitor) -> None:
        """Take one accepted connection to its end. Raises nothing but CancelledError; closes `client`."""
        number = self.number()
        try:
            answer, flow, first = await self._judge(client, flow, visitor.manner)
            if isinstance(answer, Refusal):
                self.record_refusal(answer, flow, visitor, number)
                refusal: Refusal | None = answer
            elif isinstance(answer, Inspect):
                refusal = await self._inspect(client, flow, first, visitor, number)
            else:
                refusal = await self._carry(client, flow, first, answer, visitor, number)
            if refusal is not None:
                await self._show(client, refusal, first, flow, visitor.manner, number)
        except ConnectionError:
            pass  # the client has gone; there is nobody to tell
        finally:
            client.abort()

    async def refuse(self, client: Channel, flow: Flow, refusal: Refusal, visitor: Visitor) -> None:
        """Record and show a refusal that was known before the gate was asked; closes `client`."""
        number = self.number()
        self.record_refusal(refusal, flow, visitor, number)
        try:
            await self._show(client, refusal, b"", flow, visitor.manner, number)
        finally:
            client.abort()

    # -- judging -----------------------------------------------------------------------------------

    async def _judge(
        self, client: Channel, flow: Flow, manner: Manner
    ) -> tuple[Admission | Refusal | Inspect, Flow, bytes]:
        """The answer, the flow with what is known now, and the client's bytes read so far."""
        answer, flow, first = await self._judge_unresolved(client, flow, manner)
        if isinstance(answer, NeedsAddress):
            answer, flow = await resolving.resolve(self._gate, flow, answer)
        return answer, flow, first

    async def _judge_unresolved(
        self, client: Channel, flow: Flow, manner: Manner
    ) -> tuple[Admission | Refusal | Inspect | NeedsAddress, Flow, bytes]:
        answer = self._gate.ask(flow)
        if not isinstance(answer, Wait):
            return answer, flow, b""
        first = b""
        provisional = BY_PORT.get(flow.port, UNKNOWN)
        if provisional in SERVER_FIRST:
            flow = replace(flow, protocol=provisional)
        else:
            await manner.proceed()
            seen, first = await self._first_bytes(client, FIRST_BYTES_LIMIT_S)
            flow = replace(flow, protocol=seen.protocol)
            if not first:
                return gate_refusal("no-first-bytes", "it said nothing that shows its protocol"), flow, first
            if (refusal := disagreement(flow, seen)) is not None:
                return refusal, flow, first
        answer = self._gate.ask(flow)
        if isinstance(answer, Wait):
            return gate_refusal("undecided", "its protocol is known and its rules still wait"), flow, first
        return answer, flow, first

    async def _first_bytes(self, client: Channel, limit_s: float) -> tuple[Seen, bytes]:
        """What the client says first, and what it proves; no bytes when it is silent too long."""
        first = b""
        try:
            async with asyncio.timeout(limit_s):
                while (seen := first_bytes.recognise(first)) is None:
                    more = await client.read()
                    if not more:
                        return Seen(Protocol.TCP, malformed="its first message has no end"), first
                    first += more
        except TimeoutError:
            return Seen(Protocol.TCP, malformed="its first message has no end"), first
        return seen, first

    # -- an admitted flow --------------------------------------------------------------------------

    async def _carry(
        self,
        client: Channel,
        flow: Flow,
        first: bytes,
        admission: Admission,
        visitor: Visitor,
        number: str,
    ) -> Refusal | None:
        """Record, dial, relay, record. A Refusal when nothing of the destination reached the client."""
        scan = admission.policy.scan(flow)
        if scan is not None and scan.block:  # whoever judged it: no relay looks into what it carries
            self.record_refusal(UNSCANNED, flow, visitor, number)
            return UNSCANNED
        pocket = pocket_of(self._accounts, admission.policy, flow)
        if pocket is not None and (refusal := await pocket.opening()) is not None:
            pocket.close()
            self.record_refusal(refusal, flow, visitor, number)
            return refusal
        try:
            return await self._carry_within(client, flow, first, admission, visitor, number, pocket)
        finally:
            if pocket is not None:
                pocket.close()

    async def _carry_within(
        self,
        client: Channel,
        flow: Flow,
        first: bytes,
        admission: Admission,
        visitor: Visitor,
        number: str,
        pocket: Pocket | None,
    ) -> Refusal | None:
        """The same, under the quotas that the flow draws on."""
        record = self.verdict(flow, visitor, number, admission.judgement.because, admission)
        try:
            self.records.verdict(record)
        except AuditUnwritable as error:
            self.tallies.refused += 1
            return gate_refusal("no-record", f"nothing can be recorded: {error}", "make room on the disk")
        egress = admission.egress
        started = time.monotonic()
        why = "fault in the gate"
        try:
            upstream, flow = await resolving.dial(admission, flow)
        except (DialFailed, ValueError) as error:
            self.record_end(record, 0, 0, started, f"could not be dialled: {error}")
            if isinstance(error, DialFailed) and error.status:
                return gate_refusal(BY_GATEWAY.get(error.status, "gateway"), str(error))
            return Refusal(Because(Origin.GATE, "tunnel", str(error)), TUNNEL_CURE, egress.name)
        except asyncio.CancelledError:
            self.record_end(record, 0, 0, started, "cut by the gate while dialling")
            raise

        record = replace(record, address=None if isinstance(flow.address, Missing) else flow.address)

        def reset() -> None:
            client.abort()
            upstream.abort()

        entry = OpenFlow(
            id=number,
            bubble=visitor.bubble,
            flow=flow,
            tunnel=egress.name,
            policy=admission.policy.hash,
            reset=reset,
            because=str(admission.judgement.because),
            duties=admission.policy.duties(flow),
        )
        try:
            why = await self._relay(client, upstream, first, admission, entry, visitor.manner, pocket)
        except asyncio.CancelledError:
            entry.cut_because = entry.cut_because or "the worker ends"
            raise
        finally:
            reset()
            counts = entry.counts
            why = f"{End.CUT}: {entry.cut_because}" if entry.cut_because else why
            self.record_end(record, counts.uploaded, counts.downloaded, started, why)
        return None

    async def _relay(
        self,
        client: Channel,
        upstream: Channel,
        first: bytes,
        admission: Admission,
        entry: OpenFlow,
        manner: Manner,
        pocket: Pocket | None,
    ) -> str:
        """Open the flow and carry it; says why it ended. What changed while it was dialled is asked again."""
        egress, grant = admission.egress, admission.grant
        if not egress.admits(grant) or not self.is_admitted(entry, admission):
            return "no longer admitted when it was dialled"
        self._table.add(entry)
        self.tallies.admitted += 1
        try:
            await manner.proceed()
            if first:
                client.unread(first)
            ending = await relay(
                client if first else vetted_client(client, entry),
                vetted_upstream(manner.upstream(upstream), entry),
                admitted=lambda: egress.admits(grant),
                budgets=admission.judgement.budgets,
                counts=entry.counts,
                meter=pocket,
            )
            return manner.trouble or str(ending)
        except ConnectionError:
            return str(End.CLIENT_RESET)  # it went away before it was let through
        finally:
            self._table.remove(entry)

    def is_admitted(self, entry: OpenFlow, admission: Admission) -> bool:
        """Whether the judgement holds still: no lock came, neither policy nor window of time has changed."""
        now, edge = self._now(), admission.policy.next_edge(entry.flow.at)
        same = admission.policy is self._gate.policy and (edge is None or now < edge)
        return (same and not self._gate.locked) or self._gate.admits_still(
            entry.flow, entry.tunnel, now, duties=entry.duties
        )

    # -- an inspected flow -------------------------------------------------------------------------

    async def _inspect(
        self, client: Channel, flow: Flow, first: bytes, visitor: Visitor, number: str
    ) -> Refusal | None:
        """Have an inspector carry the flow. A Refusal when there is none."""
        refusal: Refusal | None = NO_INSPECTOR
        given, said = visitor.manner.given(client, first)
        if self._hand_over is not None and isinstance(given, PlainChannel):
            await visitor.manner.proceed()
            refusal = await self._hand_over(given, flow, said, visitor, number)
        if refusal is not None:
            self.record_refusal(refusal, flow, visitor, number)
        return refusal

    # -- a refused flow ----------------------------------------------------------------------------

    async def _first_word(self, client: Channel, flow: Flow) -> bytes:
        """What a client that is refused says first, where its protocol lets the refusal be read."""
        provisional = BY_PORT.get(flow.port)
        if provisional in SERVER_FIRST:
            return b""
        # On a port of no known protocol the client may be waiting for the server: it is not kept waiting.
        limit_s = FIRST_BYTES_LIMIT_S if provisional else UNKNOWN_PORT_LIMIT_S
        with contextlib.suppress(ConnectionError):
            return (await self._first_bytes(client, limit_s))[1]
        return b""

    async def _show(
        self, client: Channel, refusal: Refusal, first: bytes, flow: Flow, manner: Manner, number: str
    ) -> None:
        """Let the client read why, if it can; a reset otherwise."""
        notice = Notice(refusal, flow.destination, number, self._now())
        shown = manner.shown(notice)
        if shown is None:
            shown = refusals.answer(notice, first or await self._first_word(client, flow))
        if shown:
            await tell(client, shown)

    # -- records -----------------------------------------------------------------------------------

    def verdict(
        self, flow: Flow, visitor: Visitor, number: str, because: Because, admission: Admission | None
    ) -> VerdictRecord:
        """The record of a verdict of now: a block without an admission."""
        if admission is None:
            return verdict_record(self._now(), number, flow, visitor, because, self._gate.policy.hash)
        tunnel, grant, policy = admission.egress.name, admission.grant, admission.policy
        return verdict_record(self._now(), number, flow, visitor, because, policy.hash, tunnel, grant)

    def record_refusal(self, refusal: Refusal, flow: Flow, visitor: Visitor, number: str) -> None:
        """Count and record a flow that was refused."""
        self.tallies.refused += 1
        with contextlib.suppress(AuditUnwritable):  # it is refused anyway; `status` tells the trouble
            self.records.verdict(self.verdict(flow, visitor, number, refusal.because, None))

    def record_end(self, record: VerdictRecord, up: int, down: int, started: float, why: str) -> None:
        """Count and record the end of a flow."""
        self.tallies.bytes_up += up
        self.tallies.bytes_down += down
        duration_s = round(time.monotonic() - started, 3)
        at = self._now()
        end = EndRecord(at=at, of=record, bytes_up=up, bytes_down=down, duration_s=duration_s, why=why)
        with contextlib.suppress(AuditUnwritable):  # the next verdict is denied until one can be written
            self.records.end(end)


async def tell(client: Channel, words: bytes) -> None:
    """Let a client read this last thing, and close. Nothing that it still says is looked at. Never raises."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(LINGER_S):
            await client.write(words)
            await client.write_eof()
            left = LINGER_BYTES  # an unread request would reset the answer (RFC 9112, section 9.6)
            while left > 0 and (data := await client.read()):
                left -= len(data)
            await client.close()


def verdict_record(
    at: datetime,
    number: str,
    flow: Flow,
    visitor: Visitor,
    because: Because,
    policy: str,
    tunnel: str | None = None,
    grant: Grant | None = None,
    request: str | None = None,
) -> VerdictRecord:
    """The record of a verdict: a block where there is no grant. `request` is that of an inspected one."""
    return VerdictRecord(
        at=at,
        flow=number,
        zone=flow.zone,
        user=flow.user,
        bubble=visitor.bubble,
        name=flow.name if isinstance(flow.name, str) else None,
        address=None if isinstance(flow.address, Missing) else flow.address,
        port=flow.port,
        protocol=_protocol(flow),
        verdict=Verdict.TUNNEL if grant else Verdict.BLOCK,
        because=because,
        policy=policy,
        tunnel=tunnel,
        peer=grant.peer if grant else None,
        proof_age_s=round(grant.proof_age_s, 3) if grant else None,
        enforcement=visitor.enforcement,
        request=request,
    )


def _protocol(flow: Flow) -> Protocol:
    return flow.transport if isinstance(flow.protocol, Missing) else flow.protocol
