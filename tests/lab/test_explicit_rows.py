"""What a client of an explicit listener tries, row by row: seen without the defence, and not with it.

The control of every row is one daemon from which all of DEFENCES are taken. `LAB_WITHOUT=NAME` takes one of
them from the sound daemon, and its rows are red.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import select
import socket
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import kernel, weakened_explicit
from lab.conftest import WITHOUT
from lab.gate import Gate, Settings, remove
from lab.test_zone import WIDE
from lab.world import World
from proxy import passwords
from proxy.explicit.listener import MAX_WAITING

NAME, SHARING = "intranet.corp.example", "paste.pastehub.example"
OPEN, WEB, SOCKS = 3128, 3129, 1080
LISTEN = "".join(
    f'  {name}: {{kind: {kind}, address: "ADDRESS:{port}", zone: corporate, auth: {auth}}}\n'
    for name, kind, port, auth in (
        ("open", "http", OPEN, "none"),
        ("web", "http", WEB, "{passwords: people.passwd}"),
        ("socks", "socks5", SOCKS, "none"),
    )
)
PEOPLE = "".join(f"  {name}: {{zones: [corporate]}}\n" for name in ("alice", "anonymous"))
PASSWORD = b"correct horse battery"
DEFENCES = frozenset({*weakened_explicit.DEFENCES, "special-ranges", "lock", "audit"})
LIMIT_S = 60.0
FLOOD, GUESSES, GUESSER = MAX_WAITING + 88, 12, "127.0.0.9"
PAGE = b"the intranet\n"


class Explicit(Gate):
    """A daemon with listeners, on an address of its own."""

    def __init__(self, world: World, name: str, address: str, without: frozenset[str]) -> None:
        self.address = address
        listen = LISTEN.replace("ADDRESS", address)
        super().__init__(
            world.host("root"),
            name,
            replace(Settings(without=without, people=PEOPLE, listen=listen), **WIDE),  # type: ignore[arg-type] # by name
        )
        file = self.directory / "people.passwd"
        file.touch(mode=0o600)
        file.write_text(passwords.line("alice", PASSWORD) + "\n")

    def connect(self, port: int, source: str = "127.0.0.1") -> socket.socket:
        """A client of a listener."""
        with kernel.inside(self.host.place.network):
            return socket.create_connection((self.address, port), LIMIT_S, (source, 0))

    def answers(self, port: int, words: bytes, until: bytes = b"", source: str = "127.0.0.1") -> bytes:
        """What a client that says this hears to the end, or until it has heard so much."""
        with self.connect(port, source) as client:
            client.sendall(words)
            return heard(client, until)


def heard(client: socket.socket, until: bytes = b"") -> bytes:
    """What comes, to the end or until this has come; a reset is an end."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while not (until and until in found) and (data := client.recv(65536)):
            found += data
    return found


@pytest.fixture(scope="module")
def weak(world: World) -> Iterator[Explicit]:
    """A daemon without the defences."""
    yield from _running(Explicit(world, "explicit-weak", "127.0.0.2", WITHOUT | DEFENCES))


@pytest.fixture(scope="module")
def sound(world: World) -> Iterator[Explicit]:
    """A daemon as it is."""
    yield from _running(Explicit(world, "explicit-sound", "127.0.0.3", WITHOUT))


def _running(made: Explicit) -> Iterator[Explicit]:
    try:
        made.start().attested()
        yield made
    finally:
        remove(made)


