"""What a killed daemon leaves: the list of who was inside, and their end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy import ipc, remains, sandbox, syscalls
from proxy.remains import FILE, Remaining

type Start = Callable[[str], subprocess.Popen[bytes]]
QUIET = "import time; print(flush=True); time.sleep(1000)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {QUIET}"


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def one(code: str = QUIET) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process

    yield one
    for process in started:
        process.kill()
        process.communicate()


def of(process: subprocess.Popen[bytes], bubble: str = "0-0123456789ab") -> Remaining:
    return Remaining.of(bubble, process.pid)


def test_who_is_remembered_remains(tmp_path: Path, start: Start) -> None:
    one, two = of(start(QUIET), "0-1"), of(start(QUIET), "0-2")
    remains.remember(tmp_path, [one, two])
    assert remains.remaining(tmp_path) == [one, two]
    remains.remember(tmp_path, [two])
    assert remains.remaining(tmp_path) == [two]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_who_has_ended_does_not_remain(tmp_path: Path, start: Start) -> None:
    process = start(QUIET)
    remains.remember(tmp_path, [of(process)])
    process.kill()
    process.wait()
    assert remains.remaining(tmp_path) == []


def test_a_number_that_is_used_again_is_nobody(tmp_path: Path, start: Start) -> None:
    """A process is its number and its start together; another one must not be ended for it."""
    process = start(QUIET)
    remains.remember(tmp_path, [of(process)])
    (row,) = json.loads((tmp_path / FILE).read_text())
    row["started"] = str(int(row["started"]) - 1)
    (tmp_path / FILE).write_text(json.dumps([row]))
    assert remains.remaining(tmp_path) == []
    remains.end(remains.remaining(tmp_path))
    assert process.poll() is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[",
        '[{"bubble": "0-1", "pid": 1',
        "null",
        "7",
        '{"bubble": "0-1"}',
        "[7]",
        "[{}]",
        '[{"bubble": "0-1", "pid": "x", "started": "1"}]',
        '[{"bubble": "0-1", "pid": null, "started": "1"}]',
        '[{"bubble": "0-1", "pid": 1, "started": ""}]',
        '[{"bubble": "0-1", "pid": 999999999999, "started": ""}]',
        '[{"bubble": "0-1", "pid": -1, "started": ""}]',
    ],
)
def test_a_list_that_is_missing_or_torn_is_empty(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    assert remains.remaining(tmp_path) == []


@pytest.mark.parametrize("name", [b"') 1 2 3 4 5 6 7 8 9 0 1 2", "документ".encode(), b"\xff"])
def test_a_process_whose_name_is_meant_to_confuse(tmp_path: Path, start: Start, name: bytes) -> None:
    """The kernel cuts it after 15 bytes, also within a letter."""
    process = start(f"open('/proc/self/comm','wb').write({name[:15]!r}); {QUIET}")
    remains.remember(tmp_path, [of(process)])
    (row,) = json.loads((tmp_path / FILE).read_text())
    stat = Path(f"/proc/{process.pid}/stat").read_bytes()
    assert row["started"] == stat[stat.rindex(b")") + 2 :].split()[19].decode()
    remains.end_unbegun()
    assert process.poll() is None


def test_they_are_asked_to_end(start: Start) -> None:
    processes = [start(QUIET), start(QUIET)]
    remains.end(map(of, processes))
    assert [process.wait() for process in processes] == [-signal.SIGTERM] * 2


def test_who_does_not_listen_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "GRACE_S", 0.05)
    stubborn = start(STUBBORN)
    remains.end([of(stubborn)])
    assert stubborn.wait() == -signal.SIGKILL


def test_who_ends_at_once_is_not_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its parent has not heard of it yet; else this would take an hour."""
    monkeypatch.setattr(remains, "GRACE_S", 3600)
    process = start(QUIET)
    remains.end([of(process)])
    assert process.wait() == -signal.SIGTERM


def test_who_is_gone_already_is_passed_over(start: Start) -> None:
    gone, there = start(QUIET), start(QUIET)
    gone.kill()
    gone.wait()
    remains.end([of(gone), of(there)])
    assert there.wait() == -signal.SIGTERM


# -- sandboxes that never began ----------------------------------------------------------------------

type Unbegun = Callable[[list[str]], tuple[subprocess.Popen[bytes], int]]


@pytest.fixture
def unbegun() -> Iterator[Unbegun]:
    """bubblewrap around a sealed process, held where its child waits for the word, and that child."""
    held_read, held_write = os.pipe()
    info_read, info_write = os.pipe()
    filter_fd = ipc.memory_file("seccomp", syscalls.worker_filter())
    started: list[int] = []

    def one(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
        name, *words = sandbox.sealed(command, filter_fd)
        process = subprocess.Popen(
            [name, "--info-fd", str(info_write), "--userns-block-fd", str(held_read), *words],
            pass_fds=(held_read, info_write, filter_fd),
            start_new_session=True,
        )
        started.append(process.pid)
        told = b""
        while not told.rstrip().endswith(b"}"):
            told += os.read(info_read, 4096)
        started.append(json.loads(told)["child-pid"])
        return process, started[-1]

    yield one
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for fd in (held_read, held_write, info_read, info_write, filter_fd):
        os.close(fd)


def is_there(pid: int) -> bool:
    """Whether a process is there, and not just waiting for whoever inherited it."""
    return remains._stat(pid)[:1] not in ([], ["Z"], ["X"])


def test_a_sandbox_that_will_never_begin_is_ended(unbegun: Unbegun) -> None:
    process, child = unbegun(sandbox.python_command("worker", "9"))
    process.kill()
    process.wait()
    remains.end_unbegun()
    with contextlib.suppress(ProcessLookupError):
        ended = select.poll()
        ended.register(os.pidfd_open(child), select.POLLIN)
        assert ended.poll(60_000)
    assert not is_there(child)


def test_a_sandbox_that_is_about_to_begin_is_left(unbegun: Unbegun) -> None:
    process, child = unbegun(sandbox.python_command("worker", "9"))
    remains.end_unbegun()
    assert process.poll() is None and is_there(child)
    process.kill()
    process.wait()


def test_somebody_elses_sandbox_is_left(unbegun: Unbegun) -> None:
    """It stays as it is, which is also to say that bubblewrap does not see to it."""
    process, child = unbegun(["python3", "-c", "somebody's own"])
    process.kill()
    process.wait()
    remains.end_unbegun()
    assert is_there(child)


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        (["bwrap", "--setenv", "ZONEGATE_ZONE", "corporate", "--", "firefox"], True),
        (["bwrap", *sandbox.python_command("worker", "9")], True),
        (["bwrap", "--unshare-user", "--die-with-parent", "--", "firefox"], False),
        (sandbox.python_command("worker", "9"), False),
        ([""], False),
    ],
)
def test_whose_sandbox_it_is(command: list[str], ours: bool) -> None:
    assert sandbox.is_ours(command) is ours
