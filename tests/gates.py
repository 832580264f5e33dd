"""Daemons in processes of their own, whose tunnel leads nowhere. No tests are here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from own_namespaces import Zone

from proxy import ipc
from proxy.demo.site import make_site
from proxy.messages.admin import TO_COMMAND, Denied, Enter, Entered, ToCommand

LIMIT_S = 90.0


class Gate:
    """A place for one daemon at a time, and the commands that speak to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._nobody = socket.socket()  # never listens; whoever else had the port would answer there
        self._nobody.bind(("127.0.0.1", 0))
        self.config = make_site(directory, directory / "run", self._nobody.getsockname()[1]).gate
        self.socket = directory / "run" / "admin.sock"
        self.environment = {
            **os.environ,
            "ZONEGATE_SOCKET": str(self.socket),
            "XDG_DATA_HOME": str(directory / "data"),
            "NOTIFY_SOCKET": str(directory / "notify"),
        }
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self._notify.settimeout(LIMIT_S)
        self.daemon: subprocess.Popen[str]
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A `zonegate` command; it is ended with the place."""
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy.cli", *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def adopt(self, process: subprocess.Popen[str]) -> None:
        """A process that is ended with the place."""
        self._started.append(process)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """A `zonegate` command to its end: code, output, errors."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=LIMIT_S)
        return process.returncode, out, err

    def up(self) -> None:
        """Start the daemon; returns when it says that it is ready."""
        self.daemon = self.start("up", "-c", str(self.config))
        assert self.heard() == "READY=1"

    def heard(self) -> str:
        """What the daemon tells its service manager next."""
        return self._notify.recv(100).decode()

    def ended(self) -> tuple[int, str]:
        """The exit code of the daemon and its messages."""
        _, err = self.daemon.communicate(timeout=LIMIT_S)
        return self.daemon.returncode, err

    def status(self) -> dict[str, Any]:
        """`zonegate status --json`."""
        found = json.loads(self.run("status", "--json")[1])
        assert isinstance(found, dict)
        return found

    def workers(self) -> list[int]:
        """The workers' processes, once there are any."""
        found: list[int] = []

        def there_are_some() -> list[int]:
            found[:] = [worker["pid"] for worker in self.status()["workers"]]
            return found

        until(there_are_some)
        return found

    def processes(self) -> list[int]:
        """Everything that descends from the daemon."""
        found = [self.daemon.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, task.joinpath("children").read_text().split())
        return found[1:]

    def close(self) -> None:
        """End everything that was started."""
        for process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.communicate(timeout=LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.communicate(timeout=LIMIT_S)
        self._notify.close()
        self._nobody.close()


@contextlib.contextmanager
def gate(kind: type[Gate] = Gate) -> Iterator[Gate]:
    """A place, and its end. Not below pytest's directories: a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="zonegate-test-") as directory:
        there = kind(Path(directory))
        try:
            yield there
        finally:
            there.close()


class Guest:
    """A bubble without a program: a zone that is presented to the daemon by this process."""

    def __init__(self, there: Gate, zone: Zone, again: str = "", name: str = "corporate") -> None:
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(LIMIT_S)
        self.link.connect(str(there.socket))
        ipc.send(self.link, Enter(name, again, False, zone.pid, ""))
        answer = self.hear()
        assert isinstance(answer, Entered | Denied)
        self.answer = answer
        if isinstance(answer, Denied):
            self.leave()

    @property
    def bubble(self) -> str:
        """Its name, once it was let in."""
        assert isinstance(self.answer, Entered), self.answer
        return self.answer.bubble

    def hear(self) -> ToCommand:
        """What the daemon says; ipc.LinkBroken when it is gone."""
        accepted: Sequence[type[ToCommand]] = TO_COMMAND
        message, fds = ipc.receive(self.link, accepted)
        ipc.close_all(fds)
        return message

    def leave(self) -> None:
        """Hang up."""
        self.link.close()


def entered(there: Gate, zone: Zone, again: str = "") -> Guest:
    """A guest that is let in; where the machine is so slow that it is not yet, it asks again."""
    for _ in range(10):
        if isinstance((guest := Guest(there, zone, again)).answer, Entered):
            return guest
    raise AssertionError(guest.answer)


def until(condition: Callable[[], object]) -> None:
    """Ask for something until it is so."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came to be")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_gone(pids: list[int]) -> None:
    """Until all of them have ended."""
    until(lambda: all(map(gone, pids)))
