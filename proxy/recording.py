"""What is written down and counted of each flow: its verdict, before anything is dialled, and its end.

A verdict that cannot be written is none: the flow is refused. A refusal or an end that cannot be written
changes nothing any more; the trouble shows in `status`, and the next verdict is denied.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from proxy.audit import AuditUnwritable, EndRecord, Segment, Tally, VerdictRecord
from proxy.flow import Because, Flow, Missing, Refusal, Verdict
from proxy.flow_table import OpenFlow
from proxy.gate import Admission, Gate, Inspect, gate_refusal
from proxy.relay import Counts
from proxy.visitor import Visitor

NO_RECORD_CURE = "make room on the disk"


@dataclass(slots=True)
class Tallies:
    """What a worker counts over its life."""

    admitted: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


def open_flow(
    admission: Admission | Inspect,
    flow: Flow,
    visitor: Visitor,
    number: str,
    reset: Callable[[], None],
    *,
    hang_up: Callable[[], None] = lambda: None,
    inspected: bool = False,
) -> OpenFlow:
    """A flow that was admitted, as the flow table has it."""
    return OpenFlow(
        id=number,
        bubble=visitor.bubble,
        flow=flow,
        tunnel=admission.egress.name,
        policy=admission.policy.hash,
        reset=reset,
        hang_up=hang_up,
        because=str(admission.judgement.because),
        inspected=inspected,
        duties=admission.policy.duties(flow),
    )


class Recorder:
    """The records of one worker. `records` is the audit; `gate` knows the policy that is in force.

    Everywhere `number` is the reference of a flow, and `request` what an inspected one asked for.
    """

    def __init__(self, gate: Gate, records: Segment | Tally, now: Callable[[], datetime]) -> None:
        self._gate, self.records, self._now = gate, records, now
        self.tallies = Tallies()

    def admitted(
        self,
        admission: Admission | Inspect,
        flow: Flow,
        visitor: Visitor,
        number: str,
        request: str | None = None,
    ) -> VerdictRecord | Refusal:
        """Write down that a flow may go; a Refusal when that cannot be written, and so may not."""
        record = self._verdict(admission.judgement.because, admission, flow, visitor, number, request)
        try:
            self.records.verdict(record)
        except AuditUnwritable as error:
            self.tallies.refused += 1
            return gate_refusal("no-record", f"nothing can be recorded: {error}", NO_RECORD_CURE)
        return record

    def refused(
        self, refusal: Refusal, flow: Flow, visitor: Visitor, number: str, request: str | None = None
    ) -> None:
        """Count and record a flow that was refused."""
        self.tallies.refused += 1
        with contextlib.suppress(AuditUnwritable):  # it is refused anyway
            self.records.verdict(self._verdict(refusal.because, None, flow, visitor, number, request))

    def ended(self, record: VerdictRecord, counts: Counts, began_s: float, why: str) -> None:
        """Count and record the end of a flow that began at `began_s` of time.monotonic()."""
        self.tallies.bytes_up += counts.uploaded
        self.tallies.bytes_down += counts.downloaded
        duration_s = round(time.monotonic() - began_s, 3)
        end = EndRecord(
            at=self._now(),
            of=record,
            bytes_up=counts.uploaded,
            bytes_down=counts.downloaded,
            duration_s=duration_s,
            why=why,
        )
        with contextlib.suppress(AuditUnwritable):  # the next verdict is denied until one can be written
            self.records.end(end)

    def _verdict(
        self,
        because: Because,
        admission: Admission | Inspect | None,
        flow: Flow,
        visitor: Visitor,
        number: str,
        request: str | None,
    ) -> VerdictRecord:
        """The record of a verdict of now: a block without an admission."""
        grant = admission.grant if admission else None
        return VerdictRecord(
            at=self._now(),
            flow=number,
            zone=flow.zone,
            user=flow.user,
            bubble=visitor.bubble,
            name=flow.name if isinstance(flow.name, str) else None,
            address=None if isinstance(flow.address, Missing) else flow.address,
            port=flow.port,
            protocol=flow.transport if isinstance(flow.protocol, Missing) else flow.protocol,
            verdict=Verdict.TUNNEL if admission else Verdict.BLOCK,
            because=because,
            policy=(admission.policy if admission else self._gate.policy).hash,
            tunnel=admission.egress.name if admission else None,
            peer=grant.peer if grant else None,
            proof_age_s=round(grant.proof_age_s, 3) if grant else None,
            enforcement=visitor.enforcement,
            request=request,
        )
