"""The worker: one zone of one user, sealed. Wires the traffic side and answers to its supervisor.

It was given an empty network namespace, a read-only view of the interpreter's files and a seccomp filter
that makes no socket; it looks whether that is so before it says a word. Everything it has was handed to
it. When its supervisor is gone it ends, and its flows with it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

from proxy import ipc
from proxy.allocator import OWN_NETWORKS
from proxy.asking import Asking
from proxy.audit import Segment, Tally
from proxy.captured import Captured
from proxy.channel.plain import Backlog
from proxy.datagram_passage import DatagramPassage
from proxy.explicit.associations import Associations
from proxy.explicit.listener import Explicit, server_side
from proxy.explicit.logins import Failures, Login, Logins
from proxy.explicit.web import House
from proxy.flow import NEVER, UNKNOWN, Flow, IPAddress
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.hand import Hand
from proxy.handing_over import HandingOver
from proxy.leases import Leases
from proxy.link import Link
from proxy.messages.inspection import InspectorDoor, NoInspector
from proxy.messages.worker import (
    TO_WORKER,
    AddressAnswer,
    AssociationDoor,
    BubbleGone,
    Configure,
    Cut,
    Door,
    Lease,
    Listen,
    ListenExplicit,
    Lock,
    NameAnswer,
    NewCertificate,
    NewPolicy,
    NewSegment,
    NoSegment,
    QuotaAnswer,
    Report,
    Serving,
    TellFlows,
    ToWorker,
    WantSegment,
)
from proxy.names import BubbleNames
from proxy.passage import Passage
from proxy.policy import load
from proxy.purse import Accounts
from proxy.rejudging import Rejudging
from proxy.sealed import run
from proxy.visitor import Visitor

REPORT_EVERY_S = 1.0
OTHER_DESCRIPTORS = 1024


def main(arguments: Sequence[str]) -> None:
    """Work until the supervisor's end of the link (a descriptor, the first argument) is gone."""
    run(arguments, TO_WORKER, lambda *given: Worker(*given).work())


