"""Every post has a worker: one is kept at each, and when it ends another one comes.

A worker that has come is told what is proved of its tunnels, given the bubbles that were there before it and
its listeners, and answered for as long as it lives. What a post is, and who has one, is not decided here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Protocol

from proxy import name_service, notify, quota_service
from proxy.allocators import Allocators
from proxy.audit import AuditUnwritable
from proxy.crew import Worker
from proxy.inspectors import InspectingWorker
from proxy.locks import Locks
from proxy.messages.worker import FromWorker
from proxy.posts import Bubble, CrewError, Post
from proxy.quotas import Ledger
from proxy.segments import Segments
from proxy.site import Loaded
from proxy.tunnels.keeper import Keeper

WORKER_PAUSE_S, WORKER_PAUSE_MOST_S = 0.1, 5.0
STEADY_S = 10.0
SERVE_AGAIN_S = 0.2

type Start = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]


class Daemon(Protocol):
    """What the manning of posts needs of a supervisor."""

    loaded: Loaded
    structural: bool
    workers: dict[tuple[str, int], Worker]
    keepers: dict[str, Keeper]
    quotas: Ledger
    locks: Locks

    def lease_again(self, worker: Worker) -> None:
        """Tell a worker what is proved of its tunnels now."""


class Manning:
    """The posts of a daemon, by zone and user; the daemon's `workers` are those that serve at the moment."""

    def __init__(self, daemon: Daemon, segments: Segments, allocators: Allocators, start: Start) -> None:
        self._daemon, self._segments, self._allocators = daemon, segments, allocators
        self._start = start
        self._posts: dict[tuple[str, int], Post] = {}
        self._ready: dict[tuple[str, int], asyncio.Event] = {}
        self._manned: dict[tuple[str, int], asyncio.Task[None]] = {}

    def posts(self) -> list[Post]:
        """Every post."""
        return list(self._posts.values())

    def man(self, post: Post) -> Post:
        """The post of a zone and user, manned if it is not. Raises OSError, JournalUnusable."""
        key = (post.zone, post.uid)
        if key not in self._posts:
            if not post.ears:
                self._allocators.open(*key, self._daemon.loaded.site.max_names)
            self._posts[key] = post
            self._ready[key] = asyncio.Event()
            self._manned[key] = self._start(self._man(post))
        return self._posts[key]

    async def worker_of(self, post: Post) -> Worker:
        """The worker of a post, once there is one that serves. Raises KeyError when it has just ended."""
        key = (post.zone, post.uid)
        await self._ready[key].wait()
        return self._daemon.workers[key]

    async def dismiss(self, post: Post) -> None:
        """End a post and its worker."""
        key = (post.zone, post.uid)
        del self._posts[key]
        manned = self._manned.pop(key)
        manned.cancel()
        await asyncio.gather(manned, return_exceptions=True)

    async def _man(self, post: Post) -> None:
        """Keep a worker at a post; a new one within a second of the last one's end."""
        key = (post.zone, post.uid)
        pause_s = WORKER_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            zone = self._daemon.loaded.site.zones.get(post.zone)
            if zone is None:
                return  # a reload has taken the zone away, and dismisses the post in a moment
            worker = self._worker(post, inspects=zone.inspects)
            try:
                await worker.start()
                await self._attend(key, worker)
            except (CrewError, AuditUnwritable, OSError) as error:
                notify.say(str(error))
            finally:
                self._ready[key].clear()
                self._daemon.workers.pop(key, None)
                await worker.end()
            if worker.retired:
                continue
            pause_s = (
                WORKER_PAUSE_S if loop.time() - began > STEADY_S else min(pause_s * 2, WORKER_PAUSE_MOST_S)
            )
            notify.say(f"the worker of zone {post.zone} ended; its flows are cut, a new one comes")
            await asyncio.sleep(pause_s)

    def _worker(self, post: Post, *, inspects: bool) -> Worker:
        daemon = self._daemon
        kind = InspectingWorker if inspects else Worker
        return kind(
            post,
            daemon.loaded,
            daemon.keepers,
            self._segments,
            lambda message: self._answer(post, message),
            structural=daemon.structural,
            number=os.urandom(4).hex(),
            locked=lambda: daemon.locks.over(post.zone, post.uid),
        )

    def _answer(self, post: Post, message: FromWorker) -> object | None:
        """What a worker asks: a portion of a quota, or of names."""
        user = None if post.ears else post.user  # at a listener, it is the worker who knows
        daemon = self._daemon
        taken = quota_service.answer(daemon.quotas, daemon.loaded.policy, post.zone, user, message)
        allocator = self._allocators.get(post.zone, post.uid)
        return taken or (allocator and name_service.answer(allocator, post.bubbles, message))

    async def _attend(self, key: tuple[str, int], worker: Worker) -> None:
        """A worker's time of service: leases, the bubbles that were there before, and its questions."""
        if worker.loaded is not self._daemon.loaded:
            worker.retire()  # the site was reloaded while it started
            return
        self._daemon.workers[key] = worker
        for tunnel in worker.tunnels:
            worker.connect_holder(tunnel)
        self._daemon.lease_again(worker)
        worker.listen_explicitly()
        self._ready[key].set()
        again = [_serve_again(worker, bubble) for bubble in worker.post.bubbles.values()]
        tasks = [asyncio.create_task(one) for one in (*again, *worker.datagram_holders())]
        try:
            await worker.hear()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _serve_again(worker: Worker, bubble: Bubble) -> None:
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
