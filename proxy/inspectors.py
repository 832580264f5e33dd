"""A worker with an inspector beside it, as their supervisor has them.

An inspector is started when its worker has a first flow for it, is told of every lease and policy that its
worker is told of, and is ended when it falls silent. When it has ended its flows have, and the next flow has
another one started.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from proxy import ipc, notify
from proxy.answers import Answers
from proxy.audit import AuditUnwritable
from proxy.crew import Worker
from proxy.flow import TunnelState
from proxy.inspection_ca import CaError
from proxy.link import Link
from proxy.messages.inspection import InspectorDoor, NoInspector, Prepare, TakeFrom, WantInspector
from proxy.messages.worker import FlowPage, FromWorker, Lease, Report
from proxy.policy.inspected import inspected
from proxy.posts import CrewError
from proxy.site import Loaded

SILENCE_LIMIT_S, LOOK_S = 10.0, 1.0
PAUSE_S, STEADY_S = 2.0, 10.0
INSPECTED_PAGES = 1 << 40
RENEW_EVERY = timedelta(days=1)


class Inspector(Worker):
    """One inspector process."""

    module = "inspector"
    _heard_at = 0.0
    _prepared_at = datetime.min.replace(tzinfo=UTC)

    def _configure(self, link: Link[FromWorker]) -> None:
        super()._configure(link)
        self.prepare()

    def prepare(self) -> None:
        """Give it what signs for clients, and the roots by which destinations are verified. CaError."""
        loaded, now = self.loaded, datetime.now(UTC)
        if loaded.inspection is None or loaded.trust is None or self._link is None:
            raise CrewError(f"zone {self.post.zone} has no inspection CA")
        scope = inspected(loaded.policy.model, [self.post.zone])
        signer = loaded.inspection.intermediate(scope, now)
        contents = (signer.pem(), signer.issued.key_pem, loaded.trust)
        fds = [ipc.memory_file("inspection", content) for content in contents]
        self._link.send(Prepare(loaded.site.zones[self.post.zone].http2), fds)
        ipc.close_all(fds)
        self._prepared_at = now

    def lease(self, lease: Lease) -> None:
        self.locked = self._is_locked()  # it is locked and unlocked with its worker
        super().lease(lease)

    def take_from(self, sock_fd: int) -> None:
        """Give it the link from its worker."""
        if self._link is not None:
            self._link.send(TakeFrom(), [sock_fd])

    def _hear(self, link: Link[FromWorker], message: FromWorker) -> None:
        if isinstance(message, Report):
            self._heard_at = asyncio.get_running_loop().time()
        super()._hear(link, message)

    async def hear(self) -> None:
        """Answer it until it is gone; CrewError when it says nothing for too long."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        hearing = asyncio.create_task(super().hear())
        try:
            while not hearing.done():
                await asyncio.wait([hearing], timeout=LOOK_S)
                if loop.time() - self._heard_at > SILENCE_LIMIT_S:
                    raise CrewError(f"the inspector of zone {self.post.zone} does not answer")
                if datetime.now(UTC) - self._prepared_at > RENEW_EVERY:
                    self.prepare()
        finally:
            hearing.cancel()


class BothAnswers(Answers):
    """Orders to a worker and to the inspector beside it, if there is one: done when both have done it."""

    def __init__(self, worker: InspectingWorker) -> None:
        super().__init__(worker._send)
        self._worker = worker

    @property
    def _beside(self) -> Answers | None:
        inspector = self._worker.inspector
        return inspector.answers if inspector is not None else None

    async def lock(self, words: str) -> int:
        beside = self._beside
        return await super().lock(words) + (await beside.lock(words) if beside else 0)

    async def cut(
        self, because: str, *, flow: str = "", host: str = "", port: int = 0, user: str = ""
    ) -> int:
        beside, fits = self._beside, {"flow": flow, "host": host, "user": user}
        cut = await super().cut(because, **fits, port=port)
        return cut + (await beside.cut(because, **fits, port=port) if beside else 0)

    async def replace_policy(self, text: bytes, file: str) -> int:
        beside = self._beside
        return await super().replace_policy(text, file) + (
            await beside.replace_policy(text, file) if beside else 0
        )

    async def flows(self, after: int, most: int) -> FlowPage:
        """First the worker's, then the inspector's, whose places are counted from INSPECTED_PAGES on."""
        beside = self._beside
        if after < INSPECTED_PAGES:
            page = await super().flows(after, most)
            if page.flows or beside is None:
                return replace(page, after=page.after or (INSPECTED_PAGES if beside else 0))
        if beside is None:
            return FlowPage(0, (), 0)
        page = await beside.flows(max(0, after - INSPECTED_PAGES), most)
        return replace(page, after=page.after + INSPECTED_PAGES if page.after else 0)


class InspectingWorker(Worker):
    """A worker of a zone that inspects."""

    _beside: Inspector | None = None
    _keeping: asyncio.Task[None] | None = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._leases: dict[str, Lease] = {}
        self.answers = BothAnswers(self)

    def reloaded(self, loaded: Loaded) -> None:
        super().reloaded(loaded)
        if self._beside is not None:
            self._beside.reloaded(loaded)
            try:
                self._beside.prepare()
            except (CrewError, CaError) as error:
                notify.say(str(error))
                self._beside.retire()

    @property
    def inspector(self) -> Inspector | None:
        """The inspector, while there is one."""
        return self._beside

    def lease(self, lease: Lease) -> None:
        super().lease(lease)
        if self.locked:
            lease = Lease(lease.tunnel, TunnelState.DOWN, self.locked, "", 0, 0)
        self._leases[lease.tunnel] = lease
        if self._beside is not None:
            self._beside.lease(lease)

    def connect_holder(self, tunnel: str) -> None:
        super().connect_holder(tunnel)
        if self._beside is not None:
            self._beside.connect_holder(tunnel)

    def renew(self, tunnel: str) -> None:
        super().renew(tunnel)
        if self._beside is not None:
            self._beside.renew(tunnel)

    def forget(self, bubble: str) -> None:
        super().forget(bubble)
        if self._beside is not None:
            self._beside.forget(bubble)

    def _hear(self, link: Link[FromWorker], message: FromWorker) -> None:
        if not isinstance(message, WantInspector):
            super()._hear(link, message)
        elif self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(link))

    async def _keep(self, link: Link[FromWorker]) -> None:
        """An inspector's time of service. The next one is not started at once after one that failed early."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        inspector = Inspector(
            self.post,
            self.loaded,
            self._keepers,
            self._segments,
            self._answer,
            structural=self._structural,
            number=os.urandom(4).hex(),
            locked=lambda: self.locked,
        )
        why = f"the inspector of zone {self.post.zone} ended; its flows are cut, a new one comes when needed"
        try:
            await inspector.start()
            if inspector.loaded is not self.loaded:
                raise CrewError("the site was reloaded while an inspector started")
            self._beside = inspector  # only now: it hears nothing before it is configured
            for lease in self._leases.values():
                inspector.lease(lease)
            ours, theirs = ipc.pair()
            with ours, theirs:
                inspector.take_from(theirs.fileno())
                link.send(InspectorDoor(), [ours.fileno()])
            await inspector.hear()
        except (CrewError, CaError, AuditUnwritable, OSError) as error:
            why = str(error)
        finally:
            self._beside = None
            await inspector.end()
        notify.say(why)
        if loop.time() - began < STEADY_S:
            await asyncio.sleep(PAUSE_S)
        link.send(NoInspector(why))

    async def end(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await super().end()
