"""One request that was let through: what may be carried of it, to the byte; and one that was not.

Counts, and keeps budgets, quotas and scans; judges nothing. Knows no HTTP library, no socket and no task.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from proxy.audit import VerdictRecord
from proxy.egress import Egress, Grant
from proxy.flow import Budget, Flow, Refusal, Transfer
from proxy.flow_table import OpenFlow
from proxy.gate import gate_refusal
from proxy.inspection.heads import Asked, Fields, Improper, read_trailers
from proxy.inspection.scans import Scanning, scan_refusal
from proxy.purse import Pocket
from proxy.relay import Counts
from proxy.scanning.sieve import Stopped


@dataclass(slots=True, eq=False)
class Exchange:
    """One request that was let through, and what may be carried of it. `refused` is why it was ended."""

    asked: Asked
    flow: Flow
    egress: Egress
    grant: Grant
    record: VerdictRecord
    entry: OpenFlow
    waits: bool  # its verdict waits for what it is answered with
    budgets: dict[Transfer, Budget] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    refused: Refusal | None = None
    over: bool = False
    scanning: Scanning | None = None
    pocket: Pocket | None = None

    @property
    def counts(self) -> Counts:
        """The bytes of its two bodies so far."""
        return self.entry.counts

    def allow(self, transfer: Transfer, wanted: int) -> int:
        """How many of `wanted` further bytes may pass; fewer than that ends the exchange at the byte."""
        counts, budget = self.counts, self.budgets.get(transfer)
        carried = counts.uploaded if transfer is Transfer.UPLOAD else counts.downloaded
        allowed = wanted if budget is None else min(wanted, max(0, budget.limit_bytes - carried))
        if (spent := self._spend(transfer, allowed)) < allowed:
            counts.add(transfer, spent)
            return spent
        counts.add(transfer, allowed)
        if allowed < wanted and budget is not None:
            self.refused = Refusal(budget.because)
        return allowed

    def _spend(self, transfer: Transfer, wanted: int) -> int:
        """What the quotas let go of these bytes."""
        if self.pocket is None or (spent := self.pocket.take(transfer, wanted)) == wanted:
            return wanted
        self.refused = self.pocket.refusal(transfer)
        return spent

    def sift(self, data: bytes, *, last: bool = False) -> bytes | None:
        """What of a body may go on now, None where it holds what must not."""
        return data if self.scanning is None else self._sifted(self.scanning.sift(data, last=last))

    def may_end_with(self, trailers: Fields, *, carried: bool) -> bool:
        """Whether fields behind the body may go, to a destination to which any can be `carried`."""
        try:
            if not carried:
                raise Improper("it has trailers, and they do not go through HTTP/1.1")
            read_trailers(trailers)
        except Improper as error:
            self.refused = gate_refusal("improper", str(error))
            return False
        stopped = self.scanning.head("", trailers) if self.scanning else None
        return stopped is None or self._sifted(stopped) is not None

    def sift_message(self, content: bytes) -> bool:
        """Whether a message of a WebSocket may go."""
        return self.scanning is None or self._sifted(self.scanning.message(content)) is not None

    def _sifted(self, found: bytes | Stopped) -> bytes | None:
        if isinstance(found, Stopped):
            self.refused = scan_refusal(found)
            return None
        return found


@dataclass(frozen=True, slots=True)
class Refused:
    """A request or an answer that goes no further, with the reference under which that is recorded.

    `status` is HTTP's, where it is another than that of a refusal.
    """

    refusal: Refusal
    reference: str
    status: int | None = None
