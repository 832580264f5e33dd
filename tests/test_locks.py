"""What is locked stays locked: through a restart, and whatever became of its file."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from proxy import locks
from proxy.locks import EVERY_ZONE, EVERYBODY, Lock, Locks


def lock(zone: str = EVERY_ZONE, uid: int = EVERYBODY, by_uid: int = 0, reason: str = "laptop lost") -> Lock:
    return Lock(zone, uid, "root", by_uid, reason, "2026-01-05T10:00:00+00:00")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / locks.FILE


def test_without_a_file_nothing_is_locked(path: Path) -> None:
    assert Locks(path, "now").over("corporate", 1000) == ""


@pytest.mark.parametrize(
    "held, zone, uid, is_locked",
    [
        (lock(), "corporate", 1000, True),
        (lock("corporate"), "corporate", 1000, True),
        (lock("lab"), "corporate", 1000, False),
        (lock(uid=1000), "corporate", 1000, True),
        (lock(uid=1001), "corporate", 1000, False),
        (lock("corporate", 1000), "lab", 1000, False),
    ],
)
def test_a_lock_covers(path: Path, held: Lock, zone: str, uid: int, is_locked: bool) -> None:
    there = Locks(path, "now")
    there.add(held)
    assert bool(there.over(zone, uid)) is is_locked
    if is_locked:
        assert there.over(zone, uid) == "locked by root at 2026-01-05T10:00:00+00:00: laptop lost"


def test_what_was_saved_is_there_after_a_restart_and_what_was_removed_is_not(path: Path) -> None:
    there = Locks(path, "now")
    first, second = lock("corporate"), lock("lab", 1000, 1000)
    there.add(first)
    there.add(second)
    asyncio.run(there.save())
    assert path.stat().st_mode & 0o777 == 0o600
    assert Locks(path, "later").in_force == (first, second)
    asyncio.run(there.remove([first]))
    assert Locks(path, "later").in_force == there.in_force == (second,)
    assert [one.name for one in path.parent.iterdir()] == [path.name], "no draft is left"


def test_the_same_lock_again_has_the_new_reason(path: Path) -> None:
    there = Locks(path, "now")
    there.add(lock(reason="first"))
    there.add(lock(reason="second"))
    assert [one.reason for one in there.in_force] == ["second"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}x",
        "null",
        "7",
        "[7]",
        "[{}]",
        '{"zone": "corporate"}',
        json.dumps([{"zone": "", "uid": "-1", "by": "a", "by_uid": 0, "reason": "", "at": ""}]),
        json.dumps([{"zone": "", "uid": True, "by": "a", "by_uid": 0, "reason": "", "at": ""}]),
        json.dumps([{"zone": "", "uid": -1, "by": "a", "by_uid": 0, "reason": "", "at": "", "more": 1}]),
        "[" * 100_000,
    ],
)
def test_a_file_that_cannot_be_read_locks_everything(path: Path, text: str) -> None:
    path.write_text(text)
    there = Locks(path, "now")
    assert "cannot be read" in there.over("corporate", 1000)
    asyncio.run(there.remove(there.in_force))
    assert Locks(path, "now").in_force == (), "and whoever may open it, opens it"


def test_a_directory_in_its_place_locks_everything(path: Path) -> None:
    path.mkdir()
    assert "Is a directory" in Locks(path, "now").over("corporate", 1000)


def test_what_cannot_be_written_stays_as_it_is(path: Path) -> None:
    there = Locks(path, "now")
    there.add(lock())
    path.with_name(f".{path.name}").mkdir()
    with pytest.raises(OSError):
        asyncio.run(there.save())
    with pytest.raises(OSError):
        asyncio.run(there.remove(there.in_force))
    assert there.over("corporate", 1000), "what could not be opened on the disk is not open"


def test_what_stays_locked_stays_so_after_a_restart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the shorter list is in place already, and only that it lasts cannot be had."""
    there = Locks(path, "now")
    there.add(lock())
    asyncio.run(there.save())
    sync, failed = os.fsync, list[int]()

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) and not failed:
            failed.append(fd)
            raise OSError(5, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        asyncio.run(there.remove([lock()]))
    assert failed and there.in_force == (lock(),)
    assert Locks(path, "now").in_force == (lock(),)
