"""What a program in a bubble sees: its own home, the system read-only, and nothing that speaks for the host.

An allow-list: what is not named here is not there. Unix sockets cross network namespaces, so every place
where a host keeps them (/run, /tmp, /var, /home, /dev) is a fresh one. Says it as bubblewrap arguments;
starts nothing (see run). Knows no daemon and no policy.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proxy import host_sockets, ipc, namespaces, sandbox, trust

SYSTEM_DIRECTORIES = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/libx32",
    "/lib64",
    "/etc",
    "/opt",
    "/nix/store",  # not /nix: its daemon's socket lies there, and that daemon fetches for whoever asks
    "/gnu",
)
# The kernel asks for no capability here, only for the uid: in a bubble of root core_pattern is a way out, and
# the user who owns the zone's namespace may set its network's parameters.
READ_ONLY_PROC = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
# Of the caller's environment only these go in; the rest names sockets, agents and secrets of the host.
KEPT_VARIABLES = ("TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ", "SHELL", "USER", "LOGNAME", "NO_COLOR")
# Keys of the machine and of zonegate, which a bubble of root could read.
HIDDEN_DIRECTORIES = (
    "/etc/zonegate",
    "/etc/ssl/private",
    "/etc/ssh",
    "/etc/NetworkManager",
    "/etc/wireguard",
    "/etc/openvpn",
    "/etc/ipsec.d",
    "/etc/swanctl",
    "/etc/ppp",
    "/etc/letsencrypt",
)
HIDDEN_FILES = (
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/ipsec.secrets",
    "/etc/krb5.keytab",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the caller asked for. `share` are paths of the host, writable in the bubble."""

    zone: str
    uid: int
    gid: int
    home: Path
    zone_home: Path
    command: Sequence[str]
    share: Sequence[Path] = ()
    share_home: bool = False
    wayland: bool = False
    x11: bool = False
    hidden: Sequence[Path] = ()  # sockets of the host in what is shared
    unseen: bool = False  # what is shared could not be looked through for them
    variables: Mapping[str, str]
    roots: bytes = b""  # of the inspection CA, PEM, in a zone that is inspected

    @property
    def cooperative(self) -> bool:
        """Whether the bubble sees a place where the host keeps sockets, or what its owner runs later."""
        return self.share_home or self.unseen or any(_is_too_much(share, self.home) for share in self.share)


def looked_through(view: View) -> View:
    """A view with the sockets hidden that lie now in the directories that it shares, but for those that are
    shared themselves, and for what makes it cooperative anyway."""
    narrow = [share for share in view.share if not _is_too_much(share, view.home)]
    found = host_sockets.below(narrow)
    hidden = [path for path in found.sockets if path not in view.share]
    return replace(view, hidden=hidden, unseen=not found.whole)


def _is_too_much(share: Path, home: Path) -> bool:
    return share.is_socket() or _is_of_the_host(share) or _holds(share, home)


def _is_of_the_host(share: Path) -> bool:
    return any(share.is_relative_to(place) for place in ("/run", "/proc", "/dev", "/sys"))


def _holds(share: Path, home: Path) -> bool:
    return any(place.is_relative_to(share) for place in (home, Path("/run"), Path("/tmp"), Path("/var/run")))


def files(view: View) -> dict[str, str]:
    """The files of /etc that a bubble has of its own."""
    return {
        "/etc/resolv.conf": f"nameserver {namespaces.OWN_V4}\noptions timeout:3 attempts:2\n",
        "/etc/hosts": f"127.0.0.1 localhost {view.zone}\n::1 localhost ip6-localhost\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
        "networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
        "/etc/passwd": _passwd(view.uid, view.home),
    }


def _passwd(uid: int, home: Path) -> str:
    """The machine's users, and the caller, who may be known to a directory service only."""
    text = Path("/etc/passwd").read_text(errors="replace")
    if any(line.split(":")[2:3] == [str(uid)] for line in text.splitlines()):
        return text
    try:
        user = pwd.getpwuid(uid)
        line = f"{user.pw_name}:x:{uid}:{user.pw_gid}::{home}:{user.pw_shell}"
    except KeyError:
        line = f"user:x:{uid}:{uid}::{home}:/bin/sh"
    return f"{text.rstrip()}\n{line}\n"


def missing_program(view: View) -> tuple[str, int] | None:
    """Why the command of a view cannot be started, and the exit code that shells give it; None if it can.

    What is found by a path that is not plain (`..`) is left to bubblewrap.
    """
    name = str(view.command[0])
    if "/" not in name:
        seen = "the system's programs, its own home, and what you --share"
        absent = f'there is no program "{name}" in zone {view.zone}, which sees {seen}', 127
        return None if shutil.which(name, path=sandbox.SYSTEM_PATH) else absent
    if ".." in Path(name).parts:
        return None
    outside = _outside(view, Path(_directory(view)) / name)
    if outside is None or not outside.exists():
        return (
            f'"{name}" is not there in zone {view.zone}; to have a file of yours there: --share {name}',
            127,
        )
    if outside.is_dir() or not os.access(outside, os.X_OK):
        return f'"{name}" is not an executable file', 126
    return None


def _outside(view: View, path: Path) -> Path | None:
    """Where on the host a path of the bubble lies; None where the bubble has nothing of the host."""
    if any(path.is_relative_to(share) for share in view.share):
        return path
    if path.is_relative_to(view.home):
        return (view.home if view.share_home else view.zone_home) / path.relative_to(view.home)
    return path if any(path.is_relative_to(place) for place in SYSTEM_DIRECTORIES) else None


