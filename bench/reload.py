"""How long a reload keeps other work waiting.

python bench/reload.py [RULES [TIMES]]

First the gaps in a loop that wants to run every millisecond, while a policy is loaded, put in place of
another and the other let go of, as a worker does it. After each time the loop runs as long with nothing to
do: those gaps are the machine's. A machine with other work to do also stops the thread that loads while it
holds the interpreter, so on such a one look at the second table: the longest steps, in CPU time, in which
threads cannot change.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Iterator
from types import FrameType

import uvloop
from policy import text
from rich.console import Console
from rich.table import Table

from proxy.policy import Policy, load
from proxy.replacement import let_go, load_beside

TICK_S = 0.001
PERCENT = (50, 99, 99.9, 100)
STEPS, RUNS = 5, 3


async def gaps_ms(work: Awaitable[None]) -> list[float]:
    """What passed between two turns, beyond the tick, until `work` is done."""
    found = []
    running = asyncio.ensure_future(work)
    while not running.done():
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        found.append((time.perf_counter() - began - TICK_S) * 1000)
    await running
    return found


class Holder:
    """What a worker's gate is to a policy: the one that holds it."""

    policy: Policy
    swap_ms: float = 0

    async def replace(self, content: bytes) -> None:
        policy = await load_beside(content, "bench.yaml")
        began = time.thread_time()
        old_parts = self.policy.parts()
        self.policy = policy
        self.swap_ms = max(self.swap_ms, (time.thread_time() - began) * 1000)
        await let_go(old_parts)


def row(gaps: list[float]) -> Iterator[str]:
    ordered = sorted(gaps)
    for percent in PERCENT:
        yield f"{ordered[max(0, int(len(ordered) * percent / 100) - 1)]:.2f}"


def longest_steps_ms(content: bytes) -> list[tuple[float, str]]:
    """The longest times between two calls or returns while a policy is loaded: the best of some runs."""
    runs = [steps_ns(content) for _ in range(RUNS)]
    best = {where: min(run.get(where, 0) for run in runs) for where in runs[0]}
    return sorted(((took / 1e6, where) for where, took in best.items()), reverse=True)[:STEPS]


def steps_ns(content: bytes) -> dict[str, int]:
    found: dict[str, int] = {}
    last = 0

    def seen(frame: FrameType, event: str, _: object) -> None:
        nonlocal last
        took = time.thread_time_ns() - last
        where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
        found[where] = max(took, found.get(where, 0))
        last = time.thread_time_ns()

    gc.disable()
    last = time.thread_time_ns()
    sys.setprofile(seen)
    policy = load(content, "bench.yaml")
    sys.setprofile(None)
    gc.enable()
    assert policy
    return found


async def main(rules: int, times: int) -> None:
    """Print both tables."""
    content = text(rules)
    holder = Holder()
    holder.policy = await load_beside(content, "bench.yaml")
    idle: list[float] = []
    reloading: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        reloading += await gaps_ms(holder.replace(content))
        idle += await gaps_ms(asyncio.sleep(time.perf_counter() - began))
    gaps = Table("gaps in ms", "turns", *(f"{percent} %" for percent in PERCENT), title="reloads")
    gaps.add_row("nothing to do", str(len(idle)), *row(idle))
    gaps.add_row(f"{times} reloads of {rules} rules", str(len(reloading)), *row(reloading))
    steps = Table("longest steps", "ms of CPU")
    steps.add_row("one policy in place of another", f"{holder.swap_ms:.2f}")
    for took, where in longest_steps_ms(content):
        steps.add_row(where, f"{took:.2f}")
    Console().print(gaps, steps)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    uvloop.run(main(*(numbers + [2000, 10][len(numbers) :])))
