"""Sandboxes: what a sealed worker and a program in a bubble cannot do, after seeing that others can."""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy import ipc, sandbox, syscalls

LIMIT_S = 90
# Makes many attempts and says for each what came of it: 0 or an errno. Runs with the standard library only.
PROBE = r"""
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
told = json.loads(sys.argv[1])

def call(name, *arguments):
    ctypes.set_errno(0)
    return 0 if getattr(libc, name)(*arguments) >= 0 else ctypes.get_errno()

def syscall(number, *arguments):
    return call("syscall", number, *arguments)

def made(action):
    try:
        result = action()
    except OSError as error:
        return error.errno
    close = getattr(result, "close", None)
    close and close()
    return 0

found = {}
for family in told.get("families", []):
    found[f"family {family}"] = made(lambda: socket.socket(family, socket.SOCK_DGRAM))
    found[f"pair {family}"] = made(lambda: socket.socketpair(family, socket.SOCK_DGRAM)[0])
for family in (2, 10):
    found[f"raw {family}"] = made(lambda: socket.socket(family, socket.SOCK_RAW, 255))
    found[f"stream {family}"] = made(lambda: socket.socket(family, socket.SOCK_STREAM))
    found[f"ping {family}"] = made(lambda: socket.socket(family, socket.SOCK_DGRAM, {2: 1, 10: 58}[family]))
    found[f"of UDP {family}"] = made(lambda: socket.socket(family, socket.SOCK_DGRAM))
found["connect"] = call("connect", told["sockets"][0], bytes(16), 16)
found["listen"] = call("listen", told["sockets"][0], 1)
def option(level, name, value):
    with socket.socket(fileno=os.dup(told["sockets"][level == 41])) as sock:
        return made(lambda: sock.setsockopt(level, name, value))

route = bytes([0, 4, 4, 1, 1, 0, 0, 0]) + socket.inet_pton(10, "::1") + socket.inet_pton(10, "fd00::2")
found["SO_BINDTODEVICE"] = option(1, 25, b"lo\0")
found["IPV6_RTHDR"] = option(41, 57, route)
found["IP_TOS"] = option(0, 1, 8)
found["SO_KEEPALIVE"] = option(1, 9, 1)
found["TCP_USER_TIMEOUT"] = option(6, 18, 1)
found["SO_LINGER"] = option(1, 13, bytes(8))
found["TCP_NODELAY"] = option(6, 1, 1)
value = ctypes.create_string_buffer(4)
for name, level, number in (("IP_TOS", 1 << 32, 1), ("SO_KEEPALIVE", 1, (1 << 32) + 9)):
    code = syscall(told["calls"]["setsockopt"], told["sockets"][0], ctypes.c_ulong(level),
                   ctypes.c_ulong(number), value, 4)
    found[f"{name} beyond 32 bits"] = code
found["family beyond 32 bits"] = syscall(told["calls"]["socket"], ctypes.c_ulong((1 << 32) + 2), 2, 0)
found["io_uring"] = syscall(425, 0, None)
found["keyctl"] = syscall(told["calls"]["keyctl"], 0, -3, 0)
found["pidfd_getfd"] = syscall(438, -1, 0, 0)
found["bpf"] = syscall(told["calls"]["bpf"], -1, None, 0)
found["userfaultfd"] = syscall(told["calls"]["userfaultfd"], -1)
found["ptrace"] = call("ptrace", 16, -1, 0, 0)  # PTRACE_ATTACH
found["unshare"] = 0 if os.fork() else None
if found["unshare"] is None:
    os._exit(1 if made(lambda: os.unshare(os.CLONE_NEWUSER)) else 0)
found["unshare"] = os.waitstatus_to_exitcode(os.wait()[1])
class CloneArguments(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 10)]
found["clone3"] = syscall(435, ctypes.byref(CloneArguments(0xFFFFFFFFFFFFFFFF)), 88)
found["TIOCSTI"] = made(lambda: __import__("fcntl").ioctl(told["terminal"], 0x5412, b"x"))
found["TIOCSTI beyond 32 bits"] = call("ioctl", told["terminal"], ctypes.c_ulong((1 << 32) + 0x5412), b"x")
found["sees"] = sorted(os.listdir("/"))
found["capabilities"] = [l.split()[1] for l in open("/proc/self/status") if l.startswith("Cap")] \
    if os.path.exists("/proc/self/status") else "no /proc"
print(json.dumps(found))
"""
FAMILIES = [*range(64), 99]
# Later calls have one number on all machines.
CALLS = {
    "x86_64": {"socket": 41, "keyctl": 250, "bpf": 321, "userfaultfd": 323, "setsockopt": 54},
    "aarch64": {"socket": 198, "keyctl": 219, "bpf": 280, "userfaultfd": 282, "setsockopt": 208},
}[platform.machine()]


