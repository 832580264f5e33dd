"""The tunnels of a daemon: each has a keeper, whose news goes to the workers that use it and to the log.

Takes tunnels up and ends them; what is proved of one is its keeper's to judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping

from proxy import notify, renewal
from proxy.crew import Worker
from proxy.flow import TunnelState
from proxy.held import Held
from proxy.messages.worker import Lease
from proxy.site import Loaded, setup_of
from proxy.tunnels.base import Attestation
from proxy.tunnels.keeper import Keeper

type Start = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]


class Tunnels:
    """`keepers` by the names of tunnels. `start` runs what goes on; `workers` are those of the moment."""

    def __init__(self, start: Start, workers: Mapping[tuple[str, int], Worker], held: Held) -> None:
        self._start, self._workers, self._held = start, workers, held
        self.keepers: dict[str, Keeper] = {}
        self._keeping: dict[str, list[asyncio.Task[None]]] = {}

    def bring_up(self, loaded: Loaded) -> None:
        """Those of a site that are not there yet."""
        for name, tunnel in loaded.site.tunnels.items():
            if name in self.keepers:
                continue
            self.keepers[name] = keeper = Keeper(setup_of(tunnel), loaded.files[name])
            if words := self._held.over(name):
                keeper.hold_down(words)
            follow = renewal.follow(tunnel, keeper, self._renewed, notify.say)
            self._keeping[name] = [self._start(self._keep(keeper)), self._start(follow)]

    def end(self, names: Collection[str]) -> None:
        """Have tunnels end; their workers are the caller's to tell."""
        for name in names:
            for task in self._keeping.pop(name):
                task.cancel()
            del self.keepers[name]

    def lease_again(self, worker: Worker) -> None:
        """Tell a worker what is proved of its tunnels now."""
        for tunnel in worker.tunnels:
            if (keeper := self.keepers.get(tunnel)) is not None:
                worker.lease(_lease(keeper, keeper.now))

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
            words = f"tunnel {setup.name} ({setup.endpoint}) is {judged.state}"
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
        return [worker for worker in self._workers.values() if keeper.setup.name in worker.tunnels]


def _lease(keeper: Keeper, judged: Attestation) -> Lease:
    return Lease(
        keeper.setup.name, judged.state, judged.words, judged.peer, judged.proof_at_ns, judged.deadline_ns
    )
