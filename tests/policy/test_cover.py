"""The one question under every proof, asked of both engines about random boxes."""

from __future__ import annotations

from random import Random

import pytest

from proxy.flow import Because, Origin
from proxy.policy import cover
from proxy.policy.cover import AutoEngine, BoxEngine, TooHard, Z3Engine, shadowers
from proxy.policy.regions import Box, Cover, disjoint, meet

FULL = {"a": 0b1111, "b": 0b111, "c": 0b11, "d": 0b11111}


def box(rng: Random, most: int = 3) -> Box:
    names = rng.sample(sorted(FULL), rng.randint(1, most))
    return {name: rng.randint(1, FULL[name]) for name in names}


def covers(rng: Random, count: int) -> list[Cover]:
    return [Cover(Because(Origin.RULE, f"r{i}"), (box(rng, 2), box(rng))) for i in range(count)]


def points(of: Box) -> set[tuple[int, ...]]:
    """Every point of a box, one by one."""
    found: set[tuple[int, ...]] = {()}
    for name, full in FULL.items():
        mask = of.get(name, full)
        found = {(*p, i) for p in found for i in range(full.bit_length()) if mask >> i & 1}
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_box_sticks_out_if_and_only_if_a_point_does(seed: int) -> None:
    rng = Random(seed)
    boxes, z3 = BoxEngine(FULL), Z3Engine(FULL)
    answers = set()
    for _ in range(60):
        subject, others = box(rng), covers(rng, rng.randint(0, 7))
        left = points(subject) - {p for other in others for part in other.boxes for p in points(part)}
        answers.add(bool(left))
        for engine in (boxes, z3):
            escaped = engine.escape(subject, others)
            assert (escaped is not None) == bool(left)
            assert escaped is None or points(escaped) & left
        assert boxes.escape(subject, others) is None or points(boxes.escape(subject, others) or {}) <= left
    assert answers == {True, False}


def test_what_two_boxes_share_is_what_both_hold() -> None:
    rng = Random(1)
    for _ in range(300):
        one, two = box(rng), box(rng)
        shared = meet(one, two)
        assert (points(shared) if shared is not None else set()) == points(one) & points(two)
        assert disjoint(one, two) == (shared is None)


def test_shadowers_hold_the_box_and_none_of_them_can_be_left_out() -> None:
    rng, tried = Random(2), 0
    engine = BoxEngine(FULL)
    for _ in range(400):
        subject, others = box(rng), covers(rng, 6)
        if engine.escape(subject, others) is None:
            tried += 1
            needed = shadowers(FULL, [subject], others)
            assert engine.escape(subject, needed) is None
            for one in needed:
                assert engine.escape(subject, [c for c in needed if c is not one]) is not None
    assert tried > 20


def test_what_is_too_hard_for_boxes_goes_to_z3_or_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = Random(3)
    subject, others = {"a": 0b1111}, covers(rng, 30)
    wanted = Z3Engine(FULL).escape(subject, others)
    engine = AutoEngine(FULL)
    engine._boxes.max_steps = 0
    assert (engine.escape(subject, others) is None) == (wanted is None)
    monkeypatch.setattr(cover, "has_z3", lambda: False)
    with pytest.raises(TooHard, match="install zonegate"):
        engine.escape(subject, others)
