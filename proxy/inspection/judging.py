"""The requests of one connection: each judged by itself, and on record before a byte of it goes on.

Asks the gate and nobody else, and lets through what it gets a plain yes for. Knows no HTTP library, no socket
and no task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from proxy.audit import VerdictRecord
from proxy.egress import Egress
from proxy.flow import FAILED, UNKNOWN, Because, Flow, IPAddress, Origin, Refusal, Transfer
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import Admission, Answer, Gate, Inspect, gate_refusal
from proxy.inspection.exchange import Exchange, Refused
from proxy.inspection.heads import Answered, Asked, Fields
from proxy.inspection.scans import Scanning, scan_refusal, scanning_of
from proxy.policy import Policy
from proxy.purse import Accounts, pocket_of
from proxy.recording import Recorder, open_flow
from proxy.relay import tightest
from proxy.visitor import Visitor

# What only the answer to a request tells: a request may go on while no more than this is open.
_TOLD_BY_THE_ANSWER = frozenset({"content_type", "size"})
MAX_PATH = 200


class Judging:
    """The judge of one connection's requests. `flow` is what is known of the connection itself.

    A named one whose addresses were judged may be dialled at `addresses` alone, `through` that tunnel alone.
    """

    def __init__(
        self,
        gate: Gate,
        table: FlowTable,
        recorder: Recorder,
        now: Callable[[], datetime],
        *,
        flow: Flow,
        visitor: Visitor,
        number: str,
        accounts: Accounts | None = None,
        addresses: tuple[IPAddress, ...] = (),
        through: str | None = None,
    ) -> None:
        self._pocket = pocket_of(accounts, gate.policy, flow) if accounts else None
        self._gate, self._table, self._recorder, self._now = gate, table, recorder, now
        self.reset: Callable[[], None] = lambda: None  # whoever carries the connection says how to end it
        self.flow, self.visitor, self.number = flow, visitor, number
        self.addresses, self._through = addresses, through
        self._count = 0
        self._egress: Egress | None = None
        self._connection: OpenFlow | None = None
        self._open: set[Exchange] = set()

    @property
    def cut_because(self) -> str:
        """Why the gate cut the connection, empty while it has not."""
        return self._connection.cut_because if self._connection else ""

    @property
    def has_judged(self) -> bool:
        """Whether anything was asked on this connection."""
        return self._count > 0

    @property
    def egress(self) -> Egress | None:
        """The way of the requests that were let through, None before the first."""
        return self._egress

    def request(self, asked: Asked, fields: Fields) -> Exchange | Refused:
        """Judge a request by its head. What may go is on record and in the flow table when this returns."""
        reference = self._reference()
        path = asked.path.partition("?")[0]
        words = f"{asked.method} {path if len(path) <= MAX_PATH else path[:MAX_PATH] + '…'}"
        flow = replace(self.flow, at=self._now(), method=asked.method, path=asked.path)
        answer, flow = self._admission(flow, asked)
        if isinstance(answer, Refusal):
            return self._refuse(answer, flow, reference, words)
        if self._egress not in (None, answer.egress):
            # One connection never gets one way for one request and another way for the next.
            refusal = gate_refusal("route-changes", "its connection goes through another tunnel", "try again")
            return self._refuse(refusal, flow, reference, words)
        if (spent := self._without_quota(answer.policy, asked)) is not None:
            return self._refuse(spent, flow, reference, words)
        scanning = scanning_of(answer.policy, flow, asked)
        if scanning is not None and (stopped := scanning.head(asked.path, fields)) is not None:
            return self._refuse(
                scan_refusal(stopped), flow, reference, asked.method
            )  # not where it was found
        record = self._record(answer, flow, reference, words)
        if isinstance(record, Refused):
            return record
        return self._opened(asked, flow, answer, record, scanning)

    def reached(self, address: IPAddress) -> None:
        """One of the addresses has answered: the connection stays with it, and is judged by it."""
        self.addresses = (address,)
        self.flow = replace(self.flow, address=address)
        for exchange in self._open:
            exchange.flow = replace(exchange.flow, address=address)
            exchange.record = replace(exchange.record, address=address)
            exchange.entry.flow = replace(exchange.entry.flow, address=address)
        if self._connection is not None:
            self._connection.flow = replace(self._connection.flow, address=address)

    async def fill(self, *transfers: Transfer) -> None:
        """Have what the next bytes may use of quotas; to be awaited before they are read."""
        if self._pocket is not None:
            for transfer in transfers:
                await self._pocket.fill(transfer)

    def _without_quota(self, policy: Policy, asked: Asked) -> Refusal | None:
        """The refusal of a request that draws on a quota of which nothing is left, or that nobody keeps."""
        pocket = self._pocket
        if policy.quotas(self.flow) != (pocket.quotas if pocket else ()):  # of an earlier policy, or nobody's
            pocket = pocket_of(None, policy, self.flow)
        if pocket is None:
            return None
        sends = asked.has_body or asked.websocket_key
        wanted = [Transfer.DOWNLOAD, *([Transfer.UPLOAD] if sends else [])]
        return next((pocket.refusal(transfer) for transfer in wanted if pocket.is_empty(transfer)), None)

    def _record(
        self, answer: Admission | Inspect, flow: Flow, reference: str, words: str | None
    ) -> VerdictRecord | Refused:
        """Write down that a request, or what it is answered with, may go; what cannot be may not."""
        written = self._recorder.admitted(answer, flow, self.visitor, reference, words)
        return Refused(written, reference) if isinstance(written, Refusal) else written

    def _admission(self, flow: Flow, asked: Asked) -> tuple[Admission | Inspect | Refusal, Flow]:
        """The gate's answer for all that a request will transfer, and the flow that it was given for."""
        if not asked.has_body and not asked.websocket_key:
            flow = replace(flow, transfer=Transfer.DOWNLOAD)
            return self._plain(self._ask(flow), _TOLD_BY_THE_ANSWER), flow
        upload = replace(flow, transfer=Transfer.UPLOAD, content_type=asked.content_type, size=asked.size)
        if not asked.websocket_key:
            return self._plain(self._ask(upload)), upload
        # A WebSocket carries both ways what no head declares: it must be admitted whatever that is.
        unsaid = replace(flow, content_type=FAILED, size=UNKNOWN)
        ways = [replace(unsaid, transfer=transfer) for transfer in Transfer]
        answers = [self._plain(self._ask(way)) for way in ways]
        for answer, way in zip(answers, ways, strict=True):
            if isinstance(answer, Refusal):
                return answer, way
        first = answers[0]
        assert not isinstance(first, Refusal)
        every = tuple(
            b for answer in answers if isinstance(answer, Admission) for b in answer.judgement.budgets
        )
        return replace(first, judgement=replace(first.judgement, budgets=every)), flow

    def _ask(self, flow: Flow) -> Answer:
        return self._gate.ask(flow, self._through)

    def _plain(
        self, answer: object, may_wait_for: frozenset[str] = frozenset()
    ) -> Admission | Inspect | Refusal:
        """The gate's answer, if it is a plain one or waits for nothing else than it may."""
        match answer:
            case Admission() | Refusal():
                return answer
            case Inspect() if answer.judgement.waits_for <= may_wait_for:
                return answer
            case Inspect():
                wanted = ", ".join(sorted(answer.judgement.waits_for))
                return gate_refusal("undecided", f"{_who(answer)} depends on {wanted}, which it does not say")
            case _:
                return gate_refusal("undecided", "the gate came to no decision")

    def _opened(
        self,
        asked: Asked,
        flow: Flow,
        answer: Admission | Inspect,
        record: VerdictRecord,
        scanning: Scanning | None,
    ) -> Exchange:
        self._egress = answer.egress
        if self._connection is None:
            self._connection = self._entry(self.number, self.flow, answer)
        entry = self._entry(record.flow, flow, answer)
        self._recorder.tallies.admitted += 1
        waits = answer.judgement.verdict is None
        found = Exchange(
            asked, flow, answer.egress, answer.grant, record, entry, waits,
            scanning=scanning, pocket=self._pocket,
        )  # fmt: skip
        self._bound(found, answer)
        self._open.add(found)
        return found

    def _entry(self, number: str, flow: Flow, answer: Admission | Inspect) -> OpenFlow:
        entry = open_flow(answer, flow, self.visitor, number, lambda: self.reset(), inspected=True)
        self._table.add(entry)
        return entry

    @staticmethod
    def _bound(exchange: Exchange, answer: Admission | Inspect) -> None:
        for transfer in Transfer:
            if (budget := tightest(answer.judgement.budgets, transfer)) is not None:
                exchange.budgets[transfer] = budget

    def answered(self, exchange: Exchange, answered: Answered) -> Refused | None:
        """Judge what a request is answered with by its head; what is refused is recorded once more."""
        if not answered.has_body or exchange.asked.websocket_key:
            return None
        flow = replace(
            exchange.flow,
            at=self._now(),
            transfer=Transfer.DOWNLOAD,
            content_type=answered.content_type,
            size=answered.size,
        )
        answer = self._plain(self._ask(flow))
        if not isinstance(answer, Refusal) and answer.egress is not exchange.egress:
            answer = gate_refusal("route-changes", "its connection goes through another tunnel", "try again")
        if isinstance(answer, Refusal):
            exchange.refused = answer
            return self._refuse(answer, flow, exchange.record.flow, exchange.record.request)
        if exchange.waits:
            written = self._record(answer, flow, exchange.record.flow, exchange.record.request)
            if isinstance(written, Refused):
                exchange.refused = written.refusal
                return written
        exchange.budgets.pop(Transfer.DOWNLOAD, None)
        self._bound(exchange, answer)
        return None

    def admits_still(self) -> bool:
        """Whether every open request would be let through now: asked when something was waited for."""
        return all(self._still(exchange) for exchange in self._open)

    def _still(self, exchange: Exchange) -> bool:
        now = replace(self.flow, at=self._now(), method=exchange.asked.method, path=exchange.asked.path)
        answer, _ = self._admission(now, exchange.asked)
        return not isinstance(answer, Refusal) and answer.egress is exchange.egress

    def improper(self, words: str) -> Refused:
        """Refuse a message that is not passed on, whatever the policy says."""
        return self._refuse(gate_refusal("improper", words), self.flow, self._reference(), None)

    def failed(self, words: str) -> Refused:
        """Tell of a request that was let through and came to nothing; that is no verdict."""
        return Refused(Refusal(Because(Origin.GATE, "destination", words), "try again"), self.number, 502)

    def unserved(self, because: Because) -> Refused:
        """Refuse the connection itself, before its first request."""
        return self._refuse(Refusal(because), self.flow, self._reference(), None)

    def exceeded(self, exchange: Exchange) -> Refused:
        """A body that has used up its budget: the refusal that the exchange ends with, recorded."""
        refusal = exchange.refused or gate_refusal("budget", "its budget is used up")
        return self._refuse(refusal, exchange.flow, exchange.record.flow, exchange.record.request)

    def end(self, exchange: Exchange, why: str) -> None:
        """The exchange is over. Safe to call twice: the first reason counts."""
        if exchange.over:
            return
        exchange.over = True
        self._open.discard(exchange)
        self._table.remove(exchange.entry)
        if exchange.entry.cut_because or self.cut_because:
            why = f"cut by the gate: {exchange.entry.cut_because or self.cut_because}"
        elif exchange.refused is not None:
            why = f"cut by the gate: {exchange.refused.because}"
        if exchange.scanning is not None and exchange.scanning.reported:
            why += f"; found and let go: {', '.join(sorted(exchange.scanning.reported))}"
        self._recorder.ended(exchange.record, exchange.counts, exchange.began_s, why)

    def close(self, why: str) -> None:
        """The connection is over."""
        for exchange in tuple(self._open):
            self.end(exchange, why)
        if self._pocket is not None:
            self._pocket.close()
        if self._connection is not None:
            self._table.remove(self._connection)

    def _reference(self) -> str:
        self._count += 1
        return f"{self.number}.{self._count}"

    def _refuse(self, refusal: Refusal, flow: Flow, reference: str, request: str | None) -> Refused:
        self._recorder.refused(refusal, flow, self.visitor, reference, request)
        return Refused(refusal, reference)


def _who(answer: Inspect) -> str:
    return ", ".join(str(because) for because in answer.judgement.in_play) or "its verdict"
