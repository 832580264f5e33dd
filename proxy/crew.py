"""One sealed worker as its supervisor has it: started, configured, told of bubbles and leases, ended.

A worker serves one zone of one user. When it dies its listening sockets die with it, and the zones refuse
by themselves until its successor has been given new ones.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine, Mapping, Sequence

from proxy import associating, children, ipc
from proxy.answers import Answers
from proxy.audit import AuditUnwritable
from proxy.config import ListenerKind
from proxy.doors import open_ears
from proxy.flow import TunnelState
from proxy.link import Link
from proxy.messages.worker import (
    FROM_WORKER,
    AssociationDoor,
    BubbleGone,
    Configure,
    Done,
    Door,
    FlowPage,
    FromWorker,
    Lease,
    Listen,
    Lock,
    NewCertificate,
    NewSegment,
    NoSegment,
    Report,
    Sealed,
    Serving,
)
from proxy.posts import Bubble, CrewError, Post
from proxy.segments import Segments, Series
from proxy.site import Loaded, TunnelFiles
from proxy.tunnels.keeper import Keeper

READY_LIMIT_S = 15.0
SILENT_S, SILENT_TIMES = 20.0, 3  # a worker reports each second
SEGMENT_BYTES = 16 << 20
QUIET_REPORT = Report(0, 0, 0, 0, 0, "", "", 0)


class Worker:
    """One worker process of a post. `answer` is asked for names; it must not wait."""

    module = "worker"

    def __init__(
        self,
        post: Post,
        loaded: Loaded,
        keepers: Mapping[str, Keeper],
        segments: Segments,
        answer: Callable[[FromWorker], object | None],
        *,
        structural: bool,
        number: str,
        locked: Callable[[], str] = str,
    ) -> None:
        self.post, self.loaded, self._keepers = post, loaded, keepers
        self._segments, self._answer = segments, answer
        self._series = Series(segments, post.zone, number, SEGMENT_BYTES)
        self._structural = structural
        self._is_locked = locked
        self.locked = ""
        self.retired = False
        self.answers = Answers(self._send)
        self.report = QUIET_REPORT
        self.enforcement = "structural" if structural else "cooperative"
        self._process: Process | None = None
        self._link: Link[FromWorker] | None = None
        self._served: dict[str, asyncio.Task[None]] = {}
        self._serving: dict[str, asyncio.Future[None]] = {}
        self._carries_datagrams = False

    @property
    def pid(self) -> int:
        """The process id of the worker's sandbox, 0 before it was started."""
        return self._process.pid if self._process else 0

    @property
    def tunnels(self) -> tuple[str, ...]:
        """The tunnels that it was configured with."""
        return self.loaded.site.zones[self.post.zone].tunnels

    @property
    def inspector(self) -> Worker | None:
        """The inspector beside it, None where there is none."""
        return None

    async def start(self) -> None:
        """Start and configure the process; CrewError when it is not what it must be."""
        ours, theirs = ipc.pair()
        ipc.refuse_descriptors(ours)
        self._process = await children.start_sealed(self.module, theirs, structural=self._structural)
        self._link = link = Link[FromWorker](ours, FROM_WORKER)
        try:
            async with asyncio.timeout(READY_LIMIT_S):
                first, _ = await link.receive()
        except (ipc.LinkBroken, TimeoutError) as error:
            raise CrewError(f"the {self.module} of zone {self.post.zone} did not start: {error}") from error
        if not isinstance(first, Sealed) or (self._structural and not first.structural):
            raise CrewError(f"the {self.module} found itself able to make sockets; it was not let in")
        self._configure(link)

    def _configure(self, link: Link[FromWorker]) -> None:
        loaded, zone = self.loaded, self.loaded.site.zones[self.post.zone]
        if not self._keepers.keys() >= set(zone.tunnels):
            raise CrewError(f"the site was reloaded while the {self.module} of zone {zone.name} started")
        fds = [ipc.memory_file("policy", loaded.policy_text), self._series.begin()]
        for name in zone.tunnels:
            files, holder = self._keepers[name].files, self._keepers[name].serve()
            if isinstance(files, TunnelFiles):  # the keys of packet tunnels are no worker's business
                fds += [ipc.memory_file("tunnel", content) for content in files.contents()]
            fds.append(holder.detach() if holder else _dead_end())
        setups = tuple(self._keepers[name].setup for name in zone.tunnels)
        self._carries_datagrams = any(setup.packets is not None for setup in setups)
        link.send(
            Configure(
                zone=zone.name,
                user=self.post.user,
                groups=self.post.groups,
                policy_name=loaded.policy.name,
                policy_file=str(loaded.site.policy),
                enforcement=self.enforcement,
                tunnels=setups,
                counted_only=zone.counted_only,
                max_flows=loaded.site.max_flows,
                segment_bytes=SEGMENT_BYTES,
                inspects=zone.inspects,
            ),
            fds,
        )
        ipc.close_all(fds)
        self.locked = self._is_locked()
        if self.locked:
            link.send(Lock(0, self.locked))  # before it has ears

    def _send(self, message: object, fds: Sequence[int] = ()) -> None:
        if self._link is not None:
            self._link.send(message, fds)

    def reloaded(self, loaded: Loaded) -> None:
        """The site was read again."""
        self.loaded = loaded

    # -- what it is told ---------------------------------------------------------------------------

    def lease(self, lease: Lease) -> None:
        """Tell it what is proved of a tunnel; nothing while it is locked."""
        if self.locked:
            lease = Lease(lease.tunnel, TunnelState.DOWN, self.locked, "", 0, 0)
        self._send(lease)

    async def lock(self, words: str) -> int:
        """Cut its flows and admit none, with these words; how many were cut. Raises NoAnswer.

        Its leases go as well, so that one that is stopped at this moment cannot pass a byte past them.
        """
        self.locked = words
        done = asyncio.ensure_future(self.answers.lock(words))
        await asyncio.sleep(0)  # first the words, then the leases: flows end with the true reason
        for tunnel in self.tunnels:
            self.lease(Lease(tunnel, TunnelState.DOWN, words, "", 0, 0))
        return await done

    async def unlock(self) -> None:
        """Admit flows again once there are leases, which are the caller's to give. Raises NoAnswer."""
        self.locked = ""
        await self.answers.lock("")

    def connect_holder(self, tunnel: str) -> None:
        """Give it a link to the new holder of a tunnel."""
        end = self._keepers[tunnel].serve()
        if end is not None and self._link is not None:
            self._link.send(Door(tunnel), [end.fileno()])
            end.close()

    def renew(self, tunnel: str) -> None:
        """Give it the certificate that a tunnel has now, for the connections that come."""
        fds = [ipc.memory_file("tunnel", content) for content in self._keepers[tunnel].files.contents()]
        if self._link is not None:
            self._link.send(NewCertificate(tunnel), fds)
        ipc.close_all(fds)

    def listen_explicitly(self) -> None:
        """Give it the explicit listeners of its post."""
        for ear in self.post.ears:
            message, fds = ear.message()
            if self._link is not None:
                self._link.send(message, fds)
            ipc.close_all(fds[1:])

    def datagram_holders(self) -> list[Coroutine[None, None, None]]:
        """What has a datagram holder beside each SOCKS5 listener, where datagrams can be carried at all."""

        def give(listener: str, fd: int) -> None:
            self._send(AssociationDoor(listener), [fd])

        return [
            associating.hold(ear.listener, give, structural=self._structural)
            for ear in self.post.ears
            if ear.listener.kind is ListenerKind.SOCKS5 and self._carries_datagrams
        ]

    async def serve(self, bubble: Bubble) -> None:
        """Open the ears of a bubble and give them to the worker, once; CrewError if that fails."""
        task = self._served.get(bubble.id)
        if task is None:
            task = self._served[bubble.id] = asyncio.create_task(self._serve(bubble))
        try:
            await asyncio.shield(task)
        except CrewError:
            if self._served.get(bubble.id) is task:
                del self._served[bubble.id]
            raise

    async def _serve(self, bubble: Bubble) -> None:
        async with self.post.doors:
            self._must_be_here(bubble)
            listeners = await open_ears(bubble, datagrams=self._carries_datagrams)
        link = self._link
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serving[bubble.id] = served
        try:
            self._must_be_here(bubble)
            if link is None or link.closed:
                raise CrewError("its worker has just ended; try again")
            link.send(Listen(bubble.id, bubble.enforcement), listeners)
            async with asyncio.timeout(READY_LIMIT_S):
                await served
        except TimeoutError as error:
            raise CrewError("its worker does not answer") from error
        finally:
            ipc.close_all(listeners)
            self._serving.pop(bubble.id, None)

    def _must_be_here(self, bubble: Bubble) -> None:
        """A bubble that has left its post has closed its namespaces: the same numbers may be another's."""
        if self.post.bubbles.get(bubble.id) is not bubble:
            raise CrewError("the bubble has ended")

    def forget(self, bubble: str) -> None:
        """A bubble has ended."""
        self._served.pop(bubble, None)
        if self._link is not None:
            self._link.send(BubbleGone(bubble))

    # -- what it says ------------------------------------------------------------------------------

    async def hear(self) -> None:
        """Answer the worker until it is gone; CrewError when it has hung."""
        assert self._link is not None
        silent = 0
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENT_S):
                        message, fds = await self._link.receive()
                except TimeoutError:
                    silent += 1  # or it was this process that stood still: then the next look hears it
                    if silent == SILENT_TIMES:
                        raise CrewError(f"the {self.module} of zone {self.post.zone} has hung") from None
                    continue
                silent = 0
                ipc.close_all(fds)
                self._hear(self._link, message)
        except ipc.LinkBroken:
            return
        finally:
            self.answers.fail()
            for served in self._serving.values():
                if not served.done():
                    served.set_exception(CrewError("its worker has just ended; try again"))

    def _hear(self, link: Link[FromWorker], message: FromWorker) -> None:
        match message:
            case Report():
                self.report = message
                self._series.gone_on(message.segments)
            case Serving():
                served = self._serving.get(message.bubble)
                if served is None or served.done():
                    return
                if message.trouble:
                    served.set_exception(CrewError(message.trouble))
                else:
                    served.set_result(None)
            case Done() | FlowPage():
                self.answers.answered(message)
            case Sealed():
                raise ipc.LinkBroken("a worker says once that it is sealed")
            case _:
                answer = self._answer(message)
                if answer is not None:
                    link.send(answer)
                else:
                    self._next_segment(link)

    def _next_segment(self, link: Link[FromWorker]) -> None:
        try:
            fd = self._series.following()
        except AuditUnwritable as error:
            link.send(NoSegment(str(error)))
            return
        if fd is not None:
            link.send(NewSegment(), [fd])
            os.close(fd)

    def retire(self) -> None:
        """Have its successor come; its flows end with it."""
        self.retired = True
        if self._link is not None:
            self._link.close()

    async def end(self) -> None:
        """End the process and seal what it wrote."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            await children.end(self._process)
        self._series.end()


def _dead_end() -> int:
    """A link whose other end is gone already: there is no holder at present."""
    ours, theirs = ipc.pair()
    theirs.close()
    return ours.detach()
