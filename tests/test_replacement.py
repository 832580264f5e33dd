"""A policy in place of another: made beside the loop, freed in pieces, and nothing of the old one stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import weakref
from itertools import count
from pathlib import Path

import pytest

from proxy.policy import Policy, Problems, load
from proxy.policy.source import Map, Node, Scalar, Seq, read, release
from proxy.replacement import FREED_PER_TURN, let_go, load_beside

SHIPPED = Path(__file__).parents[1] / "policies" / "corporate.policy.yaml"


async def turns_during[T](work: asyncio.Task[T]) -> int:
    """How often the loop turns until some work is done."""
    for turns in count():
        if work.done():
            return turns
        await asyncio.sleep(0)
    raise AssertionError


def test_the_loop_turns_while_a_policy_is_made_and_the_policy_is_the_same() -> None:
    async def scenario() -> tuple[Policy, int]:
        work = asyncio.create_task(load_beside(SHIPPED.read_bytes(), "p"))
        turns = await turns_during(work)
        return work.result(), turns

    policy, turns = asyncio.run(scenario())
    assert turns > 1, "it was made in the loop itself"
    assert policy.model == load(SHIPPED.read_bytes(), "p").model


@pytest.mark.parametrize("text", [SHIPPED.read_bytes(), b"policy: 1"], ids=["good", "bad"])
def test_the_interpreter_is_set_as_before_whatever_the_file_is(text: bytes) -> None:
    interval_s = sys.getswitchinterval()
    try:
        with contextlib.suppress(Problems):
            asyncio.run(load_beside(text, "p"))
    finally:
        gc.unfreeze()
    assert gc.isenabled()
    assert sys.getswitchinterval() == interval_s


def test_a_policy_ends_with_its_last_reference_and_needs_no_collector() -> None:
    gc.disable()
    try:
        policy = load(SHIPPED.read_bytes(), "p")
        end = weakref.ref(policy)
        parts = policy.parts()
        assert all(rule in parts for rule in policy.model.rules)
        del policy
        assert end() is None
    finally:
        gc.enable()


def test_parts_are_let_go_of_in_turns() -> None:
    class Part:
        pass

    parts: list[object] = [Part() for _ in range(3 * FREED_PER_TURN)]
    ends = [weakref.ref(part) for part in parts]

    async def scenario() -> list[int]:
        work = asyncio.create_task(let_go(parts))
        alive = []
        while not work.done():
            await asyncio.sleep(0)
            alive.append(sum(end() is not None for end in ends))
        return alive

    alive = asyncio.run(scenario())
    assert alive[:3] == [2 * FREED_PER_TURN, FREED_PER_TURN, 0]


def test_a_tree_is_taken_apart_whole() -> None:
    def places(node: Node) -> list[Node]:
        match node:
            case Map():
                return [node, *(inner for _, value in node.entries for inner in places(value))]
            case Seq():
                return [node, *(inner for item in node.items for inner in places(item))]
            case Scalar():
                return []

    root = read(SHIPPED.read_bytes(), "p")
    containers = places(root)
    release(root)
    assert len(containers) > 20
    assert not any(c.entries if isinstance(c, Map) else isinstance(c, Seq) and c.items for c in containers)
