"""From a name to a dialled address: resolved through the tunnel, each address judged, one of them dialled.

What was judged is what is dialled: an address that the policy did not admit is not tried, and one that was
not judged does not exist here. Decides nothing beside the gate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from proxy.channel.plain import Channel
from proxy.egress import DialFailed, Egress
from proxy.flow import Flow, IPAddress, Missing, Refusal
from proxy.gate import TUNNEL_CURE, Admission, Gate, Inspect, NeedsAddress, gate_refusal

UNDECIDED = gate_refusal("undecided", "its address is known and its rules still wait")
NEXT_ADDRESS_S = 0.25  # RFC 8305, section 5


async def resolve(gate: Gate, flow: Flow, answer: NeedsAddress) -> tuple[Admission | Inspect | Refusal, Flow]:
    """The answer for a named flow once its addresses are known, and the flow with the first that may be had.

    Where some addresses are admitted and some are not, those are left that are admitted for the same reason
    as the first, and under the same duties; where none is, the first refusal stands.
    """
    assert isinstance(flow.name, str)
    try:
        addresses = await answer.egress.resolve(flow.name)
    except DialFailed as error:
        return gate_refusal("name", str(error), TUNNEL_CURE), flow
    refused: tuple[Refusal, Flow] | None = None
    admitted: list[tuple[IPAddress, Flow, Admission | Inspect]] = []
    for address in addresses:
        known = replace(flow, address=address)
        judged = gate.ask(known, through=answer.egress.name)
        if isinstance(judged, Admission | Inspect):
            admitted.append((address, known, judged))
        elif refused is None:
            refused = judged if isinstance(judged, Refusal) else UNDECIDED, known
    if not admitted:
        return refused or (gate_refusal("name", "it has no address"), flow)
    _, known, first = admitted[0]
    duties = first.policy.duties(known)
    same = tuple(
        address
        for address, other, judged in admitted
        if judged.judgement == first.judgement and judged.policy.duties(other) == duties
    )
    return replace(first, addresses=same), known


async def dial(admission: Admission, flow: Flow) -> tuple[Channel, Flow]:
    """A channel to an admitted flow's destination, and the flow with the address that was dialled.

    Raises DialFailed, ValueError.
    """
    egress = admission.egress
    if admission.addresses:
        channel, address = await first_of(egress, admission.addresses, flow.port)
        return channel, flow if address == flow.address else replace(flow, address=address)
    host = flow.name if isinstance(flow.name, str) else flow.address
    if isinstance(host, Missing):
        raise ValueError("its destination is not known")
    return await egress.dial(host, flow.port), flow


async def first_of(egress: Egress, addresses: Sequence[IPAddress], port: int) -> tuple[Channel, IPAddress]:
    """The first of the admitted addresses that answers; the next is tried when one fails or is slow.

    Raises DialFailed.
    """
    if len(addresses) == 1:
        return await egress.dial(addresses[0], port), addresses[0]
    left = list(addresses)
    trying: dict[asyncio.Task[Channel], IPAddress] = {}
    trouble = DialFailed("it has no address")
    try:
        while left or trying:
            if left:
                address = left.pop(0)
                trying[asyncio.create_task(egress.dial(address, port))] = address
            done, _ = await asyncio.wait(
                trying, timeout=NEXT_ADDRESS_S if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                address = trying.pop(task)
                try:
                    channel = task.result()
                except DialFailed as error:
                    trouble = error
                else:
                    return channel, address
        raise trouble
    finally:
        await _give_up(tuple(trying))


async def _give_up(tasks: Sequence[asyncio.Task[Channel]]) -> None:
    """End attempts that nobody waits for any more, and what they may have got meanwhile."""
    for task in tasks:
        task.cancel()
    for got in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(got, BaseException):
            got.abort()
