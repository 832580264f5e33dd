"""What a program in a bubble sees of the host: the system, read-only, a home of its own, and nobody to ask.

Each thing that must not be seen is seen from outside first.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import socket
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bubbles import LIMIT_S, PYTHON, Ground, at_a_terminal, outside

from proxy import bubble, host_sockets
from proxy.bubble import View


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    there = Ground(tmp_path)
    try:
        there.daemon()
        yield there
    finally:
        there.close()


@contextlib.contextmanager
def elsewhere(parent: str) -> Iterator[Path]:
    """A new directory in a place of the host that is not the test's own."""
    directory = Path(parent) / f"zonegate-test-{uuid.uuid4()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def _writable(*places: str) -> list[str]:
    found = [place for place in places if os.access(place, os.W_OK)]
    assert found
    return found


# -- nobody to ask (B1, B6) --------------------------------------------------------------------------

ASK = """
import socket, sys
name = sys.argv[1].replace("@", chr(0))
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
try:
    sock.connect(name)
except OSError as error:
    print(type(error).__name__)
else:
    print("reached")
"""


@pytest.mark.parametrize(
    "place", _writable("/tmp", "/run", f"/run/user/{os.getuid()}", "/var/tmp", "/dev/shm", "/mnt", "/srv")
)
def test_no_unix_socket_of_the_host_is_there(ground: Ground, place: str) -> None:
    with elsewhere(place) as directory, socket.socket(socket.AF_UNIX) as server:
        path = str(directory / "tmux")
        server.bind(path)
        server.listen()
        assert outside(ASK, path) == "reached\n"
        assert ground.python(ASK, path) == "FileNotFoundError\n"


def test_no_unix_socket_in_the_own_home_is_there(ground: Ground) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        path = str(ground.home / "S.gpg-agent")
        server.bind(path)
        server.listen()
        assert outside(ASK, path) == "reached\n"
        assert ground.python(ASK, path) == "FileNotFoundError\n"


def test_no_abstract_socket_of_the_host_is_there(ground: Ground) -> None:
    name = f"@/tmp/.X11-unix/{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name.replace("@", "\0"))
        server.listen()
        assert outside(ASK, name) == "reached\n"
        assert ground.python(ASK, name) == "ConnectionRefusedError\n"


@pytest.mark.parametrize("path", ["/nix/var/nix/daemon-socket/socket", "/var/guix/daemon-socket/socket"])
def test_no_builder_that_fetches_for_whoever_asks_is_in_what_is_shown_of_the_system(path: str) -> None:
    """Such a daemon is not on most machines; connect(2) asks no mount whether it is read-only."""
    shown = [place for place in bubble.SYSTEM_DIRECTORIES if Path(path).is_relative_to(place)]
    assert shown == []


def test_the_daemon_itself_is_not_there(ground: Ground) -> None:
    ask = ASK.replace("SOCK_STREAM", "SOCK_SEQPACKET")
    assert outside(ask, str(ground.socket)) == "reached\n"
    assert ground.python(ask, str(ground.socket)) == "FileNotFoundError\n"


@pytest.mark.parametrize("asked_for", [True, False])
def test_the_wayland_display_is_there_when_asked_for_and_nothing_beside_it(
    ground: Ground, asked_for: bool
) -> None:
    runtime = ground.directory / "runtime"
    runtime.mkdir()
    variables = os.environ | {"XDG_RUNTIME_DIR": str(runtime), "WAYLAND_DISPLAY": "wayland-7"}
    report = f"""{ASK.replace("name = sys.argv[1]", "import os; name = os.path.join(*sys.argv[1:])")}
print(os.environ.get("WAYLAND_DISPLAY"), sorted(os.listdir(os.environ["XDG_RUNTIME_DIR"])))
"""
    with socket.socket(socket.AF_UNIX) as display, socket.socket(socket.AF_UNIX) as bus:
        for sock, name in ((display, "wayland-7"), (bus, "bus")):
            sock.bind(str(runtime / name))
            sock.listen()
        inside = f"/run/user/{os.getuid()}"
        out = ground.python(report, inside, "wayland-0", wayland=asked_for, popen={"env": variables})
    assert out == ("reached\nwayland-0 ['wayland-0']\n" if asked_for else "FileNotFoundError\nNone []\n")


