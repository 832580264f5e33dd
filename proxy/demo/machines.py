"""The processes of the demonstration: corporate end, gate, bubbles. Started and ended by pid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from proxy import paths, sandbox
from proxy.demo.site import DemoSite, make_packet_site, make_site

UP_LIMIT_S = PROGRAM_LIMIT_S = ANSWER_LIMIT_S = 90.0  # a busy machine may take its time


class DemoFailed(Exception):
    """The demonstration cannot go on; one line."""


def zonegate(*arguments: str) -> list[str]:
    """The command of this very installation."""
    return [sys.executable, "-m", "proxy.cli", *arguments]


class Machines:
    """What is running: the two ends, and where they lie."""

    def __init__(
        self, directory: Path, run: Path, environment: dict[str, str], *, packets: bool = False
    ) -> None:
        self.directory, self.run, self.packets = directory, run, packets
        self.environment = {
            **environment,
            "ZONEGATE_SOCKET": str(run / paths.SOCKET),
            "XDG_DATA_HOME": str(directory),
        }
        self.site: DemoSite
        self.gateway: subprocess.Popen[bytes]
        self.gate: subprocess.Popen[bytes]

    @contextmanager
    def up(self) -> Iterator[None]:
        """Bring both ends up, and take them down at the end."""
        with ExitStack() as undo:
            listener = undo.enter_context(_datagrams() if self.packets else _streams())
            make = make_packet_site if self.packets else make_site
            self.site = make(self.directory, self.run, listener.getsockname()[1])
            undo.callback(self._show_log_of_failure)
            self.gateway = self._start_corporate_end(listener)
            undo.callback(_end, self.gateway)
            log = undo.enter_context((self.directory / "gate.log").open("wb"))
            command = zonegate("up", "-c", str(self.site.gate))
            self.gate = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
            undo.callback(_end, self.gate)
            self.until(lambda: self.tunnel()["attested"], "the tunnel is attested")
            yield

    def _start_corporate_end(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        fd = listener.fileno()
        gateway = zonegate("gateway", "-c", str(self.site.gateway))
        command = sandbox.python_command("demo.corporate", str(fd), str(self.directory), *gateway)
        if self.packets:
            command = sandbox.python_command("demo.far_end", str(fd), str(self.directory))
        log = (self.directory / "gateway.err").open("wb")
        with log:
            return subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[fd],
                start_new_session=True,  # Ctrl-C is this process's to act on
            )

    def _show_log_of_failure(self) -> None:
        if sys.exception() is not None and not isinstance(sys.exception(), KeyboardInterrupt):
            for name in ("gateway.err", "gate.log"):
                sys.stderr.write((self.directory / name).read_text(errors="replace"))

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = UP_LIMIT_S) -> float:
        """Wait for a condition; the seconds that it took. DemoFailed when it does not come."""
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            for process, name in ((self.gate, "gate"), (self.gateway, "gateway")):
                if process.poll() is not None:
                    raise DemoFailed(f"the {name} of the demonstration ended by itself")
            try:
                if condition():
                    return time.monotonic() - began
            except LookupError:
                pass
            time.sleep(0.05)
        words = f"waited {limit_s:g} s in vain until {what}"
        raise DemoFailed(f"{words}; try again when this machine has less to do")

    def status(self) -> dict[str, Any]:
        """`zonegate status --json`; LookupError while there is none."""
        asked = zonegate("status", "--json")
        try:
            done = subprocess.run(asked, env=self.environment, capture_output=True, timeout=ANSWER_LIMIT_S)
            found = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise LookupError("no status") from error
        return dict(found)

    def tunnel(self) -> dict[str, Any]:
        """The state of the one tunnel."""
        return dict(self.status()["tunnels"]["hq"])

    def run_command(self, *command: str) -> list[str]:
        """The command that runs a program in a bubble."""
        return zonegate("run", "--", *command)

    def bubble(self, *command: str, limit_s: float = PROGRAM_LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run a program in a bubble to its end. Raises DemoFailed where that does not come."""
        try:
            return subprocess.run(
                self.run_command(*command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            words = f"{' '.join(command)[:60]} took longer than {limit_s:g} s"
            raise DemoFailed(f"{words}; try again when this machine has less to do") from None

    def start_bubble(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program in a bubble; its output is counted by the caller."""
        return subprocess.Popen(
            self.run_command(*command),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def audit(self) -> list[dict[str, Any]]:
        """Every record of every segment, in order."""
        rows: list[dict[str, Any]] = []
        for segment in sorted((self.directory / "state" / "audit").glob("*.*.*.jsonl")):
            rows += [json.loads(line) for line in segment.read_text().splitlines()]
        return rows

    def cut(self) -> None:
        """The gateway falls silent, as if its cable were pulled."""
        os.kill(self.gateway.pid, signal.SIGSTOP)

    def mend(self) -> None:
        """The gateway answers again."""
        os.kill(self.gateway.pid, signal.SIGCONT)


def _streams() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def _datagrams() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