def arguments(view: View, seccomp_fd: int, info_fd: int) -> tuple[list[str], list[int]]:
    """The bubblewrap command of a view, and the descriptors that it reads (beside the two given)."""
    fds: list[int] = []
    told = [
        "bwrap", "--unshare-user", "--uid", str(view.uid), "--gid", str(view.gid),
        "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--cap-drop", "ALL", "--die-with-parent", "--hostname", view.zone,
    ]  # fmt: skip
    told += _system()
    for path, content in files(view).items():
        if Path(path).exists():
            fd = ipc.memory_file("etc", content.encode())
            fds.append(fd)
            told += ["--ro-bind-data", str(fd), os.path.realpath(path)]
    told += _hidden(fds)
    told += _trust(view, fds)
    told += _home(view)
    told += _environment(view)  # it clears what was there, so before the display's own
    told += _display(view)
    for shared in view.share:
        told += ["--bind", str(shared), str(shared)]
    for hidden in view.hidden:
        told += ["--ro-bind", os.devnull, str(hidden)]
    told += [
        "--remount-ro",
        "/",
        "--info-fd",
        str(info_fd),
        "--seccomp",
        str(seccomp_fd),
        "--",
        *view.command,
    ]
    return told, fds


def _system() -> list[str]:
    told: list[str] = []
    for directory in map(Path, SYSTEM_DIRECTORIES):
        if directory.is_symlink():
            told += ["--symlink", str(directory.readlink()), str(directory)]
        elif directory.is_dir():
            told += ["--ro-bind", str(directory), str(directory)]
    told += ["--proc", "/proc"]
    for part in READ_ONLY_PROC:
        if Path(part).exists():
            told += ["--ro-bind", part, part]
    told += ["--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp"]
    told += ["--tmpfs", "/run", "--tmpfs", "/var", "--perms", "1777", "--dir", "/var/tmp"]
    return [*told, "--symlink", "/run", "/var/run", "--symlink", "/run/lock", "/var/lock"]


def _hidden(fds: list[int]) -> list[str]:
    told: list[str] = []
    for directory in HIDDEN_DIRECTORIES:
        if Path(directory).is_dir():
            told += ["--tmpfs", directory]
    for file in HIDDEN_FILES:
        if Path(file).exists():
            fds.append(ipc.memory_file("hidden", b""))
            told += ["--ro-bind-data", str(fds[-1]), file]
    return told


def _trust(view: View, fds: list[int]) -> list[str]:
    """What makes programs trust the inspection CA; the certificate only."""
    told: list[str] = []
    for path, content in trust.files(view.roots) if view.roots else ():
        fds.append(ipc.memory_file("trust", content))
        told += _with_file(path, fds[-1])
    return told


def _with_file(path: Path, fd: int) -> list[str]:
    """Content at a path. The machine's directories are read-only: where one lacks what leads there, it is
    laid out anew with all that it holds, and the file."""
    if path.is_file():
        return ["--ro-bind-data", str(fd), os.path.realpath(path)]
    if path.is_relative_to("/run"):
        return ["--perms", "0444", "--ro-bind-data", str(fd), str(path)]
    base = next(parent for parent in path.parents if parent.is_dir())
    real = Path(os.path.realpath(base))
    told = ["--perms", "0755", "--tmpfs", str(real)]
    for child in sorted(real.iterdir()):
        if child.is_symlink():
            told += ["--symlink", str(child.readlink()), str(child)]
        else:
            told += ["--ro-bind", str(child), str(child)]
    inside = real / path.relative_to(base)
    return [*told, "--perms", "0444", "--ro-bind-data", str(fd), str(inside), "--remount-ro", str(real)]


def _home(view: View) -> list[str]:
    source = view.home if view.share_home else view.zone_home
    return ["--bind", str(source), str(view.home), "--chdir", _directory(view)]


def _directory(view: View) -> str:
    """The caller's directory where the bubble has it, else the home."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed, or may not be read
        return str(view.home)
    visible = [*view.share, *([view.home] if view.share_home else [])]
    return str(here if any(here.is_relative_to(path) for path in visible) else view.home)


def _runtime(view: View) -> str:
    return f"/run/user/{view.uid}"


def _display(view: View) -> list[str]:
    """The displays, when asked for: X11's clients can watch each other, and some compositors of Wayland let
    every client type and look at the screen."""
    told = ["--perms", "0700", "--dir", _runtime(view)]
    wayland = view.variables.get("WAYLAND_DISPLAY", "")
    socket = Path(view.variables.get("XDG_RUNTIME_DIR", "/nonexistent")) / (wayland or "nonexistent")
    if view.wayland and wayland and socket.is_socket():
        inside = f"{_runtime(view)}/wayland-0"
        told += ["--ro-bind", str(socket), inside, "--setenv", "WAYLAND_DISPLAY", "wayland-0"]
    display = view.variables.get("DISPLAY", "")
    if view.x11 and display:
        told += ["--ro-bind-try", "/tmp/.X11-unix", "/tmp/.X11-unix", "--setenv", "DISPLAY", display]
        authority = view.variables.get("XAUTHORITY", str(view.home / ".Xauthority"))
        told += ["--ro-bind-try", authority, f"{_runtime(view)}/xauthority"]
        told += ["--setenv", "XAUTHORITY", f"{_runtime(view)}/xauthority"]
    return told


def _environment(view: View) -> list[str]:
    told = ["--clearenv"]
    for name, value in view.variables.items():
        if name in KEPT_VARIABLES or name.startswith("LC_"):
            told += ["--setenv", name, value]
    own = {
        "HOME": str(view.home),
        "PATH": sandbox.SYSTEM_PATH,
        "XDG_RUNTIME_DIR": _runtime(view),
        sandbox.BUBBLE_VARIABLE: view.zone,
    }
    if view.roots:
        own |= {name: str(path) for name, path in trust.VARIABLES.items()}
    for name, value in own.items():
        told += ["--setenv", name, value]
    return told
