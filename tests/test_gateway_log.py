"""The gateway's log: whole lines for their owner, and not more of them than strangers may cause."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.gateway.log import Log, LogUnwritable


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_only_the_owner_reads_it_and_foreign_text_stays_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path, Clock())
    log.write("connect", to='a"\n\u2028\x7f', bytes_up=3)
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert lines(path) == [
        {"at": "2026-01-01T00:00:00.000+00:00", "what": "connect", "to": 'a"\n\u2028\x7f', "bytes_up": 3}
    ]
    assert path.read_bytes().isascii()


def test_a_file_that_others_read_or_a_link_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.touch(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        Log(open_to_all, Clock())
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Log(link, Clock())


def test_strangers_cannot_fill_the_disk(tmp_path: Path) -> None:
    clock = Clock()
    log = Log(tmp_path / "log", clock)
    for _ in range(1000):
        log.note_stranger("no handshake", because="junk")
    assert len(lines(tmp_path / "log")) == 60
    log.note("end")
    clock.now += timedelta(minutes=1)
    log.note_stranger("no handshake", because="junk")
    assert [line["what"] for line in lines(tmp_path / "log")][-3:] == [
        "end",
        "not written down",
        "no handshake",
    ]
    assert lines(tmp_path / "log")[-2]["count"] == 940
    log.close()


def test_it_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path, Clock())
    log.write("before")
    path.rename(tmp_path / "log.1")
    log.reopen()
    log.write("after")
    log.close()
    assert [line["what"] for line in lines(path)] == ["after"]
    assert [line["what"] for line in lines(tmp_path / "log.1")] == ["before"]


def test_what_cannot_be_written_is_said_or_counted(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", Clock())
    log.close()
    with pytest.raises(LogUnwritable):
        log.write("connect")
    log.note("end")
    assert log.lost == 2
