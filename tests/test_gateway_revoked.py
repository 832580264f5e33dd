"""The file of revoked certificates: what it may say, and when it counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gateway.judge import Client
from proxy.gateway.revoked import BadRevocations, Revocations, parse_revocations

DIGITS = "0123456789abcdef" * 4
CLIENT = Client("laptop", "sha256:" + DIGITS, "1f2e")
COLONS = ":".join(DIGITS[i : i + 2] for i in range(0, 64, 2)).upper()


@pytest.mark.parametrize(
    ("line", "means"),
    [
        (DIGITS, DIGITS),
        ("sha256:" + DIGITS, DIGITS),
        ("sha256 Fingerprint=" + COLONS, DIGITS),
        ("serial=001F2E", "1f2e"),
        ("1f:2e   # the lost one", "1f2e"),
        ("0", "0"),
    ],
)
def test_a_line_as_openssl_prints_it(line: str, means: str) -> None:
    assert parse_revocations(f"# comment\n\n{line}\r\n".encode()) == {means}


@pytest.mark.parametrize("line", ["laptop", "1f2x", DIGITS[:50], DIGITS + "0", "1f 2e", "é"])
def test_a_line_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(BadRevocations, match="line 2"):
        parse_revocations(f"1f\n{line}\n".encode())


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(junk: bytes) -> None:
    try:
        found = parse_revocations(junk)
    except BadRevocations:
        return
    assert all(set(entry) <= set("0123456789abcdef") for entry in found)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, text: str, at: float) -> None:
    path.write_text(text)
    os.utime(path, (at, at))


def test_an_addition_counts_at_once_and_a_removal_once_the_file_has_rested(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "revoked"
    write(path, "", clock.now)
    revocations = Revocations(path, clock)
    assert revocations.why_unwelcome(CLIENT) == ""
    write(path, "1f2e\n", clock.now + 1)
    assert revocations.refresh()
    assert revocations.why_unwelcome(CLIENT) == "this client's certificate is revoked"
    assert not revocations.refresh()
    clock.now += 10
    write(path, "", clock.now)  # an editor that writes the file anew
    revocations.refresh()
    assert revocations.lists(CLIENT)
    clock.now += 1
    write(path, "# back\n1f2e\n", clock.now)
    revocations.refresh()
    clock.now += 60
    revocations.refresh()
    assert revocations.lists(CLIENT)
    write(path, "# found again\n", clock.now)
    revocations.refresh()
    assert revocations.lists(CLIENT)
    clock.now += 2
    assert revocations.refresh()
    assert not revocations.lists(CLIENT)


def test_trouble_lets_nobody_in_and_forgets_nobody(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "revoked"
    write(path, DIGITS, clock.now - 10)
    revocations = Revocations(path, clock)
    other = Client("other", "sha256:" + "f" * 64, "2")
    assert revocations.lists(CLIENT)
    assert not revocations.why_unwelcome(other)
    spoilers: list[Callable[[], None]] = [
        lambda: write(path, "nonsense", clock.now),
        path.unlink,
        path.mkdir,
    ]
    for spoil in spoilers:
        spoil()
        revocations.refresh()
        assert revocations.trouble
        assert "cannot read" in revocations.why_unwelcome(other)
        assert revocations.lists(CLIENT)
        assert not revocations.lists(other)
    path.rmdir()
    write(path, "", clock.now)
    assert revocations.refresh()
    assert revocations.trouble == ""
    assert revocations.lists(CLIENT)
    clock.now += 5
    revocations.refresh()
    assert not revocations.lists(CLIENT)


def test_a_huge_file_and_a_pipe_are_trouble(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    with path.open("wb") as file:
        file.truncate(5 * 1024 * 1024)
    assert "larger" in Revocations(path, Clock()).trouble


def test_without_a_file_nobody_is_revoked() -> None:
    revocations = Revocations(None, Clock())
    assert revocations.why_unwelcome(CLIENT) == ""
    assert not revocations.refresh()
