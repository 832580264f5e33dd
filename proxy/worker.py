"""The worker: one zone of one user, sealed. Wires the traffic side and answers to its supervisor.

It was given an empty network namespace, a read-only view of the interpreter's files and a seccomp filter
that makes no socket; it looks whether that is so before it says a word. Everything it has was handed to
it. When its supervisor is gone it ends, and its flows with it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import batched
from typing import Any, assert_never

import uvloop

from proxy import ipc, prctl
from proxy.allocator import OWN_NETWORKS
from proxy.asking import Asking
from proxy.audit import Segment, Tally
from proxy.captured import Captured
from proxy.channel.contexts import client_context
from proxy.channel.plain import Backlog
from proxy.datagram_passage import DatagramPassage
from proxy.egress import Egress
from proxy.explicit.listener import Explicit, server_side
from proxy.explicit.logins import Failures, Login, Logins
from proxy.explicit.web import House
from proxy.flow import NEVER, UNKNOWN, Flow, IPAddress
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.hand import Hand, lost_now
from proxy.handing_over import HandingOver
from proxy.link import Link
from proxy.messages.holding import TunnelSetup
from proxy.messages.inspection import InspectorDoor, NoInspector
from proxy.messages.worker import (
    TO_WORKER,
    AddressAnswer,
    BubbleGone,
    Configure,
    Cut,
    Done,
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
    Sealed,
    Serving,
    TellFlows,
    ToWorker,
    WantSegment,
)
from proxy.mtls_egress import MtlsEgress
from proxy.names import BubbleNames
from proxy.packet_egress import PacketEgress
from proxy.passage import Passage
from proxy.policy import Problems, load
from proxy.private import private_files
from proxy.purse import Accounts
from proxy.replacement import let_go, load_beside
from proxy.visitor import Visitor

REPORT_EVERY_S = 1.0
OTHER_DESCRIPTORS = 1024
JUDGED_PER_TURN = 128  # well under 5 ms


def main(arguments: Sequence[str]) -> None:
    """Work until the supervisor's end of the link (a descriptor, the first argument) is gone."""
    run(arguments, Worker, TO_WORKER)


def run(arguments: Sequence[str], kind: type[Worker], accepted: Sequence[type[Any]]) -> None:
    """The life of a worker of some kind, which hears `accepted`."""
    sock = socket.socket(fileno=int(arguments[0]))
    prctl.no_core_dump()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        ipc.send(sock, Sealed(is_sealed()))
        configure, fds = ipc.receive(sock, [Configure])
        uvloop.run(_work(kind, sock, accepted, configure, fds))
    except ipc.LinkBroken:
        return


def is_sealed() -> bool:
    """Whether this process cannot make a socket of any kind; what it has was handed to it."""
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except PermissionError:
            continue
        return False
    return True