def probe(command: list[str], fds: Sequence[int] = ()) -> dict[str, Any]:
    master, slave = os.openpty()
    with socket.socket(socket.AF_INET) as four, socket.socket(socket.AF_INET6) as six:
        sockets = [four.fileno(), six.fileno()]
        told = {"families": FAMILIES, "calls": CALLS, "terminal": slave, "sockets": sockets}
        done = subprocess.run(
            [*command, PROBE, json.dumps(told)],
            pass_fds=[*fds, slave, *sockets],
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    os.close(master)
    os.close(slave)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", *arguments]


@pytest.fixture(scope="module")
def free() -> dict[str, Any]:
    """What a process without any sandbox can do: the positive control."""
    return probe(python())


@pytest.fixture(scope="module")
def in_bubble() -> dict[str, Any]:
    """With a bubble's filter and nothing else."""
    fd = ipc.memory_file("seccomp", syscalls.bubble_filter())
    try:
        return probe(["bwrap", "--dev-bind", "/", "/", "--seccomp", str(fd), "--", *python()], [fd])
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def in_worker() -> dict[str, Any]:
    """Sealed as a worker is."""
    fd = ipc.memory_file("seccomp", syscalls.worker_filter())
    try:
        return probe(sandbox.sealed(python(), fd), [fd])
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def in_datagram_holder() -> dict[str, Any]:
    """Sealed as a datagram holder is."""
    fd = ipc.memory_file("seccomp", syscalls.datagram_holder_filter())
    try:
        return probe(sandbox.sealed_in_network(python(), fd), [fd])
    finally:
        os.close(fd)


# -- the bubble's filter -----------------------------------------------------------------------------


def test_without_a_filter_other_families_can_be_had(free: dict[str, Any]) -> None:
    others = [family for family in FAMILIES if family not in syscalls.BUBBLE_FAMILIES]
    assert any(free[f"family {family}"] != errno.EAFNOSUPPORT for family in others)
    assert os.getuid() or any(free[f"family {family}"] == 0 for family in others)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bubble_has_the_families_of_ordinary_programs_and_no_other(
    free: dict[str, Any], in_bubble: dict[str, Any], family: int
) -> None:
    if family in syscalls.BUBBLE_FAMILIES:
        assert in_bubble[f"family {family}"] == free[f"family {family}"] == 0
    else:
        assert in_bubble[f"family {family}"] == errno.EAFNOSUPPORT
    if family != socket.AF_UNIX:
        assert in_bubble[f"pair {family}"] == errno.EAFNOSUPPORT


@pytest.mark.parametrize("what", ["raw 2", "raw 10", "io_uring", "TIOCSTI", "TIOCSTI beyond 32 bits"])
def test_a_bubble_has_no_way_around_its_namespace(
    free: dict[str, Any], in_bubble: dict[str, Any], what: str
) -> None:
    assert in_bubble[what] == errno.EPERM
    if os.getuid() == 0 or what == "io_uring":  # a user without capabilities has the others from nobody
        assert free[what] != errno.EPERM


@pytest.mark.parametrize("what", ["keyctl", "pidfd_getfd", "bpf", "userfaultfd"])
def test_a_bubble_has_no_calls_into_other_processes_or_the_kernel(
    in_bubble: dict[str, Any], what: str
) -> None:
    assert in_bubble[what] == errno.EPERM


def test_the_upper_half_of_a_family_does_not_hide_it(free: dict[str, Any], in_bubble: dict[str, Any]) -> None:
    """The kernel looks at 32 bits, a filter at 64."""
    assert free["family beyond 32 bits"] == 0
    assert in_bubble["family beyond 32 bits"] == errno.EAFNOSUPPORT


def test_programs_may_still_make_sandboxes_of_their_own(in_bubble: dict[str, Any]) -> None:
    assert in_bubble["unshare"] == 0  # as browsers do
    assert in_bubble["pair 1"] == 0


# -- the sealed worker -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_worker_makes_no_socket(in_worker: dict[str, Any], family: int) -> None:
    assert in_worker[f"family {family}"] == errno.EPERM


@pytest.mark.parametrize(
    "what",
    ["raw 2", "raw 10", "family beyond 32 bits", "io_uring", "keyctl", "pidfd_getfd", "bpf", "ptrace"],
)
def test_a_worker_has_no_other_way_to_one(in_worker: dict[str, Any], what: str) -> None:
    assert in_worker[what] == errno.EPERM


AIMING = ("SO_BINDTODEVICE", "IPV6_RTHDR", "IP_TOS", "SO_KEEPALIVE", "TCP_USER_TIMEOUT")


@pytest.mark.parametrize("what", [*AIMING, "IP_TOS beyond 32 bits", "SO_KEEPALIVE beyond 32 bits"])
def test_a_worker_cannot_aim_a_socket_that_it_was_given(
    free: dict[str, Any], in_worker: dict[str, Any], what: str
) -> None:
    """Without a capability another link or a source route takes a connected socket's packets elsewhere."""
    assert free[what] != errno.EPERM
    assert in_worker[what] == errno.EPERM


@pytest.mark.parametrize("what", ["SO_LINGER", "TCP_NODELAY"])
def test_a_worker_sets_what_carrying_needs(in_worker: dict[str, Any], what: str) -> None:
    assert in_worker[what] == 0


def test_a_worker_makes_no_namespace(free: dict[str, Any], in_worker: dict[str, Any]) -> None:
    assert free["unshare"] == 0
    assert in_worker["unshare"] == 1
    assert free["clone3"] == errno.EINVAL
    assert in_worker["clone3"] == errno.ENOSYS


def test_a_worker_sees_the_interpreter_and_no_place_where_sockets_are(
    free: dict[str, Any], in_worker: dict[str, Any]
) -> None:
    hidden = {"run", "var", "tmp", "home", "proc", "dev", "sys", "etc"}
    assert hidden - {"home"} <= set(free["sees"])
    needed = {Path(path).parts[1] for path in sandbox.interpreter_paths()}  # a checkout may lie in /home
    assert not (hidden - needed) & set(in_worker["sees"])
    assert not {"run", "var", "proc", "dev", "sys", "etc"} & needed


SPEAK_TO_UNIX = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
try:
    sock.sendto(b"canary", sys.argv[2])
except OSError as error:
    print(error.errno)
else:
    print(0)
"""


@pytest.mark.parametrize("place", ["/run", "/var/tmp", "/tmp", "/dev/shm"])
def test_a_worker_reaches_no_unix_socket_of_the_host_even_with_a_socket_of_its_own(place: str) -> None:
    """Unix sockets cross network namespaces: nscd, systemd-resolved, D-Bus."""
    directory = Path(place if os.access(place, os.W_OK) else "/tmp") / f"zonegate-test-{os.getpid()}"
    directory.mkdir()
    path = directory / "nscd"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(path))
        there.setblocking(False)
        try:
            assert _given_socket(python(), path) == 0
            assert there.recv(100) == b"canary"
            fd = ipc.memory_file("seccomp", syscalls.worker_filter())
            assert _given_socket(sandbox.sealed(python(), fd), path, fd) == errno.ENOENT
            os.close(fd)
            with pytest.raises(BlockingIOError):
                there.recv(100)
        finally:
            path.unlink()
            directory.rmdir()


def _given_socket(command: list[str], path: Path, *fds: int) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as given:
        number = given.fileno()
        done = subprocess.run(
            [*command, SPEAK_TO_UNIX, str(number), str(path)],
            pass_fds=[number, *fds],
            capture_output=True,
            timeout=LIMIT_S,
            check=True,
        )
        return int(done.stdout)


# A given socket is disconnected (connect to AF_UNSPEC) and aimed elsewhere, in one of four ways.
AIM_ELSEWHERE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
fd, port, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]
class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("name_length", ctypes.c_uint), ("pieces", ctypes.c_void_p),
                ("piece_count", ctypes.c_size_t), ("control", ctypes.c_void_p),
                ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int), ("length", ctypes.c_uint)]
there = socket.AF_INET.to_bytes(2, sys.byteorder) + port.to_bytes(2) + bytes([127, 0, 0, 1]) + bytes(8)
piece = Piece(b"canary", 6)
message = Message(there, 16, ctypes.addressof(piece), 1, None, 0, 0, 0)
FAST, QUIET = 0x20000000, 0x4000
os.set_blocking(fd, True)
libc.connect(fd, bytes(16), 16)
match way:
    case "connect":
        libc.connect(fd, there, 16)
        libc.send(fd, b"canary", 6, QUIET)
    case "sendto":
        libc.sendto(fd, b"canary", 6, FAST | QUIET, there, 16)
    case "sendmsg":
        libc.sendmsg(fd, ctypes.byref(message), FAST | QUIET)
    case "sendmmsg":
        libc.sendmmsg(fd, ctypes.byref(message), 1, FAST | QUIET)
"""


@pytest.mark.parametrize("way", ["connect", "sendto", "sendmsg", "sendmmsg"])
@pytest.mark.parametrize("kind", ["connected", "accepted", "listening", "fresh"])
def test_a_worker_cannot_aim_a_given_socket_elsewhere(kind: str, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(LIMIT_S)
        _aim(python(), kind, way, elsewhere)
        with elsewhere.accept()[0] as canary:
            assert canary.recv(6) == b"canary"
        fd = ipc.memory_file("seccomp", syscalls.worker_filter())
        _aim(sandbox.sealed(python(), fd), kind, way, elsewhere, fd)
        os.close(fd)
        with socket.create_connection(elsewhere.getsockname()) as last:
            accepted, address = elsewhere.accept()
            accepted.close()
            assert address == last.getsockname()  # there was none before it


def _aim(command: list[str], kind: str, way: str, elsewhere: socket.socket, *fds: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as accepted,
        socket.socket() as fresh,
    ):
        given = {"connected": client, "accepted": accepted, "listening": listener, "fresh": fresh}
        number = given[kind].fileno()
        subprocess.run(
            [*command, AIM_ELSEWHERE, str(number), str(elsewhere.getsockname()[1]), way],
            pass_fds=[number, *fds],
            capture_output=True,
            timeout=LIMIT_S,
            check=True,
        )


def test_a_worker_can_write_nowhere_but_to_its_private_memory() -> None:
    attempt = """
import os, pathlib, sys
for place in ["/", "/usr/lib", *sys.path, "/secrets"]:
    try:
        pathlib.Path(place, "written").write_text("x")
    except OSError:
        continue
    print(place)
pathlib.Path("/secrets/written").write_bytes(bytes(1 << 19))
try:
    pathlib.Path("/secrets/more").write_bytes(bytes(1 << 21))
except OSError as error:
    print(error.errno)
print(oct(os.stat("/secrets").st_mode))
"""
    fd = ipc.memory_file("seccomp", syscalls.worker_filter())
    done = subprocess.run(
        [*sandbox.sealed(python(), fd), attempt],
        pass_fds=[fd],
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )
    os.close(fd)
    assert done.stdout.decode().splitlines() == ["/secrets", str(errno.ENOSPC), "0o40700"]


def test_a_worker_has_no_environment_of_the_daemons() -> None:
    fd = ipc.memory_file("seccomp", syscalls.worker_filter())
    done = subprocess.run(
        [*sandbox.sealed(python(), fd), "import os; print(sorted(os.environ))"],
        pass_fds=[fd],
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
        env=os.environ | {"SECRET": "x"},
    )
    os.close(fd)
    assert b"SECRET" not in done.stdout


# -- the rest ----------------------------------------------------------------------------------------


def test_python_command_runs_our_module_apart_from_the_users_environment(tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command = sandbox.python_command("prctl", "one", bare=True)
    command[4] = command[4].replace("from proxy.prctl import main; main(sys.argv[1:])", "print(sys.argv[1:])")
    shown = subprocess.run(
        [*command[:4], command[4] + "; import proxy; print(proxy.__file__)", *command[5:]],
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert shown.stdout.decode().splitlines() == [
        "['one']",
        str(Path(sandbox.__file__).parent / "__init__.py"),
    ]


def test_a_link_to_the_interpreter_is_bound_with_its_end(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    assert sandbox._outermost([str(link)]) == [str(link), str(real)]
    assert sandbox._outermost([str(real), str(real / "lib"), str(tmp_path)]) == [str(tmp_path)]


def test_what_is_missing_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox.missing() == []
    monkeypatch.setattr(sandbox, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.missing() == [
        "bwrap is not installed; install Debian's package: apt-get install bubblewrap",
        "nft is not installed; install Debian's package: apt-get install nftables",
        "ip is not installed; install Debian's package: apt-get install iproute2",
    ]


# -- the datagram holder -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in (2, 10)])
def test_a_datagram_holder_makes_sockets_of_the_internet_alone(
    in_datagram_holder: dict[str, Any], family: int
) -> None:
    """Also no Unix socket, nor a pair that sends datagrams: in the host's network there are abstract ones."""
    assert in_datagram_holder[f"family {family}"] == errno.EPERM


@pytest.mark.parametrize("family", [2, 10])
def test_a_datagram_holder_makes_sockets_of_udp_alone(
    free: dict[str, Any], in_datagram_holder: dict[str, Any], family: int
) -> None:
    assert in_datagram_holder[f"of UDP {family}"] == 0
    assert free[f"stream {family}"] == 0
    for what in ("stream", "raw", "ping"):
        assert in_datagram_holder[f"{what} {family}"] == errno.EPERM


@pytest.mark.parametrize(
    "what",
    [
        *AIMING,
        *("connect", "listen", "io_uring", "keyctl", "pidfd_getfd", "bpf", "ptrace"),
        *("SO_LINGER", "TCP_NODELAY", "family beyond 32 bits"),
    ],
)
def test_a_datagram_holder_has_no_other_way_to_one(in_datagram_holder: dict[str, Any], what: str) -> None:
    assert in_datagram_holder[what] == errno.EPERM


def test_a_datagram_holder_sees_and_makes_what_a_worker_does(
    in_worker: dict[str, Any], in_datagram_holder: dict[str, Any]
) -> None:
    assert in_datagram_holder["pair 1"] == errno.EPERM
    for what in ("sees", "capabilities", "unshare", "clone3"):
        assert in_datagram_holder[what] == in_worker[what], what
