"""Open flows are judged again: when the policy is replaced, and when a window of time opens or closes.

What would not be admitted now is cut; the rest goes on, and so does everything else meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import fields
from datetime import datetime
from itertools import batched
from operator import attrgetter

from proxy.flow import Flow
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import Gate
from proxy.messages.worker import Done, NewPolicy
from proxy.policy import Problems
from proxy.replacement import let_go, load_beside

JUDGED_PER_TURN = 128  # well under 5 ms
LOOK_S = 1.0

_FACTS = attrgetter(*(field.name for field in fields(Flow) if field.name != "at"))


class Rejudging:
    """Keeps the flows of `table` to the policy of `gate`; `send` never waits, `start` runs what does."""

    def __init__(
        self,
        gate: Gate,
        table: FlowTable,
        now: Callable[[], datetime],
        send: Callable[[object], None],
        start: Callable[[Coroutine[None, None, object]], None],
    ) -> None:
        self._gate, self._table, self._now = gate, table, now
        self._send, self._start = send, start
        self._looking: asyncio.TimerHandle | None = None
        self._policies = 0

    async def replace_policy(self, message: NewPolicy, text: bytes) -> None:
        """Swap the policy, cut what it would not admit, and answer. What does not load changes nothing."""
        try:
            cut, trouble = await self._replace(text, message.policy_file), ""
        except Problems as error:
            cut, trouble = 0, str(error).splitlines()[0]
        except Exception as error:  # whoever ordered it must not wait, and acts on trouble of any kind
            cut, trouble = 0, f"it failed: {error!r:.200}"
        self._send(Done(message.question, cut, trouble))

    async def _replace(self, text: bytes, file: str) -> int:
        """It is compiled beside the loop, so that flows go on meanwhile; of two, the later one stays."""
        self._policies += 1
        number = self._policies
        policy = await load_beside(text, file)
        if number != self._policies:
            return 0
        old_parts = self._gate.policy.parts()
        self._gate.policy = policy
        self.await_edge()
        cut = await self._judge_again("the policy was replaced")
        await let_go(old_parts)
        return cut

    def await_edge(self) -> None:
        """Judge open flows again when a time window opens or closes, from now on.

        By the clock on the wall, which may be set, and goes on while the machine sleeps: so it is looked at
        again and again. One that was set back may stand in another window.
        """
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        now = self._now()
        edge = self._gate.policy.next_edge(now)
        if edge is not None:
            self._look_later(now, edge)

    def _look_later(self, now: datetime, edge: datetime) -> None:
        pause_s = min(LOOK_S, max(0.0, (edge - now).total_seconds()))
        self._looking = asyncio.get_running_loop().call_later(pause_s, self._look, now, edge)

    def _look(self, before: datetime, edge: datetime) -> None:
        now = self._now()
        if before <= now < edge:
            self._look_later(now, edge)
        else:
            self._start(self._judge_again("its time is over"))
            self.await_edge()

    async def _judge_again(self, because: str) -> int:
        """Cut every open flow that would not be admitted now, some at a time: others go on meanwhile.

        A flow that opens meanwhile was judged by the policy in force, or is judged again when it opens.
        """
        lost, cut = lost_now(self._gate, self._now()), 0
        for some in batched(self._table.open_flows(), JUDGED_PER_TURN):
            cut += self._table.cut(lost, because, some)
            await asyncio.sleep(0)
        return cut


def lost_now(gate: Gate, now: datetime) -> Callable[[OpenFlow], bool]:
    """Whether an open flow would not be admitted any more. Those that differ only in when they began are
    judged once: ten thousand flows are seldom to more than some hundred places."""
    known: dict[tuple[object, ...], bool] = {}

    def is_lost(entry: OpenFlow) -> bool:
        key = (_FACTS(entry.flow), entry.tunnel, entry.inspected, entry.duties)
        if key not in known:
            known[key] = not gate.admits_still(
                entry.flow, entry.tunnel, now, inspected=entry.inspected, duties=entry.duties
            )
        return known[key]

    return is_lost
