"""The terminal's pumps, without a bubble: nothing blocks, nothing is lost, everything is closed again."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors

from proxy.pumps import Pump

LIMIT_S = 90
# What becomes of standard input, output and error, as a process sees it that has them.
KINDS = """
import json, os, stat, sys
sys.path.insert(0, sys.argv[1])
from proxy.terminal import Stdio
def kind(fd):
    if os.isatty(fd):
        return f"tty {os.fstat(fd).st_rdev}"
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
        return "socket" if stat.S_ISSOCK(mode) else "pipe"
    return os.readlink(f"/proc/self/fd/{fd}")
before = set(os.listdir("/proc/self/fd"))
stdio = Stdio()
found = {"inner": stdio.inner, "kinds": [kind(fd) for fd in stdio.inner], "controlling": stdio.controlling}
stdio.started()
stdio.close()
found["left"] = sorted(set(os.listdir("/proc/self/fd")) - before)
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
"""


def kinds(tmp_path: Path, **streams: Any) -> dict[str, Any]:
    out = tmp_path / "found"
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", KINDS, root, str(out)], timeout=LIMIT_S, check=True, **streams)
    found: dict[str, Any] = json.loads(out.read_text())
    assert found.pop("left") == []
    return found


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def test_a_pipe_of_output_is_given_as_it_is(tmp_path: Path) -> None:
    read, write = os.pipe()
    found = kinds(tmp_path, stdin=subprocess.DEVNULL, stdout=write, stderr=write)
    assert found == {"inner": [0, 1, 2], "kinds": ["/dev/null", "pipe", "pipe"], "controlling": None}
    os.close(read)
    os.close(write)


def test_files_and_a_pipe_of_input_are_replaced_by_pipes_of_its_own(tmp_path: Path) -> None:
    """One for both where output and errors go to the same file, so that they keep their order."""
    file, other = tmp_path / "out", tmp_path / "other"
    file.touch()
    pipe, write = os.pipe()
    with file.open("rb") as given, file.open("ab") as out, other.open("wb") as errors:
        for stdin in (given, pipe):
            found = kinds(tmp_path, stdin=stdin, stdout=out, stderr=out)
            assert found["kinds"] == ["pipe"] * 3 and found["inner"][1] == found["inner"][2]
            assert not set(found["inner"]) & {0, 1, 2}
        assert len(set(kinds(tmp_path, stdin=given, stdout=out, stderr=errors)["inner"])) == 3
    os.close(pipe)
    os.close(write)


REFUSED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from proxy.terminal import NotGiven, Stdio
for fd in (os.open("/", os.O_RDONLY), os.open(sys.argv[0], os.O_PATH), os.eventfd(1)):
    os.dup2(fd, 0)
    before = os.listdir("/proc/self/fd")
    try:
        Stdio()
    except NotGiven as error:
        print(error)
    assert os.listdir("/proc/self/fd") == before
"""


def test_what_leads_further_than_a_stream_is_refused(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(REFUSED)
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, code, root], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    directory, name, event = done.stdout.splitlines()
    assert directory.startswith("standard input is a directory") and directory.endswith("--share DIR")
    assert "O_PATH" in name and "is a device" in event


def test_what_is_closed_is_nothing(tmp_path: Path) -> None:
    out = tmp_path / "found"
    root = str(Path(__file__).parent.parent)
    command = '"$0" -c "$1" "$2" "$3" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, sys.executable, KINDS, root, str(out)], timeout=LIMIT_S, check=True)
    assert json.loads(out.read_text())["kinds"] == ["/dev/null"] * 3


def test_a_terminal_is_replaced_by_one_pty_for_all(tmp_path: Path, terminal: int) -> None:
    found = kinds(tmp_path, stdin=terminal, stdout=terminal, stderr=terminal)
    assert set(found["inner"]) == {found["controlling"]}
    assert len(set(found["kinds"])) == 1
    assert found["kinds"][0].startswith("tty ")
    assert found["kinds"][0] != f"tty {os.fstat(terminal).st_rdev}"