def test_without_a_display_there_is_none(ground: Ground) -> None:
    variables = os.environ | {"XDG_RUNTIME_DIR": "/nonexistent", "WAYLAND_DISPLAY": "wayland-7"}
    show = "import os; print('WAYLAND_DISPLAY' in os.environ)"
    assert ground.python(show, wayland=True, popen={"env": variables}) == "False\n"


def test_a_socket_in_a_directory_that_is_shared_is_hidden_and_said(ground: Ground) -> None:
    shared = ground.directory / "shared"
    (shared / ".git").mkdir(parents=True)
    (shared / "file").write_text("here")
    (shared / "link").symlink_to(ground.directory)  # not followed
    path = str(shared / ".git" / "ipc")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert outside(ASK, path) == "reached\n"
        command = (PYTHON, "-I", "-S", "-c", ASK, path)
        assert ground.run(*command, share=[str(shared), path]) == (0, "reached\n", ""), "one that is given"
        code, out, errors = ground.run(*command, share=[str(shared)])
        assert (code, out) == (0, "ConnectionRefusedError\n")
        assert f"a socket of the host is hidden from the program: {path};" in errors
        assert ground.run("cat", "file", share=[str(shared)], popen={"cwd": shared})[1] == "here"
        assert outside(ASK, path) == "reached\n", "and is what it was"


def test_what_cannot_be_looked_through_makes_a_bubble_cooperative(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / "below" / str(number)).mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "below" / "8" / "sock"))
        found = host_sockets.below([tmp_path])
        assert found == host_sockets.Found((tmp_path / "below" / "8" / "sock",))
    assert host_sockets.below([tmp_path], most=11).whole
    assert not host_sockets.below([tmp_path], most=10).whole
    view = replace(VIEW, share=[tmp_path])
    assert not view.cooperative and not bubble.looked_through(view).cooperative
    assert replace(view, unseen=True).cooperative


