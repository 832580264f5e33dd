"""How long a reload keeps other work waiting: gaps in a loop that wants to run every millisecond.

python bench/reload.py [RULES]

The policy is loaded as a worker loads one, beside the loop. The machine's own gaps, measured before without
any load, stand beside it; more than one of them is the machine.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop
from policy import text

from proxy.worker import load_beside

TICK_S = 0.001


async def gaps_ms(work: asyncio.Future[object]) -> list[float]:
    """What passed between two turns, beyond the tick, until `work` is done; longest first."""
    found = []
    while not work.done():
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        found.append((time.perf_counter() - began - TICK_S) * 1000)
    return sorted(found, reverse=True)


async def main(rules: int) -> None:
    """Print both rows."""
    content = text(rules)
    idle = await gaps_ms(asyncio.ensure_future(asyncio.sleep(1)))
    loading = await gaps_ms(asyncio.ensure_future(load_beside(content, "bench.yaml")))
    for what, found in (("nothing", idle), (f"{rules} rules", loading)):
        middle, high = found[len(found) // 2], found[len(found) // 100]
        longest = f"longest {found[0]:.1f} ms"
        sys.stdout.write(
            f"{what:<12} median {middle:.2f} ms, 99 % {high:.2f} ms, {longest}, {len(found)} turns\n"
        )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
