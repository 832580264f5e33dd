"""`zonegate run` in processes of their own, with a daemon that is none. No tests are here."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import selectors
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proxy import ipc, run
from proxy.messages.admin import Denied, Enter, Entered

LIMIT_S = 90.0  # nothing here takes as long; a test that gets there fails
# An interpreter that is visible in a bubble, with the directories to be shared for it.
PYTHON = str(Path(sys.executable).resolve())
PYTHON_AT = [] if PYTHON.startswith("/usr/") else [str(Path(sys.base_prefix).resolve())]

_DRIVER = """
import fcntl, json, os, sys, termios
from pathlib import Path
told = json.loads(sys.argv[1])
sys.path.insert(0, told["root"])
if told["terminal"]:
    os.setsid()
    fcntl.ioctl(0 if os.isatty(0) else 1, termios.TIOCSCTTY, 0)
from proxy import inner, run
from proxy.bubble import View
run.GRACE_S = inner.GRACE_S = told["grace_s"]
run.ENTER_LIMIT_S = told["enter_limit_s"]
view = View(
    zone="corporate", uid=os.getuid(), gid=os.getgid(), home=Path(told["home"]),
    zone_home=Path(told["zone_home"]), command=told["command"], variables=dict(os.environ),
    share=[Path(path) for path in told["share"]], share_home=told["share_home"],
    x11=told["x11"], wayland=told["wayland"],
)
try:
    code = run.run(view, [Path(told["socket"])])
except run.RunError as error:
    print("zonegate:", error, file=sys.stderr)
    code = 125
sys.exit(code)
"""


class FakeDaemon:
    """Listens where a daemon would and keeps its promises to a bubble, except for serving any traffic.

    `entered` are the bubbles that came, each with its namespaces. `answers` False takes them and is silent.
    """

    def __init__(self, path: Path, *, denies: str = "", answers: bool = True, roots: str = "") -> None:
        self.roots = roots
        self.path, self._denies, self._answers = path, denies, answers
        self.entered: queue.Queue[tuple[Enter, list[int]]] = queue.Queue()
        self._links: list[socket.socket] = []
        self._stopping = False
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            link, _ = self._sock.accept()
            self._links.append(link)
            if self._stopping:
                return
            link.settimeout(LIMIT_S)
            with contextlib.suppress(ipc.LinkBroken):  # who only looks whether there is a daemon
                message, _ = ipc.receive(link, [Enter])
                kinds = ("user", "net")
                fds = [os.open(f"/proc/{message.pid}/ns/{kind}", os.O_RDONLY) for kind in kinds]
                if self._denies:
                    ipc.send(link, Denied(self._denies))
                elif self._answers:
                    ipc.send(link, Entered("0-0123456789ab", message.zone, "structural", self.roots))
                self.entered.put((message, fds))

    def say(self, message: object) -> None:
        """Say something to every bubble."""
        for link in self._links:
            with contextlib.suppress(ipc.LinkBroken):
                ipc.send(link, message)

    def wait_until_left(self) -> None:
        """Until every bubble has hung up."""
        for link in self._links:
            while link.recv(65536):
                pass

    def close(self) -> None:
        """Go away, with all links."""
        if self._stopping:
            return
        self._stopping = True
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
            last.connect(str(self.path))
        self._thread.join(LIMIT_S)
        self._sock.close()
        self.path.unlink(missing_ok=True)
        for link in self._links:
            link.close()
        while not self.entered.empty():
            ipc.close_all(self.entered.get()[1])


class Ground:
    """Where a test's bubbles live: a daemon's socket, a home outside and one for the zone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "admin.sock"
        self.home, self.zone_home = directory / "home", directory / "zone-home"
        self.home.mkdir()
        self.zone_home.mkdir()
        self._daemons: list[FakeDaemon] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def daemon(self, **options: Any) -> FakeDaemon:
        """A new daemon, in the place of the last one, which must be gone."""
        self._daemons.append(FakeDaemon(self.socket, **options))
        return self._daemons[-1]

    def command(
        self,
        command: Sequence[str],
        *,
        terminal: bool = False,
        share: Sequence[str] = (),
        share_home: bool = False,
        wayland: bool = False,
        x11: bool = False,
        grace_s: float = 5.0,
        enter_limit_s: float = run.ENTER_LIMIT_S,
    ) -> list[str]:
        """The command line that is `zonegate run -- command` here."""
        told = {
            "root": str(Path(__file__).parent.parent),
            "socket": str(self.socket),
            "home": str(self.home),
            "zone_home": str(self.zone_home),
            "command": list(command),
            "share": [*share, *PYTHON_AT],
            "share_home": share_home,
            "wayland": wayland,
            "x11": x11,
            "terminal": terminal,
            "grace_s": grace_s,
            "enter_limit_s": enter_limit_s,
        }
        return [sys.executable, "-P", "-W", "error", "-c", _DRIVER, json.dumps(told)]

    def start(self, *command: str, options: Any = None, **popen: Any) -> subprocess.Popen[bytes]:
        """Start a program in a bubble."""
        pipe = subprocess.PIPE
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | popen
        started: subprocess.Popen[bytes] = subprocess.Popen(
            self.command(command, **(options or {})), **streams
        )
        self._started.append(started)
        return started

    def run(
        self, *command: str, given: bytes | None = None, popen: Any = None, **options: Any
    ) -> tuple[int, str, str]:
        """Run a program in a bubble to its end: exit code, output, errors."""
        started = self.start(*command, stdin=subprocess.PIPE, options=options, **(popen or {}))
        out, err = started.communicate(given, timeout=LIMIT_S)
        return started.returncode, out.decode(), err.decode()

    def python(self, code: str, *arguments: str, **options: Any) -> str:
        """The output of a Python program in a bubble, which must succeed."""
        status, out, err = self.run(PYTHON, "-I", "-S", "-c", code, *arguments, **options)
        assert status == 0, err
        return out

    def close(self) -> None:
        """End everything that was started."""
        for started in self._started:
            if started.poll() is None:
                started.kill()
            started.wait(LIMIT_S)
            for stream in (started.stdin, started.stdout, started.stderr):
                if stream is not None:
                    stream.close()
        for daemon in self._daemons:
            daemon.close()


def outside(code: str, *arguments: str, **options: Any) -> str:
    """The output of a Python program on the host: the positive control of one in a bubble."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [PYTHON, "-I", "-S", "-c", code, *arguments],
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


class Person:
    """Somebody at a terminal: types, reads what is on the screen, changes the window's size."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.seen = ""

    def type(self, text: str) -> None:
        """Press keys. A terminal that takes no more loses them."""
        os.write(self._master, text.encode())

    def read_until(self, words: str) -> str:
        """What appears up to `words`; what comes after them is left for later."""
        deadline = time.monotonic() + LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._master, selectors.EVENT_READ)
            while words not in self.seen:
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{words!r} was not seen in {self.seen!r}"
                if selector.select(left_s):
                    with contextlib.suppress(BlockingIOError):
                        self.seen += os.read(self._master, 65536).decode(errors="replace")
        found, _, self.seen = self.seen.partition(words)
        return found + words

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the window; the kernel tells the foreground job."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def close(self) -> None:
        """Leave; the terminal hangs up."""
        for fd in (self._master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def at_a_terminal() -> Iterator[Person]:
    """A person, who leaves in the end."""
    person = Person()
    try:
        yield person
    finally:
        person.close()


def send_when_ready(started: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal once the program has said `ready`."""
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    started.send_signal(number)