def test_a_directory_of_ones_own_can_be_opened_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is closed, also to its owner, may be opened again from inside; another's may not."""
    scandir = os.scandir

    def closed(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError
        return scandir(path)

    directory = tmp_path / "closed"
    directory.mkdir()
    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert not host_sockets.below([tmp_path]).whole
    os.chown(directory, os.geteuid() + 4321, -1)
    assert host_sockets.below([tmp_path]).whole


# -- the own terminal and descriptors (B2, B7) -------------------------------------------------------


def test_nobody_types_into_the_outer_shell(ground: Ground) -> None:
    attempt = """
import fcntl, os
for fd in (0, 1, 2, os.open("/dev/tty", os.O_RDWR)):
    try:
        fcntl.ioctl(fd, 0x5412, b"x")
        print("typed")
    except OSError as error:
        print(error.errno)
print("end")
"""
    with at_a_terminal() as person:
        slave = person.slave
        started = ground.start(
            PYTHON,
            "-I",
            "-S",
            "-c",
            attempt,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            options={"terminal": True},
        )
        assert person.read_until("end").split() == ["1", "1", "1", "1", "end"]
        assert started.wait(LIMIT_S) == 0


def test_no_descriptor_above_two_is_inherited(ground: Ground) -> None:
    seen = """
import os
for name in os.listdir("/proc/self/fd"):
    try:
        print(name, os.readlink("/proc/self/fd/" + name))
    except OSError:
        pass  # the one that listed the directory
"""
    read, write = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    high = os.dup2(write, 700)
    given = [read, write, directory, high]
    assert str(high) in [line.split()[0] for line in outside(seen, pass_fds=given).splitlines()]
    out = ground.python(seen, popen={"pass_fds": given})
    assert {line.split()[0] for line in out.splitlines()} <= {"0", "1", "2"}
    for fd in given:
        os.close(fd)


def test_descriptors_of_bubblewraps_own_processes_lead_nowhere(ground: Ground) -> None:
    """Its init is process 1 of the bubble, and of the same user."""
    seen = """
import os
print([os.readlink(f"/proc/1/fd/{fd}") for fd in os.listdir("/proc/1/fd") if int(fd) > 2])
"""
    code, out, _ = ground.run(PYTHON, "-I", "-S", "-c", seen)
    assert code != 0 or all(
        name.startswith(("anon_inode:", "pipe:", "socket:", "/dev/null", "/proc"))
        for name in json.loads(out.replace("'", '"'))
    ), out


REOPEN = """
import os, sys
for fd in (0, 1):
    try:
        os.fchmod(fd, 0o4777)
        os.ftruncate(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), 0)
    except OSError:
        pass
"""


def test_files_of_the_person_are_no_more_than_streams(ground: Ground) -> None:
    """One that was opened for reading or appending cannot be opened anew (B3)."""
    given, log = ground.directory / "script", ground.directory / "log"
    command = ground.command([PYTHON, "-I", "-S", "-c", REOPEN])
    sizes = []
    for argv in ([PYTHON, "-I", "-S", "-c", REOPEN], command):
        for file in (given, log):
            file.write_text("mine")
            file.chmod(0o600)
        with given.open("rb") as stdin, log.open("ab") as stdout:
            subprocess.run(argv, stdin=stdin, stdout=stdout, timeout=LIMIT_S, check=True)
        sizes.append([(file.stat().st_size, file.stat().st_mode & 0o7777) for file in (given, log)])
    assert sizes == [[(0, 0o4777)] * 2, [(4, 0o600)] * 2]


def test_the_outer_shells_commands_are_not_written_into_the_pipe_that_it_reads(ground: Ground) -> None:
    """As under an agent, or in `ssh HOST sh < script` (B2)."""
    inject = 'import os; os.write(os.open("/proc/self/fd/0", os.O_WRONLY), b"echo injected\\n")'
    python = [PYTHON, "-I", "-S", "-c", inject]
    for command, said in ((python, b"injected\n"), (ground.command(python), b"")):
        with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
            out, _ = shell.communicate(f"{shlex.join(command)} 2>&-\n".encode(), timeout=LIMIT_S)
        assert out == said


# -- the own home (B3) -------------------------------------------------------------------------------


def test_what_is_written_for_later_lies_in_the_zone_and_is_kept_there(ground: Ground) -> None:
    write = "import os; open(os.path.expanduser('~/.bashrc'), 'w').write('evil')"
    variables = os.environ | {"HOME": str(ground.home)}
    outside(write, env=variables)
    assert (ground.home / ".bashrc").read_text() == "evil"
    (ground.home / ".bashrc").write_text("good")
    ground.python(write, popen={"env": variables})
    assert (ground.home / ".bashrc").read_text() == "good"
    assert (ground.zone_home / ".bashrc").read_text() == "evil"
    assert ground.run("sh", "-c", "cat ~/.bashrc")[1] == "evil"


def test_the_home_can_be_shared_and_said_so(ground: Ground) -> None:
    (ground.home / "mine").write_text("mine")
    assert ground.run("sh", "-c", "cat ~/mine")[0] == 1
    assert ground.run("sh", "-c", "cat ~/mine", share_home=True)[1] == "mine"


def test_a_shared_path_is_the_hosts_and_the_working_directory_if_one_is_in_it(ground: Ground) -> None:
    shared, other = ground.directory / "shared", ground.directory / "other"
    for place in (shared, other):
        place.mkdir()
        (place / "file").write_text("here")
    script = "pwd; cat file; echo more > new"
    code, out, _ = ground.run("sh", "-c", script, share=[str(shared)], popen={"cwd": shared})
    assert (code, out) == (0, f"{shared}\nhere")
    assert (shared / "new").read_text() == "more\n"
    code, out, _ = ground.run("sh", "-c", script, share=[str(shared)], popen={"cwd": other})
    assert out == f"{ground.home}\n"
    assert not (other / "new").exists()


def test_a_working_directory_that_was_removed_is_no_trouble(ground: Ground) -> None:
    gone = ground.directory / "gone"
    gone.mkdir()
    command = ground.command(["pwd"])
    out = outside(
        "import os, subprocess, sys; os.rmdir(os.getcwd()); print(subprocess.run(sys.argv[1:]).returncode)",
        *command,
        cwd=gone,
    )
    assert out == f"{ground.home}\n0\n"


# -- other processes (B4) ----------------------------------------------------------------------------


def test_no_process_of_the_host_is_seen_signalled_or_traced(ground: Ground) -> None:
    attempt = """
import ctypes, os, sys
outer = int(sys.argv[1])
print(os.path.exists(f"/proc/{outer}/cmdline"))
try:
    os.kill(outer, 0)
    print("signalled")
except OSError as error:
    print(type(error).__name__)
print(max(int(name) for name in os.listdir("/proc") if name.isdigit()) < 50)
"""
    own = str(os.getpid())
    assert outside(attempt, own).splitlines()[:2] == ["True", "signalled"]
    assert ground.python(attempt, own) == "False\nProcessLookupError\nTrue\n"


def test_killing_everybody_ends_the_bubble_alone(ground: Ground) -> None:
    code, _, _ = ground.run("bash", "-c", "kill -KILL -1; exit 4")
    assert code in (4, 137)


# -- the kernel --------------------------------------------------------------------------------------


def test_there_are_no_capabilities_and_none_can_be_gained(ground: Ground) -> None:
    out = ground.run("grep", "-E", "^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):", "/proc/self/status")[1]
    found = dict(line.split(":\t") for line in out.splitlines())
    assert {found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


OPEN_FOR_WRITING = """
import os, sys
for name in sys.argv[1:]:
    try:
        os.close(os.open(name, os.O_WRONLY))
        print("opened")
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


def test_the_kernels_settings_cannot_be_written(ground: Ground) -> None:
    """For these the kernel looks at the uid alone; a core_pattern is a command that the host's root runs."""
    names = ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"]
    if os.getuid() == 0:
        assert outside(OPEN_FOR_WRITING, *names) == "opened\n" * len(names)
    out = ground.python(OPEN_FOR_WRITING, *names)
    assert set(out.splitlines()) <= {"OSError 30", "PermissionError 13", "PermissionError 1"}


@pytest.mark.parametrize(
    "script",
    [
        "umount /proc/sys",
        "mount -o remount,rw,bind /proc/sys",
        "mount -t proc proc /tmp",
        "mount -t sysfs sysfs /tmp",
        "umount -l /proc; umount -l /etc",
        "umount /etc/resolv.conf",
        "umount /run",
        "mount -o remount,rw,bind /usr",
    ],
)
def test_a_namespace_made_inside_opens_nothing(ground: Ground, script: str) -> None:
    """A program may make namespaces, as browsers do; what was mounted over or read-only stays so in them."""
    code, _, errors = ground.run("unshare", "--user", "--keep-caps", "--mount", "--pid", "--fork", "true")
    assert code == 0, errors
    code, out, errors = ground.run(
        "unshare", "--user", "--keep-caps", "--mount", "--pid", "--fork", "sh", "-c", f"{script}; echo $?"
    )
    assert code == 0
    assert out.strip() != "0"
    assert errors


def test_the_hosts_network_is_not_joined_through_proc(ground: Ground) -> None:
    names = ground.run("sh", "-c", "readlink /proc/*/ns/net | sort -u")[1].split()
    assert len(names) == 1
    assert names != [os.readlink("/proc/self/ns/net")]  # noqa: PTH115 # a name, no path


def test_the_devices_are_the_harmless_ones(ground: Ground) -> None:
    found = set(ground.run("ls", "/dev")[1].split())
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm"}
    assert found <= harmless | {"core", "fd", "stdin", "stdout", "stderr", "mqueue"}
    assert "null" in found


# -- the system --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/usr", "/etc", "/", "/usr/local/bin", "/opt"])
def test_the_system_is_read_only(ground: Ground, place: str) -> None:
    code, _, errors = ground.run("touch", f"{place}/written")
    assert code != 0
    assert "Read-only file system" in errors


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm", "/run"])
def test_places_for_passing_things_are_fresh(ground: Ground, place: str) -> None:
    there = place if os.access(place, os.W_OK) else "/tmp"
    with elsewhere(there) as directory:
        (directory / "file").write_text("x")
        assert ground.run("cat", str(directory / "file"))[0] == 1
        assert ground.run("sh", "-c", f"echo x > {place}/mine && cat {place}/mine")[1] == "x\n"
        assert not (Path(place) / "mine").exists()


@pytest.mark.parametrize("place", ["/sys", "/boot", "/mnt", "/srv", "/media", "/var/lib", "/var/log"])
def test_the_rest_of_the_host_is_not_there(ground: Ground, place: str) -> None:
    assert ground.run("ls", place)[0] != 0


def test_names_are_asked_of_the_gate_and_of_nobody_else(ground: Ground) -> None:
    out = ground.run("cat", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts")[1]
    assert "nameserver 100.64.0.1\n" in out
    assert "hosts: files dns\n" in out
    assert [line for line in out.splitlines() if line.startswith("nameserver")] == ["nameserver 100.64.0.1"]
    assert "127.0.0.1 localhost corporate\n" in out


def test_the_machines_keys_are_hidden_even_from_root(ground: Ground) -> None:
    hidden = [*bubble.HIDDEN_FILES, *bubble.HIDDEN_DIRECTORIES]
    there = [path for path in hidden if Path(path).exists() and os.access(path, os.R_OK)]
    assert "/etc/shadow" in there or os.getuid() != 0
    out = ground.run("sh", "-c", 'for path; do cat "$path" 2>&- || ls -A "$path"; done', "sh", *there)[1]
    assert out == ""


def test_the_environment_holds_nothing_of_the_host(ground: Ground) -> None:
    secret = {"SSH_AUTH_SOCK": "/x", "DBUS_SESSION_BUS_ADDRESS": "unix:/x", "AWS_SECRET_ACCESS_KEY": "x"}
    kept = {"TERM": "dumb", "LC_TIME": "C", "TZ": "UTC"}
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    variables = os.environ | secret | kept
    assert secret.items() <= json.loads(outside(show, env=variables)).items()
    found = json.loads(ground.python(show, popen={"env": variables}))
    assert not secret.keys() & found.keys()
    assert kept.items() <= found.items()
    assert found["HOME"] == str(ground.home)
    assert found["ZONEGATE_ZONE"] == "corporate"


def test_who_one_is_stays_known(ground: Ground) -> None:
    known = [user.pw_name for user in pwd.getpwall() if user.pw_uid == os.getuid()]
    assert ground.run("id", "-un")[1].strip() == (known[0] if known else "user")
    assert ground.run("hostname")[1] == "corporate\n"


def test_a_user_of_a_directory_service_has_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = bubble.files(VIEW)["/etc/passwd"]
    assert f"user:x:{VIEW.uid}:{VIEW.uid}::/home/me:/bin/sh\n" in text


# -- what is asked for -------------------------------------------------------------------------------

VIEW = View(
    zone="corporate",
    uid=54321,
    gid=54321,
    home=Path("/home/me"),
    zone_home=Path("/home/me/.local/share/zonegate/zones/corporate/home"),
    command=["true"],
    variables={"DISPLAY": ":0", "XAUTHORITY": "/home/me/.xauth"},
)


def test_x11_is_there_only_when_asked_for() -> None:
    assert "DISPLAY" not in bubble.arguments(VIEW, 9, 9)[0]
    assert "DISPLAY" in bubble.arguments(replace(VIEW, x11=True), 9, 9)[0]


@dataclass(frozen=True, slots=True)
class Share:
    sentence: str
    path: str
    cooperative: bool

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Share("a project is no way out", "/home/me/project", False),
        Share("nor is one in /tmp", "/tmp/project", False),
        Share("the own home is", "/home/me", True),
        Share("so is what holds it", "/home", True),
        Share("and the whole system", "/", True),
        Share("and where the host keeps sockets", "/run", True),
        Share("and a part of that", "/run/user/1000", True),
        Share("and another name of it", "/var", True),
        Share("and /tmp as a whole", "/tmp", True),
    ],
    ids=str,
)
def test_a_bubble_is_said_to_be_cooperative_when_it_sees_too_much(case: Share) -> None:
    assert replace(VIEW, share=[Path(case.path)]).cooperative is case.cooperative


def test_a_socket_that_is_shared_makes_it_cooperative(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "docker.sock"))
        assert replace(VIEW, share=[tmp_path / "docker.sock"]).cooperative
    assert replace(VIEW, share_home=True).cooperative
    assert not VIEW.cooperative
