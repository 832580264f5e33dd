"""A policy in place of another while flows go on: made beside the loop, and let go of a little at a time.

Whatever holds the interpreter in one step stalls every flow of a worker. A policy of thousands of rules has
three such steps: threads that change late, a collection of garbage that walks over all of it, and the end of
the policy before it.
"""

from __future__ import annotations

import asyncio
import gc
import sys

from proxy.allocator import OWN_NETWORKS
from proxy.policy import Policy, load

SWITCH_S = 0.0002
FREED_PER_TURN = 200


async def load_beside(text: bytes, file: str) -> Policy:
    """A policy, compiled in a thread while the loop goes on. Raises Problems.

    No garbage is collected meanwhile, and afterwards what is alive counts as here to stay, so that no later
    collection walks over the policy. It has no cycles: it ends with its last reference.
    """
    interval_s = sys.getswitchinterval()
    collects = gc.isenabled()
    sys.setswitchinterval(SWITCH_S)
    gc.disable()
    try:
        return await asyncio.to_thread(load, text, file, OWN_NETWORKS)
    finally:
        sys.setswitchinterval(interval_s)
        gc.freeze()
        if collects:
            gc.enable()


async def let_go(parts: list[object]) -> None:
    """Forget the parts of a policy whose last holder the caller is, and let the loop turn in between."""
    while parts:
        del parts[-FREED_PER_TURN:]
        await asyncio.sleep(0)
