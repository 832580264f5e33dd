"""What is done to the flows of a worker by hand: they are told, cut, locked out.

The worker's side of what a person orders. Who may order what was judged by the supervisor; here it is done,
and answered when nothing of a flow that was cut is open any more. Touches no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime

from proxy.flow import Missing
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import Gate
from proxy.messages.worker import Cut, Done, FlowPage, FlowRow, Lock, TellFlows

FLOWS_OF_PAGE = 50  # of rows as long as they may be, that is well below what one message takes
BECAUSE_CHARACTERS = 160
GONE_LIMIT_S, GONE_LOOK_S = 0.5, 0.002

type Start = Callable[[Coroutine[None, None, None]], None]


class Hand:
    """Does to `table` and `gate` what is ordered; `send` never waits, `start` runs what does."""

    def __init__(
        self,
        gate: Gate,
        table: FlowTable,
        now: Callable[[], datetime],
        send: Callable[[object], None],
        start: Start,
    ) -> None:
        self._gate, self._table, self._now = gate, table, now
        self._send, self._start = send, start

    def do(self, order: Lock | Cut | TellFlows) -> None:
        """Do it at once; the answer comes when it is done."""
        match order:
            case Lock():
                self._gate.locked = order.words
                cut = self._table.cut(lambda _: True, order.words) if order.words else 0
                self._start(self._done(order.question, cut))
            case Cut():
                cut = self._table.cut(lambda flow: is_meant(flow, order), order.because)
                self._start(self._done(order.question, cut))
            case TellFlows():
                self._send(self._page(order))

    async def _done(self, question: int, cut: int) -> None:
        """Answer when the flows that were cut have left the table, and so have their end on record."""
        for _ in range(int(GONE_LIMIT_S / GONE_LOOK_S)):
            if not cut or not any(flow.cut_because for flow in self._table.open_flows()):
                break
            await asyncio.sleep(GONE_LOOK_S)
        self._send(Done(question, cut, ""))

    def _page(self, order: TellFlows) -> FlowPage:
        most = min(order.most, FLOWS_OF_PAGE)
        found = self._table.page(order.after, most)
        rows = tuple(self._row(flow) for _, flow in found)
        return FlowPage(order.question, rows, found[-1][0] if len(found) == most else 0)

    def _row(self, open_flow: OpenFlow) -> FlowRow:
        flow, counts = open_flow.flow, open_flow.counts
        return FlowRow(
            id=open_flow.id,
            user=flow.user,
            bubble=open_flow.bubble,
            destination=flow.destination,
            protocol=flow.transport if isinstance(flow.protocol, Missing) else flow.protocol,
            tunnel=open_flow.tunnel,
            age_s=max(0.0, round((self._now() - flow.at).total_seconds(), 3)),
            bytes_up=counts.uploaded,
            bytes_down=counts.downloaded,
            because=open_flow.because[:BECAUSE_CHARACTERS],
        )


def is_meant(open_flow: OpenFlow, order: Cut) -> bool:
    """Whether an order to cut means this flow."""
    flow = open_flow.flow
    host = flow.name if isinstance(flow.name, str) else str(flow.address)
    below = order.host.startswith("*.") and isinstance(flow.name, str) and host.endswith(order.host[1:])
    return (
        order.flow in ("", open_flow.id)
        and order.user in ("", flow.user)
        and (order.host in ("", host) or below)
        and order.port in (0, flow.port)
    )
