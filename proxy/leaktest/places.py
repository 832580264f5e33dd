"""Where the attempts are made: a namespace with a way out, the host, a bubble, and root of its network.

Each place is one process that runs `probes`, hears rounds on its standard input and answers on its output.
All of them are forked before the test has any thread.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy import bubble, inner, ipc, namespaces, prctl, sandbox
from proxy.leaktest import calls, probes
from proxy.leaktest.attempts import Attempt
from proxy.leaktest.capture import packet_socket
from proxy.run import Daemon

# Modules as they are given, by name and text, of which the last one has all probes.
_PROGRAM = """
import sys, types
for name, text in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
from proxy.leaktest.probes import main
main(module.PROBES)
"""
ROUND_LIMIT_S = 30.0
PING_FOR_ALL = "/proc/sys/net/ipv4/ping_group_range"
# The way out of the control: a link between two namespaces that nobody else is in. Neighbours are fixed, so
# that a packet to anywhere leaves at once.
_MAC, _FOUR, _SIX = "02:7a:67:00:00:0{}", "10.254.78.{}", "2001:db8:ffff::{}"  # see attempts.ON_LINK
OPEN_LINK = f"""link set lo up
link set up0 address {_MAC.format(2)}
link set up0 up
addr add {_FOUR.format(2)}/24 dev up0
addr add {_SIX.format(2)}/64 dev up0 nodad
neigh replace {_FOUR.format(1)} lladdr {_MAC.format(1)} dev up0 nud permanent
neigh replace {_SIX.format(1)} lladdr {_MAC.format(1)} dev up0 nud permanent
route add default via {_FOUR.format(1)}
route add ::/0 via {_SIX.format(1)} dev up0
"""


class LeaktestError(Exception):
    """The test cannot be made; one line with the cure."""


class Place:
    """One process that tries what it is told."""

    def __init__(self, name: str, become: Callable[[], None], command: list[str]) -> None:
        self.name = name
        given, self._to = os.pipe2(os.O_CLOEXEC)
        self._from, said = os.pipe2(os.O_CLOEXEC)
        self._errors = os.memfd_create("errors", os.MFD_CLOEXEC)  # and not the person's terminal
        self.pid = os.fork()
        if self.pid == 0:
            _live((given, said, self._errors), become, command)
        ipc.close_all([given, said])
        self._held = b""

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Have a round of attempts tried."""
        rows = [(one.number, one.probe, dict(one.arguments)) for one in attempts]
        with contextlib.suppress(BrokenPipeError):  # what it said before it went is read below
            os.write(self._to, json.dumps(rows).encode() + b"\n")

    def result(self, limit_s: float = ROUND_LIMIT_S) -> dict[int, str]:
        """What came of the round: an outcome for each number. LeaktestError when there is none."""
        line = self._line(time.monotonic() + limit_s)
        if line.startswith(b"!"):
            raise LeaktestError(f"{self.name}: {line[1:].decode(errors='replace')}")
        return {int(number): str(word) for number, word in json.loads(line).items()}

    def _line(self, deadline: float) -> bytes:
        ready = select.poll()
        ready.register(self._from, select.POLLIN)
        while b"\n" not in self._held:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise LeaktestError(f"{self.name}: the program there does not answer")
            data = os.read(self._from, 65536)
            if not data:
                errors = os.pread(self._errors, 4096, 0).decode(errors="replace").strip().splitlines()
                raise LeaktestError(f"{self.name}: the program ended: {errors[-1] if errors else 'killed'}")
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line

    def close(self) -> None:
        """End it, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        ipc.close_all([self._to, self._from, self._errors])
        self._to = self._from = self._errors = -1


def _live(streams: Sequence[int], become: Callable[[], None], command: list[str]) -> None:
    try:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        become()
        os.execv(command[0], command)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(1, f"!{error or repr(error)}\n".encode())
    finally:
        os._exit(1)


def interpreter() -> Path:
    """The interpreter itself, which a virtual environment only points at."""
    return Path(sys.executable).resolve()


def probe_command() -> list[str]:
    """The program of the probes, as it can be started anywhere where the interpreter is seen."""
    modules = [word for one in (probes, calls) for word in (one.__name__, inspect.getsource(one))]
    return [str(interpreter()), "-I", "-S", "-u", "-c", _PROGRAM, *modules]


def host(inherited: int) -> Place:
    """On the host, as any program there; it inherits one descriptor."""
    return Place("the host", lambda: os.set_inheritable(inherited, True), probe_command())


class Bystander:
    """A process of the host, of the same user, by whose name it is known; it does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        parent = os.getpid()
        here, there = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                prctl.die_with_parent(parent)
                prctl.may_be_traced()
                Path("/proc/self/comm").write_text(name)
                os.write(there, b"named")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(there)
        with os.fdopen(here, "rb") as word:
            word.read(1)

    def close(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def namespace(name: str, net_fd: int, user_fd: int | None = None) -> Place:
    """In a network namespace, as root of it: without any sandbox, so that the namespace alone holds it."""

    def enter() -> None:
        if user_fd is None:
            os.setns(net_fd, os.CLONE_NEWNET)
        else:
            namespaces.enter(user_fd, net_fd)
        _let_ping()

    return Place(name, enter, probe_command())


# -- the control -------------------------------------------------------------------------------------


def opened(addresses: Sequence[str]) -> tuple[Place, socket.socket]:
    """A place with a way out and with these addresses, and a packet socket at the other end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = Place("a namespace with a way out", lambda: _open(theirs, addresses), probe_command())
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 16, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        place.result()  # it says why
        raise LeaktestError("the namespace with a way out could not be made")
    sock = socket.socket(fileno=fds[0])
    sock.setblocking(False)
    return place, sock


def _open(link: socket.socket, addresses: Sequence[str]) -> None:
    """Become a process whose network has a link to another namespace, which is watched."""
    namespaces.enter_new(os.getuid(), os.getgid())
    far = os.open("/proc/self/ns/net", os.O_RDONLY)
    with packet_socket() as watching:
        os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
        near = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = f"/proc/{os.getpid()}/fd/{far}"
        _run(["ip", "link", "add", "up0", "type", "veth", "peer", "name", "can0", "netns", there])
        os.setns(far, os.CLONE_NEWNET)
        _run(["ip", "link", "set", "can0", "address", _MAC.format(1), "up"])
        os.setns(near, os.CLONE_NEWNET)
        own = (f"addr add {address} dev lo{' nodad' * (':' in address)}\n" for address in addresses)
        _run(["ip", "-batch", "-"], OPEN_LINK + "".join(own))
        _let_ping()
        _own_resolver()
        socket.send_fds(link, [b"made"], [watching.fileno()])
    ipc.close_all([far, near])


def _own_resolver() -> None:
    """Questions for names go out by DNS, and by no helper of the host."""
    _run(["mount", "--make-rprivate", "/"])
    with tempfile.TemporaryDirectory() as directory:
        for file, text in (
            ("/etc/resolv.conf", f"nameserver {_FOUR.format(1)}\noptions timeout:1 attempts:1\n"),
            ("/etc/nsswitch.conf", "hosts: files dns\n"),
        ):
            if Path(file).exists():
                own = Path(directory, "own")
                own.write_text(text)
                _run(["mount", "--bind", str(own), os.path.realpath(file)])
                own.unlink()
    if Path("/run/nscd").is_dir():
        _run(["mount", "-t", "tmpfs", "tmpfs", "/run/nscd"])


def _let_ping() -> None:
    """Let every program here send echo requests: the defence must not be that they may not."""
    with contextlib.suppress(OSError):
        Path(PING_FOR_ALL).write_text("0 0")


def _run(command: Sequence[str], text: str = "") -> None:
    environment = {"PATH": sandbox.SYSTEM_PATH, "LC_ALL": "C"}
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, env=environment, timeout=10, check=False
    )
    if done.returncode:
        raise LeaktestError(f"{command[0]} refused: {(done.stderr.strip() or 'no message').splitlines()[0]}")


# -- the bubble --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _OwnPipes:
    """The streams of a place, which are pipes of this test's own: the probes have them as they are."""

    inner: Sequence[int] = (0, 1, 2)
    controlling: int | None = None

    def keep_inner(self) -> None:
        """There is nothing else."""


class Bubble:
    """A bubble in which the probes run, known to the daemon while `daemon` has a link to it."""

    def __init__(self, view: bubble.View, sockets: Sequence[Path]) -> None:
        self.daemon = Daemon(sockets, view.zone, view.cooperative)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outer = os.getpid()

        def become() -> None:
            ours.close()
            inner.live(view, _OwnPipes(), theirs, outer)

        self.place = Place("a bubble", become, [])
        theirs.close()
        with ours:
            word = ours.recv(4096)
            if word != b"made":
                self.place.close()
                raise LeaktestError(word[1:].decode() or "the bubble could not be made")
            self.user_fd, self.net_fd = (
                os.open(f"/proc/{self.place.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                for kind in ("user", "net")
            )
            try:
                self.come_back()
            except BaseException:
                self.close()
                raise
            ours.send(inner.GO)

    def shut_in(self) -> None:
        """Hang up: for this bubble there is no daemon any more."""
        self.daemon.lost()

    def come_back(self) -> None:
        """Be served (again). RunError, ipc.LinkBroken when it is not."""
        self.daemon.present(self.place.pid)

    @contextlib.contextmanager
    def without_rules(self) -> Iterator[None]:
        """Its rules and routes are gone, as if somebody had flushed them; they do not come back."""
        pid = os.fork()
        if pid == 0:
            try:
                namespaces.enter(self.user_fd, self.net_fd)
                _run(["nft", "flush", "ruleset"])
                for family in ("-4", "-6"):
                    _run(["ip", family, "route", "flush", "table", "local"])
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise LeaktestError("the rules of the bubble could not be taken away")
        yield

    def close(self) -> None:
        """End it and everything in it."""
        self.daemon.lost()
        self.place.close()
        ipc.close_all([self.user_fd, self.net_fd])


def view_of(zone: str, home: Path, zone_home: Path) -> bubble.View:
    """A bubble for the probes: nothing is shared but, where it lies elsewhere, the interpreter."""
    prefix = Path(sys.base_prefix).resolve()
    seen = any(prefix.is_relative_to(place) for place in bubble.SYSTEM_DIRECTORIES)
    return bubble.View(
        zone=zone,
        uid=os.getuid(),
        gid=os.getgid(),
        home=home,
        zone_home=zone_home,
        command=probe_command(),
        share=() if seen else (prefix,),
        variables=dict(os.environ),
    )
