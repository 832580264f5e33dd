"""The way of one UDP exchange: judged by its first datagram, recorded, given a socket, carried, recorded.

As with a connection (see passage) nothing goes anywhere before the verdict is on record. What a tunnel
cannot carry, and what would have to be looked into, is refused at once, so that programs fall back to TCP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace

from proxy import quic
from proxy.egress import DialFailed, Egress
from proxy.exchange import Exchange
from proxy.flow import Because, Flow, Missing, Origin, Protocol, Refusal
from proxy.flow_table import FlowTable
from proxy.gate import (
    TUNNEL_CURE,
    Admission,
    Answer,
    Gate,
    Inspect,
    NeedsAddress,
    disagreement,
    gate_refusal,
)
from proxy.packet_egress import PacketEgress
from proxy.passage import Passage
from proxy.recording import open_flow
from proxy.relay import Counts, End, Ending
from proxy.resolving import resolve
from proxy.visitor import Visitor

HELLO_LIMIT_S = 2.0
HAS_QUOTA = gate_refusal("quota", "what draws on a quota goes by no datagrams", "use TCP")
NO_TUNNEL = gate_refusal("no-datagrams", "no tunnel of this zone carries datagrams", "use TCP")


class DatagramPassage:
    """Carries UDP exchanges of one zone, through those of its tunnels that carry packets."""

    def __init__(self, passage: Passage, gate: Gate, table: FlowTable, egresses: Iterable[Egress]) -> None:
        self._passage, self._gate, self._table = passage, gate, table
        self._egresses = tuple(one.name for one in egresses if isinstance(one, PacketEgress))

    async def carry(self, exchange: Exchange, first: bytes, flow: Flow, visitor: Visitor) -> None:
        """Take an exchange to its end. Raises nothing but CancelledError."""
        number = self._passage.number()
        protocol = Protocol.QUIC if quic.is_first(first) else Protocol.UDP
        flow = replace(flow, transport=Protocol.UDP, protocol=protocol)
        answer, flow = await self._judge(flow)
        if isinstance(answer, Admission) and answer.policy.quotas(flow):
            answer = HAS_QUOTA
        if isinstance(answer, Admission) and protocol is Protocol.QUIC:
            answer = await self._agreed(exchange, flow) or answer
        elif isinstance(answer, Admission):
            exchange.vet = lambda datagram: not quic.may_begin(datagram)  # its name was not compared
        refusal: Refusal | None
        if isinstance(answer, Admission):
            refusal = await self._carry(exchange, flow, answer, visitor, number)
        else:
            refusal = answer
            self._passage.recorder.refused(refusal, flow, visitor, number)
        if refusal is not None:
            exchange.refuse()

    def refusal(self, flow: Flow) -> Refusal | None:
        """Why nothing of whoever's flow this is would be carried now, wherever to; None where it may be."""
        return self._gate.refuses_all(flow, self._egresses) if self._egresses else NO_TUNNEL

    def refuse(self, exchange: Exchange, flow: Flow, refusal: Refusal, visitor: Visitor) -> None:
        """Record and show a refusal that was known before the gate was asked."""
        flow = replace(flow, transport=Protocol.UDP, protocol=Protocol.UDP)
        self._passage.recorder.refused(refusal, flow, visitor, self._passage.number())
        exchange.refuse()

    async def _judge(self, flow: Flow) -> tuple[Admission | Refusal, Flow]:
        """The first of the tunnels that carry packets through which it is admitted, or why none is."""
        refused = NO_TUNNEL
        for name in self._egresses:
            answer: Answer = self._gate.ask(flow, through=name)
            judged = flow
            if isinstance(answer, NeedsAddress):
                answer, judged = await resolve(self._gate, flow, answer)
            if isinstance(answer, Admission):
                return answer, judged
            refused = answer if isinstance(answer, Refusal) else _undecided(answer)
        return refused, flow

    async def _agreed(self, exchange: Exchange, flow: Flow) -> Refusal | None:
        """Names must agree, as for TLS over TCP. After that nothing passes that begins another connection."""
        hello = quic.ClientHello()
        try:
            async with asyncio.timeout(HELLO_LIMIT_S), aclosing(exchange.first()) as datagrams:
                async for datagram in datagrams:
                    seen = hello.take(datagram)
                    if seen is not None:
                        exchange.vet = hello.belongs
                        return disagreement(flow, seen)
        except TimeoutError:
            pass
        return gate_refusal("malformed", "its first message has no end")

    async def _carry(
        self, exchange: Exchange, flow: Flow, admission: Admission, visitor: Visitor, number: str
    ) -> Refusal | None:
        recorder, egress, grant = self._passage.recorder, admission.egress, admission.grant
        if isinstance(flow.address, Missing) or not isinstance(egress, PacketEgress):
            return gate_refusal("undecided", "its address is not known")
        record = recorder.admitted(admission, flow, visitor, number)
        if isinstance(record, Refusal):
            return record
        began_s = time.monotonic()
        try:
            upstream = await egress.open_socket("udp", flow.address, flow.port)
        except DialFailed as error:
            recorder.ended(record, Counts(), began_s, f"could not be dialled: {error}")
            return Refusal(Because(Origin.GATE, "tunnel", str(error)), TUNNEL_CURE, egress.name)
        except asyncio.CancelledError:
            recorder.ended(record, Counts(), began_s, "cut by the gate while dialling")
            raise
        entry = open_flow(admission, flow, visitor, number, lambda: exchange.end(Ending(End.CUT)))
        why = "no longer admitted when it was dialled"
        if not egress.admits(grant) or not self._passage.is_admitted(entry, admission):
            upstream.close()
            recorder.ended(record, Counts(), began_s, why)
            return gate_refusal("not-admitted", why)
        self._table.add(entry)
        recorder.tallies.admitted += 1
        try:
            exchange.begin(upstream, lambda: egress.admits(grant), admission.judgement.budgets, entry.counts)
            why = str(await asyncio.shield(exchange.ended))
        except asyncio.CancelledError:
            entry.cut_because = entry.cut_because or "the worker ends"
            raise
        finally:
            exchange.end(Ending(End.CUT))
            self._table.remove(entry)
            why = f"{End.CUT}: {entry.cut_because}" if entry.cut_because else why
            recorder.ended(record, entry.counts, began_s, why)
        return None


def _undecided(answer: Answer) -> Refusal:
    """What only a look into it would decide, which nobody takes: a program that hears so at once uses TCP."""
    wants = f"{answer.judgement.because} would have to look into it" if isinstance(answer, Inspect) else ""
    return gate_refusal("needs-inspection", wants or "its rules still wait", "use TCP")
