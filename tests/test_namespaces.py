"""A zone's namespace: everything is captured or refused at once, and nothing can be left by."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy import ipc, namespaces, sandbox
from proxy.messages.door import Opened

LIMIT_S = 90
ROOT = str(Path(__file__).parent.parent)
NEW = """
import errno, json, os, socket, struct, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from proxy import namespaces
namespaces.enter_new(os.getuid(), os.getgid())
"""
ZONE = NEW + "namespaces.make_zone()\n"
# The positive control: lo is the way to everywhere, and nothing is captured.
UNRULED = (
    NEW
    + """
namespaces.capture_rules = lambda: ""
namespaces.make_zone()
"""
)


def within(prelude: str, code: str) -> Any:
    """What a Python program says (JSON) that becomes root of namespaces of its own."""
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, ROOT], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@contextlib.contextmanager
def somebody_within(prelude: str, code: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process in namespaces of its own, which does a line of Python at a time for us."""
    loop = "\nprint('ready', flush=True)\nfor line in sys.stdin:\n    exec(line)\n"
    with subprocess.Popen(
        [sys.executable, "-c", prelude + code + loop, ROOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()
        process.communicate(timeout=LIMIT_S)


def namespace_fds(pid: int) -> tuple[int, int]:
    """The user and the network namespace of a process."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    return os.open(f"/proc/{pid}/ns/user", flags), os.open(f"/proc/{pid}/ns/net", flags)


# -- a device that comes later -----------------------------------------------------------------------


LATE = """
for words in (
    "link add late0 type veth peer name late1", "link set late0 up", "link set late1 up",
    "addr add 198.18.0.1/24 dev late0", "neigh add 198.18.0.2 lladdr 02:00:00:00:00:02 dev late0",
):
    subprocess.run(["ip", *words.split()], check=True)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.bind(("late1", 0x0800))
wire.settimeout(60)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"late0")
try:
    sock.sendto(b"canary", ("198.18.0.2", 9))
    while not wire.recv(100).endswith(b"canary"):
        pass
    print(json.dumps("it left"))
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""


def test_nothing_leaves_by_a_device_that_comes_later() -> None:
    assert within(UNRULED, LATE) == "it left"
    assert within(ZONE, LATE) == "EPERM"


# -- nothing listens: refused at once ----------------------------------------------------------------


TRY = """
PATIENCE_S = 60  # a refusal that is awaited for so long is none

def attempt(family, kind, address, port=443, data=b"canary"):
    sock = socket.socket(family, kind)
    sock.settimeout(PATIENCE_S)
    try:
        host, scoped, _ = address.partition("%")
        sock.connect((host, port, 0, 1) if scoped else (host, port))  # lo is number 1
        sock.send(data)
        sock.recv(100)
        return 0
    except TimeoutError:
        return -1
    except OSError as error:
        return error.errno

def ping(family, address):
    icmp = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    sock = socket.socket(family, socket.SOCK_RAW, icmp)
    sock.settimeout(PATIENCE_S)
    request = 8 if family == socket.AF_INET else 128
    data = struct.pack("!BBHHH", request, 0, 0, 7, 7)
    if family == socket.AF_INET:
        data = struct.pack("!BBHHH", request, 0, 0xFFFF - (request << 8) - 14, 7, 7)
    sock.sendto(data, (address, 0))
    while True:
        answer = sock.recv(200)
        kind = answer[20] if family == socket.AF_INET else answer[0]
        if kind != request:
            return kind

def other(family, address):
    # Type and code of the error that answers SCTP.
    icmp = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    errors = socket.socket(family, socket.SOCK_RAW, icmp)
    errors.settimeout(PATIENCE_S)
    socket.socket(family, socket.SOCK_RAW, 132).sendto(b"canary", (address, 0))
    try:
        answer = errors.recv(200)
    except TimeoutError:
        return -1
    return list(answer[20:22] if family == socket.AF_INET else answer[:2])
"""
ECHO_REPLY, UNREACHABLE = (0, 129), (3, 1)
PROHIBITED = [3, 13], [1, 1]  # "administratively prohibited" of ICMP and of ICMPv6
NO_ANSWER = -1


SERVE = """
import threading
def serve_for_ever(serve):
    while True:
        serve()
for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    server = socket.create_server((anywhere, 443), family=family)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    datagrams.bind((anywhere, 443))
    for serve in (lambda s=server: s.accept()[0].send(b"seen"), lambda s=datagrams: s.recvfrom(9)):
        threading.Thread(target=serve_for_ever, args=[serve], daemon=True).start()
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    sentence: str
    expression: str
    free: int | list[int]  # without rules
    refused: int | list[int]

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Attempt("TCP over IPv4", "attempt(2, 1, '203.0.113.9')", 0, errno.ECONNREFUSED),
        Attempt("TCP over IPv6", "attempt(10, 1, '2001:db8::9')", 0, errno.ECONNREFUSED),
        Attempt("TCP to a mapped address", "attempt(10, 1, '::ffff:203.0.113.9')", 0, errno.ECONNREFUSED),
        Attempt("TCP to a metadata service", "attempt(2, 1, '169.254.169.254')", 0, errno.ECONNREFUSED),
        Attempt("TCP to a private address", "attempt(2, 1, '192.168.1.1')", 0, errno.ECONNREFUSED),
        Attempt("TCP to a link-local one", "attempt(10, 1, 'fe80::1%lo')", 0, errno.ECONNREFUSED),
        Attempt("UDP over IPv4", "attempt(2, 2, '203.0.113.9', 444)", errno.ECONNREFUSED, errno.EHOSTUNREACH),
        Attempt("UDP over IPv6", "attempt(10, 2, '2001:db8::9', 444)", errno.ECONNREFUSED, errno.EACCES),
        Attempt("QUIC", "attempt(2, 2, '203.0.113.9', 443)", NO_ANSWER, errno.EHOSTUNREACH),
        Attempt("mDNS", "attempt(2, 2, '224.0.0.251', 5353)", NO_ANSWER, errno.EPERM),
        Attempt("mDNS over IPv6", "attempt(10, 2, 'ff02::fb%lo', 5353)", NO_ANSWER, errno.EPERM),
        Attempt("a ping over IPv4", "ping(2, '8.8.8.8')", ECHO_REPLY[0], UNREACHABLE[0]),
        Attempt("a ping over IPv6", "ping(10, '2001:db8::9')", ECHO_REPLY[1], UNREACHABLE[1]),
        Attempt("SCTP", "other(2, '203.0.113.9')", NO_ANSWER, PROHIBITED[0]),
        Attempt("SCTP over IPv6", "other(10, '2001:db8::9')", NO_ANSWER, PROHIBITED[1]),
    ],
    ids=str,
)
def test_without_a_gate_all_is_refused_at_once(case: Attempt) -> None:
    """In the control nothing is captured, and the namespace itself is every destination."""
    code = SERVE + f"print(json.dumps({case.expression}))"
    silence = "PATIENCE_S = 0.2\n" if case.free == NO_ANSWER else ""
    assert within(UNRULED, TRY + silence + code) == case.free
    assert within(ZONE, TRY + code) == case.refused


def test_programs_speak_with_each_other_over_loopback_and_the_own_address() -> None:
    own = [(2, "127.0.0.1"), (2, "127.8.7.6"), (2, namespaces.OWN_V4), (10, "::1"), (10, namespaces.OWN_V6)]
    code = f"{TRY}{SERVE}print(json.dumps([attempt(f, 1, a) for f, a in {own}]))"
    assert within(ZONE, code) == [0] * len(own)


def test_a_zone_has_no_device_but_lo_and_no_route_but_to_itself() -> None:
    found = within(
        ZONE,
        """
routes = subprocess.run(["ip", "-json", "route", "show", "table", "all"], capture_output=True, check=True)
print(json.dumps([socket.if_nameindex(), [r["dev"] for r in json.loads(routes.stdout)]]))
""",
    )
    assert found[0] == [[1, "lo"]]
    assert set(found[1]) == {"lo"}


def test_a_host_that_bans_ipv6_does_not_keep_a_zone_from_being_made() -> None:
    ban = """
for which in ("all", "default", "lo"):
    Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
"""
    attempt = "print(json.dumps(attempt(10, 1, '2001:db8::9')))"
    assert within(UNRULED, TRY + ban + attempt) == errno.EADDRNOTAVAIL
    assert within(NEW, TRY + ban + "namespaces.make_zone()\n" + attempt) == errno.ECONNREFUSED


# -- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_tool_that_fails_leaves_no_zone_and_no_way_out(call: int) -> None:
    found = within(
        NEW,
        TRY
        + f"""
run, calls = namespaces.run, []
namespaces.ROUTE_V6_TRIES = 1
def failing(command, text):
    calls.append(command)
    run(command, "nonsense" if len(calls) == {call} else text)
namespaces.run = failing
try:
    namespaces.make_zone()
    said = ""
except namespaces.NamespaceError as error:
    said = str(error)
print(json.dumps([said, attempt(2, 1, "203.0.113.9"), attempt(10, 1, "2001:db8::9"), len(calls)]))
""",
    )
    said, v4, v6, calls = found
    assert calls == call
    assert said.startswith("nft refused: " if call == 2 else "ip refused: ")
    assert "\n" not in said
    assert v4 in (errno.ECONNREFUSED, errno.ENETUNREACH)
    assert v6 in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL)


def test_the_ears_for_datagrams_have_room_for_a_burst() -> None:
    """One hears all programs of a zone: it has more room than a socket of which nobody thought."""
    code = """
def room(sock):
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
usual = room(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
print(json.dumps([room(ear) > usual for ear in namespaces.open_datagram_ears()[:2]]))
"""
    assert within(ZONE, code) == [True, True]


def test_a_tool_that_is_not_there_is_named_with_the_cure() -> None:
    with pytest.raises(namespaces.NamespaceError, match=r"no-such-tool could not be run.*is it installed"):
        namespaces.run(["no-such-tool"], "")


def test_a_kernel_that_gives_no_namespaces_is_quoted_with_the_cure() -> None:
    said = within(
        NEW,
        """
Path("/proc/sys/user/max_user_namespaces").write_text("0")
try:
    namespaces.enter_new(0, 0)
except namespaces.NamespaceError as error:
    print(json.dumps(str(error)))
""",
    )
    assert said.startswith("the kernel gives no user namespace (")
    assert "sysctl -w user.max_user_namespaces=" in said


# -- from outside ------------------------------------------------------------------------------------


def test_a_namespace_tells_whose_it_is_and_is_not_ours() -> None:
    with somebody_within(NEW) as process:
        user_fd, net_fd = namespace_fds(process.pid)
        assert namespaces.owner_uid(net_fd) == os.getuid()
        assert not namespaces.is_own_network(net_fd)
        ipc.close_all([user_fd, net_fd])
    _, own = namespace_fds(os.getpid())
    assert namespaces.is_own_network(own)
    os.close(own)


@pytest.mark.parametrize("what", ["file", "pipe", "socket", "memory", "pid"])
def test_what_is_no_namespace_is_not_asked_anything(what: str, tmp_path: Path) -> None:
    """A file of a user's own file system could answer never; it might be called net:[1]."""
    file = tmp_path / "net:[1]"
    file.touch()
    read, write = os.pipe()
    one, other = socket.socketpair()
    memory, pidfd, named = os.memfd_create("net:[1]"), os.pidfd_open(os.getpid()), os.open(file, os.O_RDONLY)
    fd = {"file": named, "pipe": read, "socket": one.fileno(), "memory": memory, "pid": pidfd}[what]
    for ask in (namespaces.owner_uid, namespaces.is_own_network):
        with pytest.raises(OSError, match="it is not a namespace"):
            ask(fd)
    ipc.close_all([read, write, memory, pidfd, named])
    one.close()
    other.close()


# -- the door ----------------------------------------------------------------------------------------


def knock(user_fd: int, net_fd: int) -> tuple[Opened, list[socket.socket]]:
    """What the door says of a namespace, and the ears that it opened."""
    ours, theirs = ipc.pair()
    numbers = [theirs.fileno(), user_fd, net_fd]
    with ours, theirs:
        subprocess.run(
            sandbox.python_command("door", *map(str, numbers), bare=True),
            pass_fds=numbers,
            timeout=LIMIT_S,
            check=True,
        )
        ours.setblocking(False)
        answer, fds = ipc.receive(ours, [Opened])
    return answer, [socket.socket(fileno=fd) for fd in fds]


def test_the_door_opens_the_ears_of_a_zone() -> None:
    with somebody_within(ZONE) as process, contextlib.ExitStack() as undo:
        fds = namespace_fds(process.pid)
        answer, ears = knock(*fds)
        ipc.close_all(fds)
        for ear in ears:
            undo.enter_context(ear)
        assert (answer.trouble, len(ears)) == ("", len(namespaces.LISTENERS))
        with socket.socket() as own:
            assert namespaces.cookie(own) not in {namespaces.cookie(ear) for ear in ears}
        assert len({namespaces.cookie(ear) for ear in ears}) == 1
        assert not any(os.get_blocking(ear.fileno()) for ear in ears)
        assert [(ear.family, ear.type) for ear in ears] == [
            (family, kind)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
            for family in (socket.AF_INET, socket.AF_INET6)
        ]


@dataclass(frozen=True, slots=True)
class Capture:
    sentence: str
    ear: str
    family: int
    address: str
    port: int

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Capture("TCP over IPv4", "tcp4", 2, "203.0.113.9", 443),
        Capture("TCP over IPv6", "tcp6", 10, "2001:db8::9", 443),
        Capture("a mapped address", "tcp4", 10, "::ffff:203.0.113.9", 25),
        Capture("the port of the gate elsewhere", "tcp4", 2, "203.0.113.9", namespaces.GATE_PORT),
        Capture("DNS over TCP", "dns-tcp4", 2, "8.8.8.8", 53),
        Capture("DNS over TCP and IPv6", "dns-tcp6", 10, "2001:4860:4860::8888", 53),
        Capture("DNS at the own address", "dns-tcp4", 2, namespaces.OWN_V4, 53),
    ],
    ids=str,
)
def test_connections_come_to_the_ears_with_their_destination(case: Capture) -> None:
    with somebody_within(ZONE) as process, contextlib.ExitStack() as undo:
        fds = namespace_fds(process.pid)
        _, ears = knock(*fds)
        ipc.close_all(fds)
        for ear in ears:
            undo.enter_context(ear)
        assert process.stdin is not None
        line = f"s = socket.socket({case.family}); s.connect({(case.address, case.port)}); s.send(b'x')\n"
        process.stdin.write(line.encode())
        process.stdin.flush()
        ear = ears[namespaces.LISTENERS.index(case.ear)]
        ear.settimeout(LIMIT_S)
        with ear.accept()[0] as accepted:
            assert accepted.getsockname()[:2] == (case.address.removeprefix("::ffff:"), case.port)
            own = namespaces.OWN_V4 if accepted.family == socket.AF_INET else namespaces.OWN_V6
            assert accepted.getpeername()[0] == own


