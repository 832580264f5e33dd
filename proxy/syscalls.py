"""Which system calls a sealed worker and a program in a bubble have: seccomp programs.

Code of another ABI than this machine's own (32-bit, x32) is killed at its first system call: libseccomp's
default, and right, for there the numbers of the calls mean others.

Loading libseccomp takes a tenth of the time in which a bubble starts, so it is imported where it can be
waited for (see inner), and no small process has it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pyseccomp as seccomp

# Address families a program in a bubble may have. Everything else (AF_PACKET, AF_VSOCK, AF_BLUETOOTH,
# AF_ALG, AF_XDP ...) is no way of reaching a corporate service, and some are ways around a gate.
BUBBLE_FAMILIES = frozenset({1, 2, 10, 16})  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_AF_UNIX = 1
_IP_FAMILIES = (2, 10)
_FAMILIES_KNOWN = 64
_SOCK_DGRAM, _SOCK_RAW, _SOCK_PACKET, _SOCK_TYPE_MASK = 2, 3, 10, 0xF
_MSG_FASTOPEN = 0x20000000  # sendmsg(2) with it is a connect in disguise
# The socket options that a worker sets: SOL_SOCKET with SO_LINGER, IPPROTO_TCP with TCP_NODELAY. Others aim:
# SO_BINDTODEVICE sends a connected socket's packets to whoever answers on another link, a source route
# (IP_OPTIONS, IPV6_RTHDR) to whoever it names first; neither needs a capability.
_WORKER_OPTIONS = ((1, 13), (6, 1))
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
# A worker moves bytes between sockets that it was given. It makes, binds and aims none (see setsockopt too).
_WORKER_NEVER = (
    "socket", "connect", "bind", "listen", "ptrace", "setns", "unshare", "mount", "umount2", "pivot_root",
    "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr", "chroot",
)  # fmt: skip


def worker_filter() -> bytes:
    """The worker's seccomp program, as bubblewrap's --seccomp wants it."""
    rules = _common()
    for name in _WORKER_NEVER:
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
    for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        has_fastopen = seccomp.Arg(flags, seccomp.MASKED_EQ, _MSG_FASTOPEN, _MSG_FASTOPEN)
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name, has_fastopen)
    _forbid_namespaces(rules)
    _allow_options(rules, _WORKER_OPTIONS)
    return _program(rules)


def datagram_holder_filter() -> bytes:
    """The seccomp program of a datagram holder: a worker's, but that it makes and binds sockets of UDP."""
    rules = _common()
    refuse = seccomp.ERRNO(errno.EPERM)
    for name in _WORKER_NEVER:
        if name not in ("socket", "bind"):
            rules.add_rule(refuse, name)
    for family in range(_FAMILIES_KNOWN):
        if family not in _IP_FAMILIES:
            rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.GE, _FAMILIES_KNOWN))
    for kind in range(_SOCK_TYPE_MASK + 1):
        if kind != _SOCK_DGRAM:
            of_kind = seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE_MASK, kind)
            rules.add_rule(refuse, "socket", of_kind)
    rules.add_rule(
        refuse, "socket", seccomp.Arg(2, seccomp.NE, 0)
    )  # a socket of ICMP is one of datagrams too
    rules.add_rule(refuse, "socketpair", seccomp.Arg(0, seccomp.NE, _AF_UNIX))
    # A pair of datagrams can be sent from to any abstract Unix socket, of which the host's network has some.
    of_datagrams = seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE_MASK, _SOCK_DGRAM)
    rules.add_rule(refuse, "socketpair", of_datagrams)
    _forbid_namespaces(rules)
    _allow_options(rules, ())
    return _program(rules)


def _forbid_namespaces(rules: seccomp.SyscallFilter) -> None:
    for flag in _NEW_NAMESPACES:
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    # Its flags lie in memory, where no filter looks; the C library then takes clone instead.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")


def _allow_options(rules: seccomp.SyscallFilter, allowed: Sequence[tuple[int, int]]) -> None:
    """Refuse every setsockopt(2) but these: level and option, one option of each level, by rising level.

    The filter compares 64 bits where the kernel takes 32: a number beyond them is above all that are allowed.
    """
    refuse = seccomp.ERRNO(errno.EPERM)
    above = 0
    for level, option in allowed:
        for other in range(above, level):
            rules.add_rule(refuse, "setsockopt", seccomp.Arg(1, seccomp.EQ, other))
        of_level = seccomp.Arg(1, seccomp.EQ, level)
        rules.add_rule(refuse, "setsockopt", of_level, seccomp.Arg(2, seccomp.LT, option))
        rules.add_rule(refuse, "setsockopt", of_level, seccomp.Arg(2, seccomp.GT, option))
        above = level + 1
    rules.add_rule(refuse, "setsockopt", seccomp.Arg(1, seccomp.GE, above))


def bubble_filter() -> bytes:
    """The seccomp program of a bubble: ordinary programs run; ways around the namespace are not there."""
    rules = _common()
    refuse = seccomp.ERRNO(errno.EAFNOSUPPORT)
    for family in range(_FAMILIES_KNOWN):
        if family not in BUBBLE_FAMILIES:
            rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.GE, _FAMILIES_KNOWN))
    rules.add_rule(refuse, "socketpair", seccomp.Arg(0, seccomp.NE, _AF_UNIX))
    for family in _IP_FAMILIES:
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
