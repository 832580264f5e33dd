"""Sandboxes: what a sealed worker and a program in a bubble may see of the machine.

Says it as bubblewrap arguments; starts nothing itself. bubblewrap sets no_new_privs, and the programs of
`syscalls` are installed before the first instruction of what it starts. Knows no zone, no policy and no
tunnel.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import proxy

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON = "import sys; sys.path[:0] = "
BUBBLE_VARIABLE = "ZONEGATE_ZONE"  # names its zone to programs in a bubble
# Kernel settings that forbid user namespaces: name, the forbidding value, the cure, whether to root too.
_USERNS_SETTINGS = (
    ("user.max_user_namespaces", "0", "10000", True),
    ("kernel.unprivileged_userns_clone", "0", "1", False),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", False),
)


def missing() -> list[str]:
    """What this machine lacks for structural enforcement, a line each with its cure; empty when nothing."""
    problems = not_installed(("bwrap", "bubblewrap"), ("nft", "nftables"), ("ip", "iproute2"))
    for setting, bad, value, root_too in _USERNS_SETTINGS:
        file = Path("/proc/sys") / setting.replace(".", "/")
        if (root_too or os.geteuid() != 0) and file.exists() and file.read_text().strip() == bad:
            problems.append(f"user namespaces are not allowed here; allow them: sysctl -w {setting}={value}")
    return problems


def not_installed(*tools: tuple[str, str]) -> list[str]:
    """Programs, each with its Debian package, that are not there: a line each with its cure."""
    path = SYSTEM_PATH + ":" + os.environ.get("PATH", "")
    return [
        f"{tool} is not installed; install Debian's package: apt-get install {package}"
        for tool, package in tools
        if shutil.which(tool, path=path) is None
    ]


def missing_for_wireguard(*, by_hand: bool = False) -> list[str]:
    """What this machine lacks for WireGuard tunnels; root may have them from the kernel, unless `by_hand`."""
    tools = [("wg", "wireguard-tools"), ("nsenter", "util-linux"), ("setpriv", "util-linux")]
    if by_hand or os.geteuid():
        tools.append(("wireguard-go", "wireguard-go"))
    return not_installed(*tools)


# -- the sealed worker -------------------------------------------------------------------------------


def interpreter_paths() -> list[str]:
    """What a Python process of this installation reads: the interpreter, its libraries, this package."""
    libraries = [
        path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib") if Path(path).exists()
    ]
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(proxy.__file__).parent)]
    third_party = [path for path in sys.path if "site-packages" in path or "dist-packages" in path]
    return _outermost([*libraries, *(p for p in [*python, *third_party] if p != "/usr"), *_usr_python()])


def _usr_python() -> list[str]:
    """A distribution's interpreter lies in /usr, of which only these are wanted."""
    if Path(sys.base_prefix) != Path("/usr"):
        return []
    return [str(path) for path in Path("/usr/bin").glob("python3*")]


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[Path] = []
    named = {Path(path) for path in paths}
    for path in sorted({*named, *(path.resolve() for path in named)}):  # a link is of no use without its end
        if not any(path.is_relative_to(above) for above in kept):
            kept.append(path)
    return [str(path) for path in kept]


def python_command(module: str, *arguments: str, bare: bool = False) -> list[str]:
    """A command that runs `proxy.MODULE.main(arguments)` isolated from the environment and the user's site.

    `bare` leaves the third-party packages off its path: such a process has the standard library and ours.
    """
    root = str(Path(proxy.__file__).parent.parent)
    paths = [root] if bare else [root, *(p for p in sys.path if "site-packages" in p or "dist-packages" in p)]
    code = f"{_PYTHON}{paths!r}; from proxy.{module} import main; main(sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def sealed(command: list[str], seccomp_fd: int) -> list[str]:
    """`command` in an empty network namespace, without capabilities, seeing only the interpreter's files.

    There is no /proc, /dev, /run, /var, /tmp or /home in it: nscd, systemd-resolved and D-Bus are Unix
    sockets and would cross the network namespace. /secrets is a private memory of 1 MiB for the keys.
    """
    arguments = [
        "bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
        "--unshare-cgroup-try", "--cap-drop", "ALL", "--die-with-parent", "--new-session", "--as-pid-1",
        "--hostname", "worker", "--clearenv", "--setenv", "LC_ALL", "C.UTF-8",
    ]  # fmt: skip
    for path in interpreter_paths():
        if Path(path).is_symlink():
            arguments += ["--symlink", str(Path(path).readlink()), path]
        else:
            arguments += ["--ro-bind", path, path]
    arguments += [
        "--perms",
        "0700",
        "--size",
        str(1 << 20),
        "--tmpfs",
        "/secrets",
        "--remount-ro",
        "/",
        "--chdir",
        "/",
    ]
    return [*arguments, "--seccomp", str(seccomp_fd), "--", *command]


def sealed_in_network(command: list[str], seccomp_fd: int) -> list[str]:
    """The same in the network of the host, where its filter has to keep it from everything else."""
    return [word for word in sealed(command, seccomp_fd) if word != "--unshare-net"]


def is_ours(command: Sequence[str]) -> bool:
    """Whether this is bubblewrap as it is started for a sealed process or for a bubble."""
    is_sealed = any(word.startswith(_PYTHON) for word in command)
    return command[0] == "bwrap" and (is_sealed or BUBBLE_VARIABLE in command)


def machine() -> str:
    """What is said of this machine in a bug report."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"
