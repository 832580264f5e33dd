"""Namespaces, processes in them, and waiting. Everything here is undone by closing or ending by pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_libc = ctypes.CDLL(None, use_errno=True)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REPOSITORY = Path(__file__).parents[2]
LOOK_S = 0.02
LIMIT_S = 90.0  # of everything that is waited for; nothing takes as long, on a loaded machine either
STALL_S = 1.0


class NotSeen(AssertionError):
    """What a test waited for did not come before its deadline."""


def until[T](what: str, look: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """The first true value of `look`; NotSeen when the limit is over. The only way in which the lab waits.

    A machine that stands still for a while stands still for those who are waited for as well: between two
    looks no more than `STALL_S` is counted.
    """
    left_s, looked = limit_s, time.monotonic()
    while not (found := look()):
        if left_s < 0:
            raise NotSeen(f"not within {limit_s:g} s: {what}")
        time.sleep(LOOK_S)
        before, looked = looked, time.monotonic()
        left_s -= min(looked - before, STALL_S)
    return found


def need(*tools: str) -> None:
    """Fail, and do not skip, where a tool is missing."""
    missing = [tool for tool in tools if shutil.which(tool, path=PATH) is None]
    assert not missing, f"the lab needs {', '.join(missing)}; make setup-test installs it"


def adopt_orphans() -> None:
    """Have every process that loses its parent become ours, so that none can be left behind unseen."""
    assert _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom a process runs. `mounts` None is the mount namespace of the tests."""

    network: int
    mounts: int | None = None
    uid: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def new_network() -> int:
    """A descriptor of a new, empty network namespace; the namespace ends with its last user."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unshare(os.CLONE_NEWNET)
        return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.setns(here, os.CLONE_NEWNET)
        os.close(here)


@contextlib.contextmanager
def inside(network: int) -> Iterator[None]:
    """This process in another network namespace for a moment: sockets made then stay there."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    os.setns(network, os.CLONE_NEWNET)
    try:
        yield
    finally:
        os.setns(here, os.CLONE_NEWNET)
        os.close(here)


def new_mounts(script: str) -> int:
    """A descriptor of a new mount namespace in which a shell script has mounted things."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f"{script}\necho ready\nread x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", f"the mounts of the lab were refused: {script}"
        return os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _entry(place: Place) -> Callable[[], None]:
    parent = os.getpid()

    def enter() -> None:
        os.setns(place.network, os.CLONE_NEWNET)
        if place.mounts is not None:
            os.setns(place.mounts, os.CLONE_NEWNS)
        os.chdir("/")
        if place.uid:
            os.setgroups([])
            os.setgid(place.uid)
            os.setuid(place.uid)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return enter


def start(
    place: Place,
    command: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process at a place. It ends with the tests, however they end."""
    return subprocess.Popen(
        list(command),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={
            "PATH": PATH,
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
            **place.environment,
            **(environment or {}),
        },
        preexec_fn=_entry(place),
        start_new_session=True,
        pass_fds=tuple(pass_fds),
    )


@dataclass(frozen=True, slots=True)
class Done:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str


def run(place: Place, command: Sequence[str], *, stdin: bytes = b"", limit_s: float = LIMIT_S) -> Done:
    """Run a command at a place to its end, which must come within the limit."""
    process = start(place, command, stdin=subprocess.PIPE)
    try:
        out, err = process.communicate(stdin, timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise NotSeen(f"{command} did not end in {limit_s:g} s: {out!r:.500} {err!r:.500}") from None
    return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def must(network: int, *lines: str) -> None:
    """Run commands of the lab itself in a namespace; each must succeed."""
    for line in lines:
        done = run(Place(network), line.split())
        assert done.code == 0, f"{line}: {done.err}"


def end(process: subprocess.Popen[bytes], how: int = signal.SIGKILL) -> None:
    """End a process that the lab started and take its pipes away."""
    if process.poll() is None:
        process.send_signal(how)
    process.wait(LIMIT_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def end_with_descendants(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that the lab started and all below it. It stands still meanwhile: it starts no other."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        until("it stands still", lambda: process.poll() is not None or not is_running(process.pid))
    signal_all(descendants(process.pid), signal.SIGKILL)
    end(process)


def as_user(uid: int, ask: Callable[[], bytes]) -> bytes:
    """What `ask` gives in a child of ours that is another user; AssertionError with what it raised."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(here)
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # the daemon looks at our /proc entry
            said = b"+" + ask()
        except BaseException as error:
            said = b"-" + repr(error).encode()
        with contextlib.suppress(OSError), os.fdopen(there, "wb") as pipe:
            pipe.write(said)
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    assert said[:1] == b"+", said[1:].decode()
    return said[1:]


# -- looking at processes ----------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Every process and its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """All living processes below one."""
    above = parents()
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for child, parent in above.items() if parent in level]
        found += level
    return [child for child in found if is_alive(child)]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return _state(pid) not in "ZX"


def is_running(pid: int) -> bool:
    """Whether a process is there and not stopped."""
    return _state(pid) not in "TZX"


def waits(pid: int) -> bool:
    """Whether a process sleeps until something comes."""
    return _state(pid) == "S"


def _state(pid: int) -> str:
    """The letter of /proc/PID/stat; X for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def command_of(pid: int) -> str:
    """The command line of a process, "" when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def network_of(pid: int) -> int:
    """The inode of a process's network namespace, 0 when it has gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def signal_all(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes of the lab, those that are gone excepted."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
