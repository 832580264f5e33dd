"""The way of one flow, however it came in: judged, recorded, dialled, carried, recorded again.

Wires one flow through gate, audit, egress and relay, in that order and no other: nothing is dialled
before the verdict is on record, and nothing is carried that is not in the flow table. Makes no socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from proxy import hearing, refusals, resolving
from proxy.audit import Segment, Tally, VerdictRecord
from proxy.channel.lingering import tell
from proxy.channel.plain import Channel
from proxy.egress import DialFailed
from proxy.flow import Because, Flow, Missing, Origin, Refusal
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import TUNNEL_CURE, Admission, Gate, Inspect, gate_refusal
from proxy.purse import Accounts, Pocket, pocket_of
from proxy.recording import Recorder, open_flow
from proxy.refusals import Notice
from proxy.relay import Counts, End, relay
from proxy.vetted import vetted_client, vetted_upstream
from proxy.visitor import Visitor

# What a gateway that refuses says of its reason; every other status is its own "no".
BY_GATEWAY = {502: "unreachable", 504: "silent-destination"}
UNSCANNED = gate_refusal("unscanned", "what goes there is scanned, and here it could not be")
NO_INSPECTOR = gate_refusal("no-inspector", "it has to be inspected, and there is no inspector here")

type HandOver = Callable[[Channel, Flow, bytes, Visitor, str, Inspect], Awaitable[Refusal | None]]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One accepted connection, and the reference under which it is recorded."""

    client: Channel
    visitor: Visitor
    number: str


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
        self._gate, self._table = gate, table
        self._hand_over, self._accounts = hand_over, accounts
        self._now, self.number = now, number
        self.recorder = Recorder(gate, records, now)

    async def pass_through(self, client: Channel, flow: Flow, visitor: Visitor) -> None:
        """Take one accepted connection to its end. Raises nothing but CancelledError; closes `client`."""
        one = Arrival(client, visitor, self.number())
        try:
            answer, flow, first = await hearing.judge(self._gate, client, flow, visitor.manner)
            if isinstance(answer, Refusal):
                self.recorder.refused(answer, flow, visitor, one.number)
                refusal: Refusal | None = answer
            elif isinstance(answer, Inspect):
                refusal = await self._inspect(one, flow, first, answer)
            else:
                refusal = await self._carry(one, flow, first, answer)
            if refusal is not None:
                await self._show(one, refusal, first, flow)
        except ConnectionError:
            pass  # the client has gone; there is nobody to tell
        finally:
            client.abort()

    async def refuse(self, client: Channel, flow: Flow, refusal: Refusal, visitor: Visitor) -> None:
        """Record and show a refusal that was known before the gate was asked; closes `client`."""
        one = Arrival(client, visitor, self.number())
        self.recorder.refused(refusal, flow, visitor, one.number)
        try:
            await self._show(one, refusal, b"", flow)
        finally:
            client.abort()

    # -- an admitted flow --------------------------------------------------------------------------

    async def _carry(self, one: Arrival, flow: Flow, first: bytes, admission: Admission) -> Refusal | None:
        """Record, dial, relay, record. A Refusal when nothing of the destination reached the client."""
        scan = admission.policy.scan(flow)
        if scan is not None and scan.block:  # whoever judged it: no relay looks into what it carries
            self.recorder.refused(UNSCANNED, flow, one.visitor, one.number)
            return UNSCANNED
        pocket = pocket_of(self._accounts, admission.policy, flow)
        try:
            if pocket is not None and (refusal := await pocket.opening()) is not None:
                self.recorder.refused(refusal, flow, one.visitor, one.number)
                return refusal
            record = self.recorder.admitted(admission, flow, one.visitor, one.number)
            if isinstance(record, Refusal):
                return record
            return await self._dial_and_relay(one, flow, first, admission, pocket, record)
        finally:
            if pocket is not None:
                pocket.close()

    async def _dial_and_relay(
        self,
        one: Arrival,
        flow: Flow,
        first: bytes,
        admission: Admission,
        pocket: Pocket | None,
        record: VerdictRecord,
    ) -> Refusal | None:
        """The way of what is on record, to the record of its end."""
        began_s = time.monotonic()
        try:
            upstream, flow = await resolving.dial(admission, flow)
        except (DialFailed, ValueError) as error:
            self.recorder.ended(record, Counts(), began_s, f"could not be dialled: {error}")
            return _undialled(error, admission.egress.name)
        except asyncio.CancelledError:
            self.recorder.ended(record, Counts(), began_s, "cut by the gate while dialling")
            raise

        address = None if isinstance(flow.address, Missing) else flow.address
        if address != record.address:
            record = replace(record, address=address)

        def reset() -> None:
            one.client.abort()
            upstream.abort()

        entry = open_flow(admission, flow, one.visitor, one.number, reset, hang_up=one.client.abort)
        why = str(End.FAULT)
        try:
            why = await self._relay(one, upstream, first, admission, entry, pocket)
        except asyncio.CancelledError as error:
            entry.cut_because = entry.cut_because or str(error) or "the worker ends"
            raise
        finally:
            reset()
            why = f"{End.CUT}: {entry.cut_because}" if entry.cut_because else why
            self.recorder.ended(record, entry.counts, began_s, why)
        return None

    async def _relay(
        self,
        one: Arrival,
        upstream: Channel,
        first: bytes,
        admission: Admission,
        entry: OpenFlow,
        pocket: Pocket | None,
    ) -> str:
        """Open the flow and carry it; says why it ended. What changed while it was dialled is asked again."""
        client, manner = one.client, one.visitor.manner
        egress, grant = admission.egress, admission.grant
        if not egress.admits(grant) or not self.is_admitted(entry, admission):
            return "no longer admitted when it was dialled"
        self._table.add(entry)
        self.recorder.tallies.admitted += 1
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
        same = admission.policy is self._gate.policy and entry.flow.at <= now and (edge is None or now < edge)
        return (same and not self._gate.locked) or self._gate.admits_still(
            entry.flow, entry.tunnel, now, duties=entry.duties
        )

    # -- an inspected flow -------------------------------------------------------------------------

    async def _inspect(self, one: Arrival, flow: Flow, first: bytes, answer: Inspect) -> Refusal | None:
        """Have an inspector carry the flow. A Refusal when there is none."""
        refusal: Refusal | None = NO_INSPECTOR
        manner = one.visitor.manner
        given, said = manner.given(one.client, first)
        if self._hand_over is not None:
            await manner.proceed()
            refusal = await self._hand_over(given, flow, said, one.visitor, one.number, answer)
        if refusal is not None:
            self.recorder.refused(refusal, flow, one.visitor, one.number)
        return refusal

    # -- a refused flow ----------------------------------------------------------------------------

    async def _show(self, one: Arrival, refusal: Refusal, first: bytes, flow: Flow) -> None:
        """Let the client read why, if it can; a reset otherwise."""
        notice = Notice(refusal, flow.destination, one.number, self._now())
        shown = one.visitor.manner.shown(notice)
        if shown is None:
            shown = refusals.answer(notice, first or await hearing.first_word(one.client, flow))
        if shown:
            await tell(one.client, shown)


def _undialled(error: DialFailed | ValueError, tunnel: str) -> Refusal:
    """A destination that could not be reached, as the client is told."""
    if isinstance(error, DialFailed) and error.status:
        return gate_refusal(BY_GATEWAY.get(error.status, "gateway"), str(error))
    return Refusal(Because(Origin.GATE, "tunnel", str(error)), TUNNEL_CURE, tunnel)