def get(target: str = f"http://{NAME}/", *fields: str, host: str = NAME, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


def connect(host: str = NAME, port: int = 80) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def socks(host: str, command: int = 1) -> bytes:
    return b"\5\1\0" + bytes((5, command, 0, 3, len(host))) + host.encode() + b"\0\x50"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a client says; what it hears where nothing defends against that, and what instead."""

    id: str
    says: bytes
    seen: bytes
    instead: bytes
    port: int = OPEN


GATEWAY_SAYS_NO = b"by gate gateway"  # it was dialled, and the gateway's own list refused it
BAD = b"HTTP/1.1 400 "
ATTEMPTS = (
    Attempt("I1, Host is another", get(host=SHARING), PAGE, BAD),
    Attempt("I1, Host in a tunnel is another", connect() + get("/", host=SHARING), PAGE, b" 403 "),
    Attempt(
        "I2, another whole address in a tunnel",
        connect() + get(f"http://{SHARING}/", host=SHARING),
        PAGE,
        b" 403 ",
    ),
    Attempt("I3, a decimal address", get("http://184943916/", host="184943916"), GATEWAY_SAYS_NO, BAD),
    Attempt(
        "I3, an octal address", get("http://013.026.041.054/", host="013.026.041.054"), GATEWAY_SAYS_NO, BAD
    ),
    Attempt("I3, a short address", get("http://11.1450028/", host="11.1450028"), GATEWAY_SAYS_NO, BAD),
    Attempt("I4, two Hosts", get(f"http://{NAME}/", f"Host: {SHARING}"), PAGE, BAD),
    Attempt("I4, a folded field", get(f"http://{NAME}/", "X: a\r\n b"), PAGE, BAD),
    Attempt("I4, a user in the address", get(f"http://{SHARING}@{NAME}/"), PAGE, BAD),
    Attempt(
        "I5, two lengths",
        get(f"http://{NAME}/", "Content-Length: 3", "Transfer-Encoding: chunked", method="POST")
        + b"0\r\n\r\n",
        b" 200 OK",
        BAD,
    ),
    Attempt("I6, a request behind a refused CONNECT", connect(port=0) + get(), PAGE, BAD),
    Attempt(
        "I7, a body to where it may not go",
        get(f"http://{SHARING}/", "Content-Length: 3", host=SHARING, method="POST") + b"abc",
        hashlib.sha256(b"abc").hexdigest().encode(),
        b" 403 ",
    ),
    Attempt("I9, a command of SOCKS", socks(NAME, 2), b"\5\0\5\0", b"\5\0\5\7", SOCKS),
    Attempt("I9, a short address as a name", socks("11.1450028"), b"\5\0\5\2", b"\5\0\5\1", SOCKS),
    Attempt("I9, a name that may not be", socks(SHARING), b"\5\0\5\0", b"\5\0\5\2", SOCKS),
    Attempt(
        "I10, the metadata address",
        get("http://169.254.169.254/", host="169.254.169.254"),
        GATEWAY_SAYS_NO,
        b" 403 ",
    ),
    Attempt("R1, a head of 40,000 bytes", get(f"http://{NAME}/", "X: " + "x" * 40_000), PAGE, BAD),
)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.id)
def test_what_is_said(weak: Explicit, sound: Explicit, world: World, attempt: Attempt) -> None:
    """The control sees it; the sound daemon refuses it in so many words, and has granted nothing."""
    control = weak.answers(attempt.port, attempt.says, until=attempt.seen)
    assert attempt.seen in control, "a control must be red"
    answer = sound.answers(attempt.port, attempt.says, until=attempt.seen)
    assert attempt.instead in answer and attempt.seen not in answer
    assert {row["verdict"] for row in _verdicts(sound) if row["name"] == SHARING} <= {"block"}
    assert not world.wire.seen()


def _verdicts(gate: Gate) -> list[dict[str, Any]]:
    return [row for row in gate.records() if row["record"] == "verdict"]


def test_a_flood_of_clients_who_ask_for_nothing(weak: Explicit, sound: Explicit) -> None:
    """R1: those who have waited longest make room, and who asks for something is served."""
    for gate in (weak, sound):
        flood = [gate.connect(OPEN) for _ in range(FLOOD)]
        try:
            assert PAGE in gate.answers(OPEN, get())
            if gate is weak:
                assert not _cut(flood), "a control must be red"
            else:
                kernel.until("the oldest are cut", lambda: _cut(flood) >= FLOOD - MAX_WAITING, LIMIT_S)  # noqa: B023
        finally:
            for one in flood:
                one.close()


def _cut(clients: Sequence[socket.socket]) -> int:
    """How many were reset; who is told that it was too slow sees an orderly end."""
    ends = select.poll()
    for client in clients:
        ends.register(client, 0)
    return sum(bool(event & select.POLLHUP) for _, event in ends.poll(0))


def _has_ended(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _login(password: bytes) -> str:
    return "Proxy-Authorization: Basic " + b64encode(b"alice:" + password).decode()


def test_passwords_that_are_guessed(weak: Explicit, sound: Explicit) -> None:
    """R1: ten may fail at once from one address; then nobody is asked there."""

    def is_stopped(gate: Explicit) -> bool:
        return b"HTTP/1.1 429 " in gate.answers(
            WEB, get(f"http://{NAME}/", _login(b"a guess")), source=GUESSER
        )

    assert not any(is_stopped(weak) for _ in range(GUESSES)), "a control must be red"
    kernel.until("guessing is stopped", lambda: is_stopped(sound), LIMIT_S)


def test_a_lock_between_two_requests(weak: Explicit, sound: Explicit) -> None:
    """L5: a download is cut, and a connection that is kept has no right to another request."""
    for gate in (weak, sound):
        again = get().replace(b"Connection: close\r\n", b"")
        with gate.connect(OPEN) as kept, gate.connect(OPEN) as download:
            kept.sendall(again)
            assert PAGE in heard(kept, PAGE)
            download.sendall(get(f"http://{NAME}/drip"))
            assert heard(download, b"drip")
            try:
                assert gate.call("lock", "--reason", "a drill").code == 0
                kept.sendall(again)
                answer = heard(kept, PAGE)
                if gate is weak:
                    assert PAGE in answer and json.loads(gate.call("flows", "--json").out), "must be red"
                else:
                    assert b"a drill" in answer
                    kernel.until("it is cut", partial(_has_ended, download), LIMIT_S)
            finally:
                gate.call("unlock")


def test_what_cannot_be_recorded(weak: Explicit, sound: Explicit) -> None:
    """U1: no record, no flow."""
    for gate in (weak, sound):
        with _files_of_workers_full(gate):
            answer = gate.answers(OPEN, get())
        assert (PAGE if gate is weak else b"nothing can be recorded") in answer


@contextlib.contextmanager
def _files_of_workers_full(gate: Gate) -> Iterator[None]:
    """A time in which no worker can write to a file."""
    before = {}
    for pid in kernel.descendants(gate.pid):
        if "from proxy.worker import" in kernel.command_of(pid):
            before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_passwords_are_nowhere(weak: Explicit, sound: Explicit) -> None:
    """S1: neither in arguments and variables of a process, nor in what is said and recorded."""
    for gate in (weak, sound):
        assert PAGE in gate.answers(WEB, get(f"http://{NAME}/", _login(PASSWORD)))
        gate.answers(WEB, get(f"http://{NAME}/", _login(PASSWORD + b"!")))
        kept = (gate.directory / "people.passwd").read_bytes().strip().rpartition(b":")[2]
        shown = _shown(gate)
        assert b"up" in shown and b"alice" in shown, "it is looked at"
        assert any(word in shown for word in (PASSWORD, b64encode(b"alice:" + PASSWORD), kept)) is (
            gate is weak
        )


def _shown(gate: Gate) -> bytes:
    """What a daemon says, writes down, and what its processes show."""
    pids = [gate.pid, *kernel.descendants(gate.pid)]
    files = [Path(f"/proc/{pid}/{name}") for pid in pids for name in ("cmdline", "environ")]
    files += [gate.log, *(gate.state / "audit").rglob("*.jsonl")]
    return b"\n".join([gate.call("status", "--json").out.encode(), *(file.read_bytes() for file in files)])


@pytest.mark.parametrize(
    ("file", "more", "words"),
    [
        ("people.passwd", "alice:nothing\n", "is no entry"),
        ("zonegate.yaml", "policy: other.yaml\n", 'duplicate key "policy"'),
    ],
)
def test_files_that_could_be_read_in_two_ways(
    weak: Explicit, sound: Explicit, file: str, more: str, words: str
) -> None:
    """P1: a wrong line refuses the file."""
    for gate in (weak, sound):
        path = gate.directory / file
        text = path.read_text()
        path.write_text(text + more)
        try:
            done = gate.call("up", "--check", "-c", str(gate.directory / "zonegate.yaml"))
        finally:
            path.write_text(text)
        assert done.code == (0 if gate is weak else 2), done
        assert words in done.err or gate is weak
