"""The register of open flows of one worker. What is open is in it; what is cut is cut from here.

Holds no socket: each entry knows how to reset its own. Cutting is synchronous, so that ten thousand flows
are reset before anything else happens in the process.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from proxy.flow import Flow
from proxy.relay import Counts


@dataclass(slots=True, eq=False, kw_only=True)
class OpenFlow:
    """One open flow, or a request of one that is `inspected`, and why it was admitted. `reset` resets both of
    its sockets, `hang_up` that of its program alone; `cut_because` is set when the gate did it. `duties` are
    what the policy asked beside."""

    id: str
    bubble: str
    flow: Flow
    tunnel: str
    policy: str
    reset: Callable[[], None]
    hang_up: Callable[[], None] = lambda: None
    because: str = ""
    counts: Counts = field(default_factory=Counts)
    cut_because: str = ""
    inspected: bool = False
    duties: tuple[object, ...] = ()


class FlowTable:
    """Open flows. Whoever adds one has asked before whether there is room."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[OpenFlow, int] = {}  # with its place in the list, which only grows
        self._last = 0
        self._of_bubble: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, flow: OpenFlow) -> None:
        """Register a flow before its first byte is carried."""
        if flow not in self._open:
            self._last += 1
            self._open[flow] = self._last
            self._of_bubble[flow.bubble] += 1

    def remove(self, flow: OpenFlow) -> None:
        """Forget a flow that has ended."""
        if flow in self._open:
            del self._open[flow]
            self._of_bubble[flow.bubble] -= 1
            if not self._of_bubble[flow.bubble]:
                del self._of_bubble[flow.bubble]

    def of_bubble(self, bubble: str) -> int:
        """How many flows a bubble has open."""
        return self._of_bubble[bubble]

    def open_flows(self) -> tuple[OpenFlow, ...]:
        """Those that are open now."""
        return tuple(self._open)

    def page(self, after: int, most: int) -> list[tuple[int, OpenFlow]]:
        """The next open flows behind a place in the list, with their places; the oldest first."""
        return list(islice(((place, flow) for flow, place in self._open.items() if place > after), most))

    def cut(
        self, lost: Callable[[OpenFlow], bool], because: str, among: Iterable[OpenFlow] | None = None
    ) -> int:
        """Reset every open flow that is `lost`, or of those `among`; returns how many were.

        One that cannot be judged is lost, and one that cannot be reset keeps no other open. What was cut
        before keeps its reason and is not counted again. Every program is told before any destination is:
        what goes to those takes the machine's time to encrypt.
        """
        candidates = self._open if among is None else [flow for flow in among if flow in self._open]
        cut = [flow for flow in candidates if not flow.cut_because and _is_so(lost, flow)]
        for flow in cut:
            flow.cut_because = because
        for end in [*(flow.hang_up for flow in cut), *(flow.reset for flow in cut)]:
            with contextlib.suppress(Exception):
                end()
        return len(cut)


def _is_so(lost: Callable[[OpenFlow], bool], flow: OpenFlow) -> bool:
    try:
        return lost(flow)
    except Exception:
        return True
