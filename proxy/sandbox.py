"""Sandboxes: what a sealed worker and a program in a bubble may see of the machine, and which system calls.

Says it as bubblewrap arguments and seccomp programs; starts nothing itself. bubblewrap sets
no_new_privs, and the programs here are installed before the first instruction of what it starts. Code of
another ABI than this machine's own (32-bit, x32) is killed at its first system call: libseccomp's default,
and right, for there the numbers of the calls mean others. Knows no zone, no policy and no tunnel.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pyseccomp as seccomp

import proxy

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Address families a program in a bubble may have. Everything else (AF_PACKET, AF_VSOCK, AF_BLUETOOTH,
# AF_ALG, AF_XDP ...) is no way of reaching a corporate service, and some are ways around a gate.
BUBBLE_FAMILIES = frozenset({1, 2, 10, 16})  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_AF_UNIX = 1
_FAMILIES_KNOWN = 64
_SOCK_RAW, _SOCK_PACKET, _SOCK_TYPE_MASK = 3, 10, 0xF
_MSG_FASTOPEN = 0x20000000  # sendmsg(2) with it is a connect in disguise
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into the terminal's own input
# CLONE_NEW: TIME, NS, CGROUP, UTS, IPC, USER, PID, NET
_NEW_NAMESPACES = tuple(1 << bit for bit in (7, 17, 25, 26, 27, 28, 29, 30))

# Ways to a kernel or to other processes that neither a worker nor a program in a bubble has business with.
_NEVER = (
    "io_uring_setup", "io_uring_enter", "io_uring_register",
    "keyctl", "add_key", "request_key",
    "bpf", "perf_event_open", "userfaultfd", "kexec_load", "kexec_file_load",
    "init_module", "finit_module", "delete_module", "open_by_handle_at", "name_to_handle_at",
    "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
    "swapon", "swapoff", "reboot", "acct", "quotactl",
    "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
)  # fmt: skip
# A worker moves bytes between sockets that it was given. It makes, binds and aims none.
_WORKER_NEVER = (
    "socket", "connect", "bind", "listen", "ptrace", "setns", "unshare", "mount", "umount2", "pivot_root",
    "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr", "chroot",
)  # fmt: skip


# Kernel settings that forbid user namespaces: name, the forbidding value, the cure, whether to root too.
_USERNS_SETTINGS = (
    ("user.max_user_namespaces", "0", "10000", True),
    ("kernel.unprivileged_userns_clone", "0", "1", False),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", False),
)


class Unsupported(Exception):
    """This machine cannot keep the promise; the message is one line and names the cure."""


def missing() -> list[str]:
    """What this machine lacks for structural enforcement, a line each with its cure; empty when nothing."""
    tools = (("bwrap", "bubblewrap"), ("nft", "nftables"), ("ip", "iproute2"))
    path = SYSTEM_PATH + ":" + os.environ.get("PATH", "")
    problems = [
        f"{tool} is not installed; install Debian's package: apt-get install {package}"
        for tool, package in tools
        if shutil.which(tool, path=path) is None
    ]
    for setting, bad, value, root_too in _USERNS_SETTINGS:
        file = Path("/proc/sys") / setting.replace(".", "/")
        if (root_too or os.geteuid() != 0) and file.exists() and file.read_text().strip() == bad:
            problems.append(f"user namespaces are not allowed here; allow them: sysctl -w {setting}={value}")
    return problems


# -- seccomp -----------------------------------------------------------------------------------------


def worker_filter() -> bytes:
    """The worker's seccomp program, as bubblewrap's --seccomp wants it."""
    rules = _common()
    for name in _WORKER_NEVER:
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
    for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        has_fastopen = seccomp.Arg(flags, seccomp.MASKED_EQ, _MSG_FASTOPEN, _MSG_FASTOPEN)
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name, has_fastopen)
    for flag in _NEW_NAMESPACES:
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    # Its flags lie in memory, where no filter looks; the C library then takes clone instead.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    return _program(rules)


def bubble_filter() -> bytes:
    """The seccomp program of a bubble: ordinary programs run; ways around the namespace are not there."""
    rules = _common()
    refuse = seccomp.ERRNO(errno.EAFNOSUPPORT)
    for family in range(_FAMILIES_KNOWN):
        if family not in BUBBLE_FAMILIES:
            rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.GE, _FAMILIES_KNOWN))
    rules.add_rule(refuse, "socketpair", seccomp.Arg(0, seccomp.NE, _AF_UNIX))
    for family in (2, 10):
        for kind in (_SOCK_RAW, _SOCK_PACKET):
            of_family = seccomp.Arg(0, seccomp.EQ, family)
            of_kind = seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE_MASK, kind)
            rules.add_rule(seccomp.ERRNO(errno.EPERM), "socket", of_family, of_kind)
    for request in (_TIOCSTI, _TIOCLINUX):
        # The kernel looks at 32 bits of the request (CVE-2019-10063), so does this.
        rules.add_rule(
            seccomp.ERRNO(errno.EPERM), "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request)
        )
    return _program(rules)


def _common() -> seccomp.SyscallFilter:
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in _NEVER:
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
    return rules


def _program(rules: seccomp.SyscallFilter) -> bytes:
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


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
    code = f"import sys; sys.path[:0] = {paths!r}; from proxy.{module} import main; main(sys.argv[1:])"
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


def machine() -> str:
    """What is said of this machine in a bug report."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"