def boot_ns() -> int:
    """CLOCK_BOOTTIME: it goes on while the machine sleeps, and nobody can set it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def _work(
    kind: type[Worker],
    sock: socket.socket,
    accepted: Sequence[type[Any]],
    configure: Configure,
    fds: list[int],
) -> None:
    worker = kind(Link(sock, accepted), configure, fds)
    gc.collect()
    gc.freeze()
    await worker.work()


class Worker:
    """The wiring of one worker."""

    def __init__(self, link: Link[ToWorker], configure: Configure, fds: list[int]) -> None:
        self._link, self._configure = link, configure
        policy_fd, segment_fd, *tunnel_fds = fds
        backlog = Backlog()
        self._backlog = backlog
        self._tasks: set[asyncio.Task[object]] = set()
        given = iter(tunnel_fds)
        self._egresses: dict[str, Egress] = {}
        for setup in configure.tunnels:
            self._egresses[setup.name] = egress = _egress(setup, given, backlog)
            self._connect_holder(egress, next(given))
        policy = load(ipc.read_file(policy_fd), configure.policy_file, OWN_NETWORKS)
        self._gate = Gate(policy, tuple(self._egresses.values()), inspects=configure.inspects)
        self._handing_over = HandingOver(link.send, backlog)
        self._most = min(configure.max_flows, _flows_that_fit())
        self._table = FlowTable(self._most)
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
        self._datagrams = DatagramPassage(self._passage, self._gate, self._table, self._egresses.values())
        self._hand = Hand(self._gate, self._table, utc_now, link.send, self._start)
        self._bubbles: dict[str, Captured] = {}
        self._explicit: dict[str, Explicit] = {}
        self._failures = Failures(time.monotonic)
        self._edge: asyncio.TimerHandle | None = None
        self._policies = 0

    async def work(self) -> None:
        """Until the supervisor is gone."""
        self._start(self._report_for_ever())
        self._await_edge()
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
                self._take_lease(message)
            case Listen():
                self._listen(message, fds)
            case ListenExplicit():
                self._listen_explicit(message, fds)
            case BubbleGone():
                self._forget(message.bubble)
            case Door():
                self._connect_holder(self._egresses[message.tunnel], fds[0])
            case NewCertificate():
                egress = self._egresses[message.tunnel]
                if isinstance(egress, MtlsEgress):
                    egress.show(_context(egress.setup, *fds))
            case NewPolicy():
                self._start(self._replace_policy(message, ipc.read_file(fds[0])))
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

    # -- tunnels -----------------------------------------------------------------------------------

    def _connect_holder(self, egress: Egress, fd: int) -> None:
        egress.connect_holder(socket.socket(fileno=fd))
        self._start(egress.hear_holder())

    def _take_lease(self, lease: Lease) -> None:
        egress = self._egresses[lease.tunnel]
        if not egress.leased or not lease.deadline_ns:
            self._cut_tunnel(egress.name, lease.words)
        egress.renew(lease)
        if lease.deadline_ns:
            self._watch_lease(egress)

    def _watch_lease(self, egress: Egress) -> None:
        """Cut at the deadline; every byte asks the clock as well, so a late timer lets nothing through."""
        deadline_ns = egress.deadline_ns
        left_s = max(0.0, (deadline_ns - boot_ns()) / 1e9)

        def expired() -> None:
            if egress.deadline_ns == deadline_ns and not egress.leased:
                self._cut_tunnel(egress.name, egress.words)

        asyncio.get_running_loop().call_later(left_s + 0.001, expired)

    def _cut_tunnel(self, tunnel: str, words: str) -> None:
        self._table.cut(lambda flow: flow.tunnel == tunnel, f"tunnel {tunnel} lost: {words}")

    # -- bubbles -----------------------------------------------------------------------------------

    def _listen(self, message: Listen, fds: list[int]) -> None:
        self._forget(message.bubble)
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
        self._link.send(Serving(message.bubble))

    def _forget(self, bubble: str) -> None:
        captured = self._bubbles.pop(bubble, None)
        if captured is not None:
            captured.close()
            self._table.cut(lambda flow: flow.bubble == bubble, "the bubble ended")

    def _listen_explicit(self, message: ListenExplicit, fds: list[int]) -> None:
        if (before := self._explicit.pop(message.name, None)) is not None:
            self._table.cut(before.has, "its listener was set up anew")
            before.close()
        logins = Logins(self._configure.zone, ipc.read_file(fds[1]), self._failures)
        house = House(message.name, message.auth, logins, self._passage, self._new_flow_of)
        self._explicit[message.name] = Explicit(
            message.kind,
            socket.socket(fileno=fds[0]),
            house,
            None if len(fds) == 2 else server_side(*map(ipc.read_file, fds[2:])),
            self._backlog,
            max(1, self._most * 3 // 4),  # what one address leaves to the others
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

    # -- policy ------------------------------------------------------------------------------------

    async def _replace_policy(self, message: NewPolicy, text: bytes) -> None:
        """Swap the policy and cut what it would not admit. A text that does not load changes nothing.

        It is compiled beside the loop, so that flows go on meanwhile; of two, the later one stays.
        """
        self._policies += 1
        number, cut = self._policies, 0
        try:
            policy = await load_beside(text, message.policy_file)
        except Problems as error:
            self._link.send(Done(message.question, 0, str(error).splitlines()[0]))
            return
        if number == self._policies:
            old_parts = self._gate.policy.parts()
            self._gate.policy = policy
            self._await_edge()
            cut = await self._judge_again("the policy was replaced")
            await let_go(old_parts)
        self._link.send(Done(message.question, cut, ""))

    async def _judge_again(self, because: str) -> int:
        """Cut every open flow that would not be admitted now, some at a time: others go on meanwhile.

        A flow that opens meanwhile was judged by the policy in force, or is judged again when it opens.
        """
        lost, cut = lost_now(self._gate, utc_now()), 0
        for some in batched(self._table.open_flows(), JUDGED_PER_TURN):
            cut += self._table.cut(lost, because, some)
            await asyncio.sleep(0)
        return cut

    def _await_edge(self) -> None:
        """Judge open flows again when a time window opens or closes."""
        if self._edge is not None:
            self._edge.cancel()
            self._edge = None
        now = utc_now()
        edge = self._gate.policy.next_edge(now)
        if edge is not None:
            pause_s = min(3600.0, max(0.0, (edge - now).total_seconds()))
            self._edge = asyncio.get_running_loop().call_later(pause_s, self._at_edge)

    def _at_edge(self) -> None:
        self._start(self._judge_again("its time is over"))
        self._await_edge()

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


def _egress(setup: TunnelSetup, given: Iterator[int], backlog: Backlog) -> Egress:
    """A tunnel of this worker, with what it was given for it."""
    if setup.packets is not None:
        return PacketEgress(setup.name, setup.packets, backlog, boot_ns)
    return MtlsEgress(setup, _context(setup, next(given), next(given), next(given)), backlog, boot_ns)


def _context(setup: TunnelSetup, ca: int, certificate: int, key: int) -> ssl.SSLContext:
    """The TLS of a tunnel."""
    with private_files(certificate=ipc.read_file(certificate), key=ipc.read_file(key)) as files:
        return client_context(ca_pem=ipc.read_file(ca).decode(), **files)


def utc_now() -> datetime:
    return datetime.now(UTC)


def _numbers() -> Callable[[], str]:
    """Flow ids: a random word of this worker, and a count."""
    word = os.urandom(3).hex()
    count = itertools.count(1)
    return lambda: f"{word}-{next(count)}"
