"""A policy in place of another: made beside the loop, freed in pieces, and nothing of the old one stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest
from loopback import turns

from proxy import replacement
from proxy.addresses import IPNetwork
from proxy.policy import Policy, Problems, load
from proxy.policy.source import Map, Node, Scalar, Seq, read, release
from proxy.replacement import FREED_PER_TURN, let_go, load_beside

SHIPPED = Path(__file__).parents[1] / "policies" / "corporate.policy.yaml"


def test_the_loop_turns_while_a_policy_is_made_and_the_policy_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is begun, the loop goes on as long as it likes, and only then it is made."""
    begun, go_on = threading.Event(), threading.Event()

    def load_at_a_word(text: bytes, file: str, networks: Iterable[IPNetwork]) -> Policy:
        begun.set()
        assert threading.current_thread() is not threading.main_thread(), "it is made in the loop itself"
        go_on.wait()
        return load(text, file, networks)

    monkeypatch.setattr(replacement, "load", load_at_a_word)

    async def scenario() -> Policy:
        work = asyncio.create_task(load_beside(SHIPPED.read_bytes(), "p"))
        while not begun.is_set():
            await asyncio.sleep(0)
        try:
            await turns()
            assert not work.done()
        finally:
            go_on.set()
        return await work

    policy = asyncio.run(scenario())
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
