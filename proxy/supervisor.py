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
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from proxy import ipc, name_service, notify, paths, prctl, remains, renewal, sandbox
from proxy.admin import AdminSocket, Peer
from proxy.allocator import Allocator
from proxy.audit import AuditUnwritable
from proxy.crew import Bubble, CrewError, Post, Worker
from proxy.flow import TunnelState
from proxy.journal import JournalUnusable
from proxy.messages.admin import Answer, Ask, Denied, Enter, Entered, Leave, Stop
from proxy.messages.worker import Lease
from proxy.reception import NotAdmitted, admit, identity
from proxy.segments import Segments
from proxy.site import Loaded, SiteError, setup_of
from proxy.state import answer_question
from proxy.tunnels.base import Attestation
from proxy.tunnels.keeper import Keeper

WORKER_PAUSE_S, WORKER_PAUSE_MOST_S = 0.1, 5.0
STEADY_S = 10.0
SERVE_AGAIN_S = 0.2
LEAVE_LIMIT_S = 7.0
ADOPTION_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where this daemon keeps its socket and what outlives it."""

    run: Path
    state: Path

    @classmethod
    def of(cls, loaded: Loaded, environment: Mapping[str, str]) -> Places:
        """The places that the site names, or those of this user."""
        site, uid = loaded.site, os.geteuid()
        return cls(
            site.run or paths.run_directory(uid, environment),
            site.state or paths.state_directory(uid, environment),
        )


async def supervise(loaded: Loaded, places: Places, *, cooperative: bool) -> bool:
    """Run the daemon until SIGTERM, SIGINT or `zonegate stop`. SiteError, AdminError at the start.

    False when it stopped because of a fault of its own.
    """
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
        self._posts: dict[tuple[str, int], Post] = {}
        self._ready: dict[tuple[str, int], asyncio.Event] = {}
        self._allocators: dict[tuple[str, int], Allocator] = {}
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
            self._segments = Segments(state / "audit", clock=lambda: datetime.now(UTC))
            undo.callback(os.close, self._segments.claim())
            self._segments.seal_left_over()
        except (OSError, AuditUnwritable) as error:
            raise SiteError(f"{state}: {error}") from error
        undo.callback(self._close_allocators)
        undo.push_async_callback(self._end_tasks)
        for name, tunnel in self.loaded.site.tunnels.items():
            self.keepers[name] = keeper = Keeper(setup_of(tunnel), self.loaded.files[name])
            self._start(self._keep(keeper))
            self._start(renewal.follow(tunnel, keeper, self._renewed, notify.say))
        undo.push_async_callback(self._admin.hang_up)
        undo.callback(self._admin.close)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.stopped.set)
        try:
            self._start_own_workers()
        except (OSError, JournalUnusable) as error:
            raise SiteError(f"{state}: {error}") from error

    async def _release_the_gone(self, allocator: Allocator) -> None:
        """Bubbles of an earlier daemon that did not come back have ended."""
        await asyncio.sleep(ADOPTION_LIMIT_S)
        for bubble in allocator.bubbles() - self.bubbles.keys():
            allocator.release(bubble)

    def _allocator(self, zone: str, uid: int) -> Allocator:
        """The names of one user in one zone: what others asked for is nobody's to infer from an address."""
        journal = self.places.state / f"names-{zone}-{uid}.jsonl"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        quota = self.loaded.site.max_names
        return Allocator(journal, clock=lambda: datetime.now(UTC).timestamp(), boot=boot, quota=quota)

    def _close_allocators(self) -> None:
        for allocator in self._allocators.values():
            allocator.close()

    def _start_own_workers(self) -> None:
        """Have the workers of our own user ready before the first bubble asks."""
        uid = os.geteuid()
        for zone in self.loaded.site.zones:
            user = identity(uid)
            allowed = self.loaded.site.may_enter(zone, uid, user.login, user.groups)
            if allowed is not None:
                self._post(Post(zone, user.login, uid, allowed))

    async def dismiss(self) -> None:
        """Send the bubbles home, unless they are to be kept, and wait for them."""
        self._admin.close()
        if self._keep_bubbles:
            return
        (self.places.run / remains.FILE).unlink(missing_ok=True)
        for _, peer in self.bubbles.values():
            peer.link.send(Leave())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_LIMIT_S):
                while self.bubbles:
                    await asyncio.sleep(0.02)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours that raises is a bug, and a daemon with a bug stops rather than limps."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            notify.say(f"stopping: {task.exception()!r}")
            self.faulty = True
            self.stopped.set()

    # -- tunnels -----------------------------------------------------------------------------------

    async def _keep(self, keeper: Keeper) -> None:
        generation = 0
        said = ""
        async for judged in keeper.keep():
            if keeper.generation != generation:
                generation = keeper.generation
                for worker in self._workers_of(keeper):
                    worker.connect_holder(keeper.setup.name)
            for worker in self._workers_of(keeper):
                worker.lease(_lease(keeper, judged))
            setup = keeper.setup
            words = f"tunnel {setup.name} ({setup.host}:{setup.port}) is {judged.state}"
            if judged.words != judged.state:
                words += f": {judged.words}"
            # A stale tunnel's words count the seconds; that it is stale is said once.
            what = str(judged.state) if judged.state is TunnelState.STALE else words
            if what != said:
                said = what
                notify.say(words)

    def _renewed(self, keeper: Keeper) -> None:
        for worker in self._workers_of(keeper):
            worker.renew(keeper.setup.name)

    def _workers_of(self, keeper: Keeper) -> list[Worker]:
        zones = self.loaded.site.zones
        return [
            worker for (zone, _), worker in self.workers.items() if keeper.setup.name in zones[zone].tunnels
        ]

    # -- workers -----------------------------------------------------------------------------------

    def _post(self, post: Post) -> Post:
        """The post of a zone and user, manned if it is not."""
        key = (post.zone, post.uid)
        if key not in self._posts:
            self._allocators[key] = allocator = self._allocator(*key)
            self._start(self._release_the_gone(allocator))
            self._posts[key] = post
            self._ready[key] = asyncio.Event()
            self._start(self._man(post))
        return self._posts[key]

    async def _man(self, post: Post) -> None:
        """Keep a worker at a post; a new one within a second of the last one's end."""
        key = (post.zone, post.uid)
        allocator = self._allocators[key]
        pause_s = WORKER_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            worker = Worker(
                post,
                self.loaded,
                self.keepers,
                self._segments,
                lambda message: name_service.answer(allocator, post.bubbles, message),
                structural=self.structural,
                number=os.urandom(4).hex(),
            )
            try:
                await worker.start()
                await self._attend(key, worker)
            except (CrewError, AuditUnwritable, OSError) as error:
                notify.say(str(error))
            finally:
                self._ready[key].clear()
                self.workers.pop(key, None)
                await worker.end()
            pause_s = (
                WORKER_PAUSE_S if loop.time() - began > STEADY_S else min(pause_s * 2, WORKER_PAUSE_MOST_S)
            )
            notify.say(f"the worker of zone {post.zone} ended; its flows are cut, a new one comes")
            await asyncio.sleep(pause_s)

    async def _attend(self, key: tuple[str, int], worker: Worker) -> None:
        """A worker's time of service: leases, the bubbles that were there before, and its questions."""
        self.workers[key] = worker
        for tunnel in self.loaded.site.zones[key[0]].tunnels:
            keeper = self.keepers[tunnel]
            worker.connect_holder(tunnel)
            worker.lease(_lease(keeper, keeper.now))
        self._ready[key].set()
        again = [self._serve_again(worker, bubble) for bubble in worker.post.bubbles.values()]
        tasks = [asyncio.create_task(one) for one in again]
        try:
            await worker.hear()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_again(self, worker: Worker, bubble: Bubble) -> None:
        """Have a new worker serve a bubble while it is there; the last worker's ears may still be open."""
        said = ""
        while worker.post.bubbles.get(bubble.id) is bubble:
            try:
                await worker.serve(bubble)
                return
            except CrewError as error:
                if str(error) != said:
                    said = str(error)
                    notify.say(f"bubble {bubble.id}: {error}")
                await asyncio.sleep(SERVE_AGAIN_S)

    # -- commands ----------------------------------------------------------------------------------

    async def _serve(self, peer: Peer) -> None:
        """Answer one command until it hangs up."""
        while True:
            message, fds = await peer.link.receive()
            try:
                match message:
                    case Ask():
                        user = await asyncio.to_thread(identity, peer.uid)
                        text = answer_question(self, message.what, message.parameters, user)
                        peer.link.send(Answer(text))
                    case Enter():
                        await self._enter(peer, message, fds)
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

    async def _enter(self, peer: Peer, message: Enter, fds: list[int]) -> None:
        """Serve a bubble for as long as its link lasts."""
        try:
            user = await asyncio.to_thread(identity, peer.uid)  # while it is asked, leases go on
            bubble, groups = admit(
                self.loaded.site, user, peer.pid, message, fds, self.bubbles, structural=self.structural
            )
        except NotAdmitted as error:
            peer.link.send(Denied(str(error)))
            return
        try:
            post = self._post(Post(bubble.zone, bubble.user, peer.uid, groups))
        except (OSError, JournalUnusable) as error:
            peer.link.send(Denied(f"the names of zone {bubble.zone} cannot be kept: {error}"))
            return
        key = (bubble.zone, peer.uid)
        self.bubbles[bubble.id] = (bubble, peer)
        self._remember()
        try:
            async with asyncio.timeout(LEAVE_LIMIT_S):
                await self._ready[key].wait()
            # Only now: a worker that is just beginning serves every bubble that it finds at its post.
            post.bubbles[bubble.id] = bubble
            await self.workers[key].serve(bubble)
            peer.link.send(Entered(bubble.id, bubble.zone, bubble.enforcement))
            while True:
                _, more = await peer.link.receive()
                ipc.close_all(more)
        except (CrewError, KeyError, TimeoutError) as error:
            peer.link.send(Denied(str(error) or "its worker does not start; see the daemon's messages"))
        finally:
            post.bubbles.pop(bubble.id, None)
            self.bubbles.pop(bubble.id, None)
            self._remember()
            if key in self.workers:
                self.workers[key].forget(bubble.id)
            if not self._keep_bubbles:
                self._allocators[key].release(bubble.id)

    def _remember(self) -> None:
        """Keep a list of who is inside, for `cleanup` after a kill; nothing else depends on it."""
        if self.stopped.is_set():
            return
        with contextlib.suppress(OSError):
            inside = [remains.Remaining(bubble.id, peer.pid) for bubble, peer in self.bubbles.values()]
            remains.remember(self.places.run, inside)


def _lease(keeper: Keeper, judged: Attestation) -> Lease:
    return Lease(
        keeper.setup.name, judged.state, judged.words, judged.peer, judged.proof_at_ns, judged.deadline_ns
    )
