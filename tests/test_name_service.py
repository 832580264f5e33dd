"""Questions of workers about names: an answer for a worker's own bubbles, and for no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.allocator import Allocator, Synthetic
from proxy.messages.worker import (
    AddressAnswer,
    AskAddress,
    AskName,
    FromWorker,
    NameAnswer,
    Report,
    WantSegment,
)
from proxy.name_service import answer

MINE, OTHERS = "0-0123456789ab", "1000-0123456789ab"


@pytest.fixture
def allocator(tmp_path: Path) -> Iterator[Allocator]:
    there = Allocator(tmp_path / "names", clock=lambda: 0.0, boot="boot", quota=2)
    yield there
    there.close()


def test_a_name_gets_its_addresses_and_they_lead_back_to_it(allocator: Allocator) -> None:
    told = answer(allocator, [MINE], AskName(4, MINE, "one.example"))
    found = allocator.allocate(MINE, "one.example")
    assert isinstance(found, Synthetic)
    assert told == NameAnswer(4, str(found.v4), str(found.v6), "", "", "")
    for address in (found.v4, found.v6):
        assert answer(allocator, [MINE], AskAddress(5, MINE, str(address))) == AddressAnswer(5, "one.example")


def test_a_refusal_says_why_and_what_to_do(allocator: Allocator) -> None:
    for name in ("one.example", "two.example"):
        allocator.allocate(MINE, name)
    told = answer(allocator, [MINE], AskName(4, MINE, "three.example"))
    assert isinstance(told, NameAnswer)
    assert (told.v4, told.v6, told.fault) == ("", "", "names-quota")
    assert told.refused and told.cure


def test_a_worker_is_told_nothing_for_bubbles_that_are_not_its_own(allocator: Allocator) -> None:
    """A worker that was taken over could otherwise read what the bubbles of others asked for."""
    found = allocator.allocate(OTHERS, "secret.example")
    assert isinstance(found, Synthetic)
    assert answer(allocator, [MINE], AskAddress(1, OTHERS, str(found.v4))) == AddressAnswer(1, "")
    assert answer(allocator, [MINE], AskAddress(1, MINE, str(found.v4))) == AddressAnswer(1, "")
    told = answer(allocator, [MINE], AskName(1, OTHERS, "new.example"))
    assert isinstance(told, NameAnswer)
    assert (told.v4, told.fault) == ("", "names-unknown")
    assert allocator.bubbles() == {OTHERS}
    assert answer(allocator, [OTHERS], AskAddress(1, OTHERS, str(found.v4))) == AddressAnswer(
        1, "secret.example"
    )


@pytest.mark.parametrize(
    "address", ["", "junk", "192.0.2.1", "198.18.0.0", "198.19.255.255", "::1", "1" * 5000]
)
def test_what_was_never_told_has_no_name(allocator: Allocator, address: str) -> None:
    assert answer(allocator, [MINE], AskAddress(1, MINE, address)) == AddressAnswer(1, "")


@pytest.mark.parametrize("name", ["", "Not.Canonical", "a..b", "198.18.0.1", "x" * 5000, "a\nb"])
def test_what_is_no_name_gets_no_address(allocator: Allocator, name: str) -> None:
    told = answer(allocator, [MINE], AskName(1, MINE, name))
    assert isinstance(told, NameAnswer) and (told.v4, told.fault) == ("", "names-invalid")


@pytest.mark.parametrize(
    "message", [WantSegment(), Report(0, 0, 0, 0, 0, "", "", 0)], ids=lambda m: type(m).__name__
)
def test_other_messages_are_not_questions(allocator: Allocator, message: FromWorker) -> None:
    assert answer(allocator, [MINE], message) is None
