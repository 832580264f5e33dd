"""One flow before the gate: the answer, and what its client says first where the answer depends on it.

Reads from the client and sends it nothing but leave to speak. Where servers speak first the port's word is
taken; for the rest nothing is dialled before the client has proved its protocol. Records nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from proxy import first_bytes
from proxy.channel.plain import Channel
from proxy.first_bytes import Seen
from proxy.flow import UNKNOWN, Flow, Protocol, Refusal
from proxy.gate import Admission, Gate, Inspect, NeedsAddress, Wait, disagreement, gate_refusal
from proxy.resolving import resolve
from proxy.vetted import SERVER_FIRST
from proxy.visitor import Manner

FIRST_BYTES_LIMIT_S, UNKNOWN_PORT_LIMIT_S = 10.0, 0.5
# Provisional protocols, by port. Where the server speaks first a flow is dialled on the port's word, and
# both sides are held to it; for the rest nothing goes upstream before the client has proved it.
BY_PORT = {22: Protocol.SSH, 80: Protocol.HTTP, 443: Protocol.HTTPS, 853: Protocol.TLS}


async def judge(
    gate: Gate, client: Channel, flow: Flow, manner: Manner
) -> tuple[Admission | Refusal | Inspect, Flow, bytes]:
    """The answer, the flow with what is known now, and the client's bytes read so far.

    Raises ConnectionError when the client goes meanwhile.
    """
    answer, flow, first = await _judge_unresolved(gate, client, flow, manner)
    if isinstance(answer, NeedsAddress):
        answer, flow = await resolve(gate, flow, answer)
    return answer, flow, first


async def _judge_unresolved(
    gate: Gate, client: Channel, flow: Flow, manner: Manner
) -> tuple[Admission | Refusal | Inspect | NeedsAddress, Flow, bytes]:
    answer = gate.ask(flow)
    if not isinstance(answer, Wait):
        return answer, flow, b""
    first = b""
    provisional = BY_PORT.get(flow.port, UNKNOWN)
    if provisional in SERVER_FIRST:
        flow = replace(flow, protocol=provisional)
    else:
        await manner.proceed()
        seen, first = await _first_bytes(client, FIRST_BYTES_LIMIT_S)
        flow = replace(flow, protocol=seen.protocol)
        if not first:
            return gate_refusal("no-first-bytes", "it said nothing that shows its protocol"), flow, first
        if (refusal := disagreement(flow, seen)) is not None:
            return refusal, flow, first
    answer = gate.ask(flow)
    if isinstance(answer, Wait):
        return gate_refusal("undecided", "its protocol is known and its rules still wait"), flow, first
    return answer, flow, first


async def first_word(client: Channel, flow: Flow) -> bytes:
    """What a client that is refused says first, where its protocol lets the refusal be read. Never raises."""
    provisional = BY_PORT.get(flow.port)
    if provisional in SERVER_FIRST:
        return b""
    # On a port of no known protocol the client may be waiting for the server: it is not kept waiting.
    limit_s = FIRST_BYTES_LIMIT_S if provisional else UNKNOWN_PORT_LIMIT_S
    with contextlib.suppress(ConnectionError):
        return (await _first_bytes(client, limit_s))[1]
    return b""


async def _first_bytes(client: Channel, limit_s: float) -> tuple[Seen, bytes]:
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