class Worker:
    """The wiring of one worker."""

    def __init__(self, link: Link[ToWorker], configure: Configure, fds: list[int]) -> None:
        self._link, self._configure = link, configure
        policy_fd, segment_fd, *tunnel_fds = fds
        backlog = Backlog()
        self._backlog = backlog
        self._tasks: set[asyncio.Task[object]] = set()
        self._most = min(configure.max_flows, _flows_that_fit())
        self._table = FlowTable(self._most)
        self._leases = Leases(configure.tunnels, tunnel_fds, backlog, self._table, self._start, link.close)
        egresses = tuple(self._leases.egresses.values())
        policy = load(ipc.read_file(policy_fd), configure.policy_file, OWN_NETWORKS)
        self._gate = Gate(policy, egresses, inspects=configure.inspects)
        self._handing_over = HandingOver(link.send, backlog)
        if configure.counted_only:
            os.close(segment_fd)
            self._records: Segment | Tally = Tally()
        else:
            self._records = Segment(segment_fd, max_bytes=configure.segment_bytes)
        self._segments = 0
        self._asking = Asking(link.send)
        self._accounts = Accounts(self._asking.quota, utc_now)
        self._passage = Passage(
            self._gate,
            self._table,
            self._records,
            utc_now,
            _numbers(),
            accounts=self._accounts,
            hand_over=self._handing_over,
        )
        self._datagrams = DatagramPassage(self._passage, self._gate, self._table, egresses)
        self._hand = Hand(self._gate, self._table, utc_now, link.send, self._start)
        self._rejudging = Rejudging(self._gate, self._table, utc_now, link.send, self._start)
        self._bubbles: dict[str, Captured] = {}
        self._explicit: dict[str, Explicit] = {}
        self._associations: dict[str, Associations] = {}
        self._failures = Failures(time.monotonic)

    async def work(self) -> None:
        """Until the supervisor is gone."""
        self._start(self._report_for_ever())
        self._rejudging.await_edge()
        try:
            while True:
                message, fds = await self._link.receive()
                self._hear(message, fds)
        except ipc.LinkBroken:
            return
        finally:
            self._table.cut(lambda _: True, "the daemon stopped")
            for ear in self._ears():
                ear.close()

    def _start(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hear(self, message: ToWorker, fds: list[int]) -> None:
        match message:
            case Lease():
                self._leases.take(message)
            case Listen():
                self._listen(message, fds)
            case ListenExplicit():
                self._listen_explicit(message, fds)
            case AssociationDoor():
                associations = self._associations[message.listener]
                associations.connect_holder(socket.socket(fileno=fds[0]))
                self._start(associations.hear_holder())
            case BubbleGone():
                self._forget(message.bubble)
            case Door():
                self._leases.connect_holder(message.tunnel, fds[0])
            case NewCertificate():
                self._leases.show(message.tunnel, *fds)
            case NewPolicy():
                self._start(self._rejudging.replace_policy(message, ipc.read_file(fds[0])))
            case Lock() | Cut() | TellFlows():
                self._hand.do(message)
            case NewSegment():
                if isinstance(self._records, Segment):
                    self._records.replace(fds[0])
                    self._segments += 1
            case NoSegment():
                if isinstance(self._records, Segment):
                    self._records.bar(message.reason)
            case NameAnswer() | AddressAnswer() | QuotaAnswer():
                self._asking.answered(message)
            case InspectorDoor():
                self._start(self._handing_over.hear(socket.socket(fileno=fds[0])))
            case NoInspector():
                self._handing_over.refused(message.reason)
            case Configure():
                raise ipc.LinkBroken("a worker is configured once")
            case _:
                assert_never(message)

    # -- bubbles -----------------------------------------------------------------------------------

    def _listen(self, message: Listen, fds: list[int]) -> None:
        self._forget(message.bubble)
        if self._link.is_short:
            ipc.close_all(fds)
            self._link.send(Serving(message.bubble, "its worker has no descriptor left; try again"))
            return
        listeners = [socket.socket(fileno=fd) for fd in fds]
        names = BubbleNames(message.bubble, self._asking.address_of, self._asking.name_of)
        self._bubbles[message.bubble] = Captured(
            Visitor(message.bubble, message.enforcement),
            listeners,
            names,
            self._passage,
            self._new_flow,
            self._backlog,
            max(1, self._most * 3 // 4),  # what one bubble leaves to the others
            self._has_room,
            self._datagrams,
        )
        self._link.send(Serving(message.bubble, ""))

    def _forget(self, bubble: str) -> None:
        captured = self._bubbles.pop(bubble, None)
        if captured is not None:
            captured.close()
            self._table.cut(lambda flow: flow.bubble == bubble, "the bubble ended")
            self._handing_over.forget(bubble)

    def _listen_explicit(self, message: ListenExplicit, fds: list[int]) -> None:
        if (before := self._explicit.pop(message.name, None)) is not None:
            self._table.cut(before.has, "its listener was set up anew")
            before.close()
        logins = Logins(self._configure.zone, ipc.read_file(fds[1]), self._failures)
        most = max(1, self._most * 3 // 4)  # what one address leaves to the others
        associations = self._associations.setdefault(
            message.name, Associations(self._datagrams, most, self._has_room)
        )
        house = House(message.name, message.auth, logins, self._passage, self._new_flow_of, associations)
        self._explicit[message.name] = Explicit(
            message.kind,
            socket.socket(fileno=fds[0]),
            house,
            None if len(fds) == 2 else server_side(*map(ipc.read_file, fds[2:])),
            self._backlog,
            most,
            self._has_room,
        )

    def _has_room(self) -> bool:
        return sum(map(len, self._ears())) < self._most

    def _ears(self) -> tuple[Captured | Explicit, ...]:
        return (*self._bubbles.values(), *self._explicit.values())

    def _new_flow_of(self, login: Login, host: str | IPAddress | None, port: int) -> Flow:
        name, address = (host, None) if isinstance(host, str) else (None, host)
        return replace(self._new_flow(name, address, port), user=login.name, groups=login.groups)

    def _new_flow(self, name: str | None, address: IPAddress | None, port: int) -> Flow:
        return Flow(
            zone=self._configure.zone,
            user=self._configure.user,
            groups=frozenset(self._configure.groups),
            port=port,
            at=utc_now(),
            name=NEVER if name is None else name,
            address=address if address is not None else NEVER if name is None else UNKNOWN,
        )

    # -- reports -----------------------------------------------------------------------------------

    async def _report_for_ever(self) -> None:
        asked_for_segment = False
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            tallies = self._passage.recorder.tallies
            self._link.send(
                Report(
                    open_flows=len(self._table),
                    admitted=tallies.admitted,
                    refused=tallies.refused,
                    bytes_up=tallies.bytes_up,
                    bytes_down=tallies.bytes_down,
                    audit_trouble=self._records.trouble,
                    policy_hash=self._gate.policy.hash,
                    segments=self._segments,
                )
            )
            wanted = self._records.is_full or bool(self._records.trouble)
            if wanted and not asked_for_segment:
                self._link.send(WantSegment())
            asked_for_segment = wanted and not asked_for_segment


def _flows_that_fit() -> int:
    """How many flows the descriptors of this process allow: two each, and some for everything else."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (most - OTHER_DESCRIPTORS) // 2)


def utc_now() -> datetime:
    return datetime.now(UTC)


def _numbers() -> Callable[[], str]:
    """Flow ids: a random word of this worker, and a count."""
    word = os.urandom(3).hex()
    count = itertools.count(1)
    return lambda: f"{word}-{next(count)}"