def test_a_socket_is_replaced_by_a_pipe_of_its_own(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = kinds(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    assert found["kinds"] == ["pipe"] * 3
    assert len(set(found["inner"])) == 2


# -- one pump ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def piped() -> Iterator[tuple[int, Pump, int]]:
    """What is written to the first comes out of the last."""
    before = open_descriptors()
    read_in, write_in = os.pipe2(os.O_NONBLOCK)
    read_out, write_out = os.pipe2(os.O_NONBLOCK)
    pump = Pump(read_in, write_out)
    yield write_in, pump, read_out
    for fd in (write_in, read_out):
        with contextlib.suppress(OSError):
            os.close(fd)
    pump.close()
    assert open_descriptors() == before


def test_a_pump_moves_what_is_there_and_asks_for_more() -> None:
    with piped() as (into, pump, out):
        assert pump.awaited() == (pump.source.fd, 1)
        pump.advance()
        os.write(into, b"hello")
        pump.advance()
        assert os.read(out, 100) == b"hello"
        assert pump.awaited() == (pump.source.fd, 1)


def test_a_pump_keeps_what_is_not_taken_and_reads_no_more() -> None:
    with piped() as (into, pump, out):
        sent = got = b""
        while pump.awaited() == (pump.source.fd, 1):
            sent += bytes(range(256)) * 16
            os.write(into, bytes(range(256)) * 16)
            pump.advance()
        assert pump.awaited() == (pump.target.fd, 2)
        os.write(into, b"later")
        pump.advance()
        os.close(into)
        while pump.awaited() is not None:
            with contextlib.suppress(BlockingIOError):
                got += os.read(out, 100_000)
            pump.advance()
        with contextlib.suppress(BlockingIOError):
            got += os.read(out, 100_000)
        assert got == sent + b"later"


def test_a_pump_ends_after_the_end_of_its_source() -> None:
    with piped() as (into, pump, out):
        os.write(into, b"last")
        os.close(into)
        pump.advance()
        assert pump.awaited() is not None
        pump.advance()
        assert pump.awaited() is None
        assert os.read(out, 100) == b"last"


def test_a_pump_says_that_its_target_takes_nothing_any_more() -> None:
    with piped() as (into, pump, out):
        os.close(out)
        os.write(into, b"x")
        with pytest.raises(BrokenPipeError):
            pump.advance()


# -- the person's terminal ---------------------------------------------------------------------------

RAW = """
import os, sys, termios
sys.path.insert(0, sys.argv[1])
from proxy.terminal import Stdio
stdio = Stdio()
stdio.started()
modes = lambda: repr(termios.tcgetattr(0)[:4])
before = modes()
stdio.take_terminal()
assert modes() != before
assert not termios.tcgetattr(0)[3] & termios.ECHO
assert not os.get_blocking(stdio._output.target.fd)
assert os.get_blocking(1)  # the shell has it too
stdio.close()
assert modes() == before
"""


def test_the_terminal_is_raw_only_meanwhile_and_its_flags_are_left_alone(terminal: int) -> None:
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-c", RAW, root], stdin=terminal, stdout=terminal, timeout=LIMIT_S, check=True
    )


def test_the_pty_begins_with_the_modes_and_the_size_of_the_terminal(
    terminal: int,
) -> None:
    modes = termios.tcgetattr(terminal)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
    termios.tcsetwinsize(terminal, (33, 77))
    code = RAW.split("modes =")[0] + (
        "inner = stdio.inner[0]\n"
        "assert not termios.tcgetattr(inner)[3] & termios.ECHO\n"
        "assert termios.tcgetwinsize(inner) == (33, 77)\n"
    )
    code = code.replace("stdio.started()\n", "")
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code, root], stdin=terminal, timeout=LIMIT_S, check=True)


def test_closing_twice_is_no_trouble() -> None:
    code = RAW.split("modes =")[0] + "stdio.close()\nstdio.close()\n"
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code, root], stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
