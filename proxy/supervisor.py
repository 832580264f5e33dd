"""The supervisor: starts and watches everything, leases what is attested, carries no traffic.

Wires the watching side. The only process with privileges, if any. When it is gone, workers and holders
end by themselves, and the zones, whose namespaces have no way out, refuse until another one comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from proxy import (
    commands,
    held,
    ipc,
    listeners,
    locks,
    notify,
    paths,
    pieces,
    prctl,
    quotas,
    remains,
    sandbox,
    tunnel_orders,
)
from proxy.admin import AdminSocket, Peer
from proxy.allocators import Allocators
from proxy.audit import AuditUnwritable, rfc3339
from proxy.crew import Worker
from proxy.directory import Directory, DirectorySilent
from proxy.held import Held
from proxy.journal import JournalUnusable
from proxy.keeping import Tunnels
from proxy.locks import Locks
from proxy.manning import Manning
from proxy.messages.admin import Answer, Ask, Denied, Enter, Entered, Leave, Order, Stop
from proxy.paths import Places
from proxy.posts import Bubble, CrewError, Post
from proxy.quotas import Ledger, QuotasUnusable
from proxy.reception import NotAdmitted, admit
from proxy.reloading import Reloads
from proxy.segments import Segments
from proxy.site import Loaded, SiteError
from proxy.tunnels.keeper import Keeper

LEAVE_LIMIT_S = 7.0
ENTER_LIMIT_S = 20.0  # what a worker may take to start, on a machine that is busy


async def supervise(loaded: Loaded, places: Places, *, cooperative: bool) -> bool:
    """Run the daemon until SIGTERM, SIGINT or `zonegate stop`. SiteError, AdminError at the start.

    False when it stopped because of a fault of its own.
    """
    if lacking := tunnel_orders.lacking(loaded.site):
        raise SiteError("\n".join(lacking))
    structural = not (missing := sandbox.missing())
    if missing and not cooperative:
        raise SiteError("\n".join([*missing, "or accept less and have it said everywhere: --cooperative"]))
    prctl.no_core_dump()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with AsyncExitStack() as undo:
        supervisor = Supervisor(loaded, places, structural=structural)
        await supervisor.up(undo)
        notify.ready()
        await supervisor.stopped.wait()
        notify.stopping()
        await supervisor.dismiss()
    return not supervisor.faulty


class Supervisor:
    """The daemon. `stopped` is set when it is to end."""

    def __init__(self, loaded: Loaded, places: Places, *, structural: bool) -> None:
        self.loaded, self.places, self.structural = loaded, places, structural
        self.since = datetime.now(UTC)
        self.stopped = asyncio.Event()
        self.keepers: dict[str, Keeper] = {}
        self.workers: dict[tuple[str, int], Worker] = {}
        self.bubbles: dict[str, tuple[Bubble, Peer]] = {}
        self.ears: tuple[listeners.Ear, ...] = ()
        self.waiting: dict[str, remains.Remaining] = {}
        self.reloads = Reloads(self)
        self.directory = Directory()
        self._ends_with_terminal = notify.ends_with_terminal()
        self._keep_bubbles = False
        self.faulty = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- up and down -------------------------------------------------------------------------------

    async def up(self, undo: AsyncExitStack) -> None:
        """Bring everything up; what was brought up is taken down by `undo`, in reverse.

        The socket comes first: whoever has it is the only daemon here, and nobody is served before the end.
        """
        self._admin = AdminSocket(self.places.run / paths.SOCKET, self._serve)
        undo.callback(self._admin.close)
        state = self.places.state
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            segments = Segments(state / "audit", clock=lambda: datetime.now(UTC))
            undo.callback(os.close, segments.claim())
            segments.seal_left_over()
            self.quotas = Ledger(state / quotas.FILE, lambda: datetime.now(UTC))
            undo.callback(self.quotas.close)
        except (OSError, AuditUnwritable, QuotasUnusable) as error:
            raise SiteError(f"{state}: {error}") from error
        self.locks = Locks(state / locks.FILE, rfc3339(datetime.now(UTC)))
        self.held = Held(state / held.FILE)
        remains.end_unbegun()
        self.waiting = {one.bubble: one for one in remains.remaining(self.places.run)}
        self._allocators = Allocators(state, self.bubbles, self._start)
        undo.callback(self._allocators.close)
        undo.push_async_callback(self._end_tasks)
        self._tunnels = Tunnels(self._start, self.workers, self.held)
        self.keepers = self._tunnels.keepers
        self._tunnels.bring_up(self.loaded)
        self._manning = Manning(self, segments, self._allocators, self._start)
        undo.push_async_callback(self._admin.hang_up)
        undo.callback(self._admin.close)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self.ears = listeners.open_ears(self.loaded)
        undo.callback(lambda: listeners.close_all(self.ears))
        try:
            await self._start_own_workers()
            self.man_listeners()
        except (OSError, JournalUnusable) as error:
            raise SiteError(f"{state}: {error}") from error

    def _hang_up(self) -> None:
        """SIGHUP: a reload, unless it says that the terminal is gone in which a person had started this."""
        if self._ends_with_terminal and not notify.has_terminal():
            notify.say("stopping: the terminal in which it was started was closed")
            self.stopped.set()
        else:
            self._start(self.reloads.by_signal())

    async def _start_own_workers(self) -> None:
        """Have the workers of our own user ready before the first bubble asks."""
        uid = os.geteuid()
        try:
            user = await self.directory.user(uid)
        except DirectorySilent as error:
            notify.say(f"{error}: bubbles wait for it")
            return
        for zone in self.loaded.site.zones:
            allowed = self.loaded.site.may_enter(zone, uid, user.login, user.groups)
            if allowed is not None:
                self._manning.man(Post(zone, user.login, uid, allowed))

    async def dismiss(self) -> None:
        """Send the bubbles home, unless they are to be kept, and wait for them."""
        self._admin.close()
        if self._keep_bubbles:
            return
        (self.places.run / remains.FILE).unlink(missing_ok=True)
        waiting = asyncio.create_task(asyncio.to_thread(remains.end, list(self.waiting.values())))
        for _, peer in self.bubbles.values():
            peer.link.send(Leave())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_LIMIT_S):
                while self.bubbles:
                    await asyncio.sleep(0.02)
        await waiting

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours that raises is a bug, and a daemon with a bug stops rather than limps."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            notify.say(f"stopping: {task.exception()!r}")
            self.faulty = True
            self.stopped.set()

    def lease_again(self, worker: Worker) -> None:
        """Tell a worker what is proved of its tunnels now."""
        self._tunnels.lease_again(worker)

    # -- another site ------------------------------------------------------------------------------

    def posts(self) -> list[Post]:
        """Every post."""
        return self._manning.posts()

    def adopt(self, new: Loaded, changed_tunnels: set[str]) -> None:
        """Take another site; the tunnels that changed end, those that are new come up."""
        self.loaded = new
        self._tunnels.end(changed_tunnels)
        self._tunnels.bring_up(new)
        self._allocators.limit(new.site.max_names)

    def man_listeners(self) -> None:
        """Have a post for the ears of each zone, where there is none."""
        for zone in {ear.listener.zone for ear in self.ears}:
            mine = listeners.of_zone(self.ears, zone)
            self._manning.man(Post(zone, listeners.USER, listeners.UID, (), ears=mine))

    async def dismiss_post(self, post: Post, why: str) -> list[str]:
        """End a post; the names of the bubbles that are told why. They stay, shut in, and ask again."""
        key = (post.zone, post.uid)
        told = [one for one in self.bubbles.values() if (one[0].zone, one[0].uid) == key]
        for bubble, peer in told:
            self.waiting[bubble.id] = remains.Remaining.of(bubble.id, peer.pid)
            peer.link.send(Denied(why))
            peer.link.close()
        await self._manning.dismiss(post)
        return [bubble.id for bubble, _ in told]

    # -- commands ----------------------------------------------------------------------------------

    async def _serve(self, peer: Peer) -> None:
        """Answer one command until it hangs up."""
        while True:
            message, fds = await peer.link.receive()
            try:
                match message:
                    case Ask() | Order():
                        for piece in pieces.cut(await commands.answer(self, peer.uid, message)):
                            peer.link.send(piece)
                    case Enter():
                        await self._enter(peer, message)
                    case Stop():
                        self._stop(peer, message)
            finally:
                ipc.close_all(fds)

    def _stop(self, peer: Peer, message: Stop) -> None:
        if peer.uid != os.geteuid():
            peer.link.send(Denied("only the user who runs the daemon may stop it"))
            return
        self._keep_bubbles = message.keep_bubbles
        peer.link.send(Answer("stopping"))
        self.stopped.set()

    async def _enter(self, peer: Peer, message: Enter) -> None:
        """Serve a bubble for as long as its link lasts."""
        try:
            user = await self.directory.user(peer.uid)
            inside = [bubble for bubble, _ in self.bubbles.values()]
            bubble, groups = admit(
                self.loaded.site, user, peer.pid, message, inside, structural=self.structural
            )
        except (NotAdmitted, DirectorySilent) as error:
            peer.link.send(Denied(str(error)))
            return
        try:
            await self._host(peer, bubble, groups)
        finally:
            ipc.close_all(bubble.namespaces)

    async def _host(self, peer: Peer, bubble: Bubble, groups: tuple[str, ...]) -> None:
        try:
            post = self._manning.man(Post(bubble.zone, bubble.user, peer.uid, groups))
        except (OSError, JournalUnusable) as error:
            peer.link.send(Denied(f"the names of zone {bubble.zone} cannot be kept: {error}"))
            return
        key = (bubble.zone, peer.uid)
        self.bubbles[bubble.id] = (bubble, peer)
        self.waiting.pop(bubble.id, None)
        self._remember()
        try:
            async with asyncio.timeout(ENTER_LIMIT_S):
                worker = await self._manning.worker_of(post)
            # Only now: a worker that is just beginning serves every bubble that it finds at its post.
            post.bubbles[bubble.id] = bubble
            await worker.serve(bubble)
            peer.link.send(
                Entered(bubble.id, bubble.zone, bubble.enforcement, self.loaded.roots(bubble.zone))
            )
            while True:
                _, more = await peer.link.receive()
                ipc.close_all(more)
        except (CrewError, KeyError, TimeoutError) as error:
            peer.link.send(Denied(str(error) or "its worker does not start; see the daemon's messages"))
        finally:
            post.bubbles.pop(bubble.id, None)
            self.bubbles.pop(bubble.id, None)
            if key in self.workers:
                self.workers[key].forget(bubble.id)
            allocator = self._allocators.get(*key)
            if allocator is not None and not self._keep_bubbles:
                allocator.release(bubble.id)
            self._remember()

    def _remember(self) -> None:
        """Keep a list of who is inside, for `cleanup` after a kill; nothing else depends on it."""
        if self.stopped.is_set():
            return
        with contextlib.suppress(OSError, ValueError):
            inside = [remains.Remaining.of(bubble.id, peer.pid) for bubble, peer in self.bubbles.values()]
            remains.remember(self.places.run, [*inside, *self.waiting.values()])
