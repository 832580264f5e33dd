"""What this host has that a program in a zone must not reach, and the listeners set up on it for a test.

Reads; opens listeners on addresses of the host's own for as long as the test lasts. A canary that arrives at
one of them has left the zone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import selectors
import socket
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from proxy import sandbox
from proxy.leaktest.capture import Sightings, Signs

_LOOK_S = 0.05
_LENT_FD = 700  # above what the probes open themselves
_VSOCK_ANY = 0xFFFFFFFF
_TCP_LISTEN_FLAG, _DATAGRAMS = "00010000", "0002"  # __SO_ACCEPTCON and SOCK_DGRAM in /proc/net/unix
_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0  # shmget(2)


@dataclass(frozen=True, slots=True)
class Ground:
    """The host, as the table of attempts needs it. Addresses are texts."""

    nonce: str
    devices: tuple[str, ...]
    addresses: tuple[str, ...]
    routers: tuple[str, ...]
    resolvers: tuple[str, ...]
    gateways: tuple[tuple[str, int], ...]
    listening: tuple[tuple[str, int], ...]
    unix_made: tuple[str, ...]
    unix_found: tuple[str, ...]
    vsock_port: int
    inherited: int
    network: str
    daemon: str
    process: tuple[int, str]
    memory_key: int


def addresses() -> tuple[str, ...]:
    """The host's own addresses, loopback and link-local ones left out."""
    found = re.findall(r"inet6? ([0-9a-f.:]+)", _said("ip", "-o", "addr", "show", "scope", "global"))
    return tuple(dict.fromkeys(found))


def routers() -> tuple[str, ...]:
    """The next hops of the host's default routes."""
    text = _said("ip", "route", "show", "default") + _said("ip", "-6", "route", "show", "default")
    return tuple(dict.fromkeys(re.findall(r"via ([0-9a-f.:]+)", text)))


def resolvers() -> tuple[str, ...]:
    """The resolvers that the host asks."""
    found = []
    for file in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        with contextlib.suppress(OSError):
            found += re.findall(r"^nameserver\s+([0-9a-f.:]+)", Path(file).read_text(), re.MULTILINE)
    return tuple(dict.fromkeys(found))


def unix_listeners(*shared: str) -> tuple[str, ...]:
    """The host's Unix sockets that hear, as this user sees them, but those that a bubble shares by design.

    Those of datagrams count by a file only: whoever wants an answer has an abstract one, named by number.
    """
    found = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) < 8 or words[7] in shared:
            continue
        path, listens, of_datagrams = words[7], words[3] == _TCP_LISTEN_FLAG, words[4] == _DATAGRAMS
        if (listens and path.startswith("@")) or ((listens or of_datagrams) and _is_seen(path)):
            found.append(path)
    return tuple(dict.fromkeys(found))


def answering(sockets: Sequence[Path]) -> str:
    """The first of these Unix sockets of whole messages that takes a connection; "" for none."""
    for path in sockets:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path))
            return str(path)
    return ""


def _is_seen(path: str) -> bool:
    """Whether this user sees a file; of what lies in another's closed directory there is nothing to try."""
    with contextlib.suppress(OSError, ValueError):
        return Path(path).exists()
    return False