@pytest.mark.parametrize(
    ("ear", "address"), [("dns4", "8.8.8.8"), ("dns6", "2001:4860:4860::8888"), ("dns4", "127.0.0.53")]
)
def test_questions_to_any_resolver_come_to_the_ears(ear: str, address: str) -> None:
    with somebody_within(ZONE) as process, contextlib.ExitStack() as undo:
        fds = namespace_fds(process.pid)
        _, ears = knock(*fds)
        ipc.close_all(fds)
        for one in ears:
            undo.enter_context(one)
        listener = ears[namespaces.LISTENERS.index(ear)]
        assert process.stdin is not None
        line = f"s = socket.socket({int(listener.family)}, 2); s.sendto(b'question', {(address, 53)})\n"
        process.stdin.write(line.encode())
        process.stdin.flush()
        listener.settimeout(LIMIT_S)
        data, ancillary, _, _ = listener.recvmsg(100, 100)
        assert data == b"question"
        assert socket.inet_pton(listener.family, address) in ancillary[0][2]


def test_the_door_says_when_a_device_could_lead_out() -> None:
    veth = """
subprocess.run(["ip", "link", "add", "type", "veth"], check=True)
"""
    up = 'subprocess.run(["ip", "link", "set", "veth0", "up"], check=True)\n'
    for more, trouble in (("", ""), (up, "another device than lo is up in it")):
        with somebody_within(ZONE, veth + more) as process:
            fds = namespace_fds(process.pid)
            answer, ears = knock(*fds)
            ipc.close_all(fds)
            for ear in ears:
                ear.close()
            assert trouble in answer.trouble
            assert bool(ears) is not bool(trouble)


def test_the_door_says_when_somebody_has_the_gates_ports() -> None:
    with somebody_within(ZONE, f"s = socket.create_server(('', {namespaces.GATE_PORT}))\n") as process:
        fds = namespace_fds(process.pid)
        answer, ears = knock(*fds)
        ipc.close_all(fds)
    assert "Address already in use" in answer.trouble
    assert not ears


def test_the_door_says_when_it_is_shown_no_namespace() -> None:
    with Path("/dev/null").open("rb") as null:
        answer, ears = knock(null.fileno(), null.fileno())
    assert "cannot be served" in answer.trouble
    assert not ears


def test_a_listener_of_a_program_on_the_gates_port_hears_nothing_from_elsewhere() -> None:
    """TPROXY hands connections to transparent sockets only, and no program in a bubble can make one."""
    code = f"""
server = socket.create_server(("", {namespaces.GATE_PORT}))
print(json.dumps(attempt(2, 1, "203.0.113.9")))
"""
    assert within(ZONE, TRY + code) == errno.ECONNREFUSED