def resolved(host: str, port: int) -> tuple[tuple[str, int], ...]:
    """The addresses of a tunnel's endpoint. One of loopback is left out: every namespace has its own."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        rows = ((str(row[4][0]), port) for row in found if not ip_address(row[4][0]).is_loopback)
        return tuple(dict.fromkeys(rows))
    return ()


def _said(*command: str) -> str:
    environment = {"PATH": sandbox.SYSTEM_PATH, "LC_ALL": "C"}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=5).stdout
    return ""


class Listeners:
    """Canary listeners of the host, until `close`: TCP, UDP, Unix, vsock, memory. Who speaks has a mark."""

    def __init__(self, nonce: str, hosts: tuple[str, ...], directories: tuple[Path, ...]) -> None:
        self._undo = contextlib.ExitStack()
        self._selector = self._undo.enter_context(selectors.DefaultSelector())
        self._lock = threading.Lock()
        self._found: dict[int, set[str]] = defaultdict(set)
        self._ended = False
        self.signs: Signs | None = None
        self.internet = tuple(found for host in hosts if (found := self._internet(host)))
        abstract = f"@zonegate-leaktest-{nonce}"
        self._unix("\0" + abstract[1:])
        self.unix = (abstract, *(path for one in directories if (path := self._file(one))))
        self.vsock = self._vsock()
        self.inherited = self._lent()
        self.memory_key = self._memory(int(nonce, 16) & 0x7FFFFFFF)
        self._thread: threading.Thread | None = None

    # -- opening -----------------------------------------------------------------------------------

    def _add(self, sock: socket.socket, where: str, take: Callable[[socket.socket, str], None]) -> None:
        sock.setblocking(False)
        self._undo.callback(sock.close)
        self._selector.register(sock, selectors.EVENT_READ, (take, where))

    def _internet(self, host: str) -> tuple[str, int] | None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        stream = socket.socket(family, socket.SOCK_STREAM)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            stream.bind((host, 0))
            port = int(stream.getsockname()[1])
            datagrams.bind((host, port))
            stream.listen()
        except OSError:
            stream.close()
            datagrams.close()
            return None
        self._add(stream, f"the host's {host}", self._accept)
        self._add(datagrams, f"the host's {host}", self._read)
        return host, port

    def _unix(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        sock.listen()
        self._undo.callback(sock.close)

    def _file(self, directory: Path) -> str:
        try:
            made = Path(tempfile.mkdtemp(prefix="zonegate-leaktest-", dir=directory))
            self._undo.callback(made.rmdir)
            path = made / "canary"
            self._unix(str(path))
        except OSError:
            return ""
        self._undo.callback(path.unlink)
        return str(path)

    def _vsock(self) -> int:
        try:
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            sock.bind((_VSOCK_ANY, 0xFFFFFFFF))
            sock.listen()
        except OSError:
            return 0
        self._add(sock, "the host's vsock", self._accept)
        return int(sock.getsockname()[1])

    def _lent(self) -> int:
        """A descriptor that every child would inherit: what is written to it is seen here."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._undo.callback(theirs.close)
        self._add(ours, "a socket of the host", self._read)
        fd = fcntl.fcntl(theirs, fcntl.F_DUPFD, _LENT_FD)
        self._undo.callback(os.close, fd)
        return fd

    def _memory(self, key: int) -> int:
        """A segment of memory with this key; 0 where there are none."""
        libc = ctypes.CDLL(None)
        number = libc.shmget(key, 1, _IPC_CREAT | _IPC_EXCL | 0o600)
        if number < 0:
            return 0
        self._undo.callback(libc.shmctl, number, _IPC_RMID, None)
        return key

    # -- hearing -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Hear, in a thread: once every process has been forked."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(_LOOK_S):
                take, where = key.data
                with contextlib.suppress(OSError):
                    take(key.fileobj, where)

    def _accept(self, sock: socket.socket, where: str) -> None:
        self._add(sock.accept()[0], where, self._read)

    def _read(self, sock: socket.socket, where: str) -> None:
        data = sock.recv(4096)
        if not data and sock.type == socket.SOCK_STREAM:
            self._selector.unregister(sock)
        if self.signs is not None:
            with self._lock:
                for number in self.signs.find(0, data):
                    self._found[number].add(where)

    def take(self) -> Sightings:
        """What arrived since the last call."""
        with self._lock:
            found, self._found = self._found, defaultdict(set)
        return Sightings(where=found)

    def close(self) -> None:
        """Listen no more; nothing is left behind."""
        self._ended = True
        if self._thread is not None:
            self._thread.join()
        self._undo.close()


def is_usable(address: str) -> bool:
    """Whether an address can be sent to as it is; a link-local one needs a device as well."""
    with contextlib.suppress(ValueError):
        return not ip_address(address).is_link_local
    return False
