"""Who may enter which zone, and with what: the judgement of a bubble at the door.

The user is known by the kernel's word, the zone by the site's table of people, the namespace by what the
kernel says of its owner. Starts nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Collection
from pathlib import Path

from proxy import namespaces
from proxy.config import Site
from proxy.directory import User
from proxy.messages.admin import Enter
from proxy.posts import Bubble

_LONGEST_ATTACHED = 100
_BUBBLE = re.compile(r"[0-9]{1,10}-[0-9a-f]{12}")


class NotAdmitted(Exception):
    """This bubble may not enter; one line in the user's words."""


def admit(
    site: Site,
    user: User,
    asker: int,
    message: Enter,
    inside: Collection[Bubble],
    *,
    structural: bool,
) -> tuple[Bubble, tuple[str, ...]]:
    """The bubble of a user, and the policy's groups of that user in its zone. Raises NotAdmitted.

    `asker` is the process that asks, by the kernel's word; `inside` are the bubbles that are served now. A
    bubble that names what it was under an earlier daemon keeps that name, and with it the names that it was
    told, if it is the same user's and nobody inside has it. The namespaces of the bubble are the caller's to
    close.
    """
    if message.zone not in site.zones:
        raise NotAdmitted(f'there is no zone "{message.zone}" here; there is {", ".join(sorted(site.zones))}')
    uid, login = user.uid, user.login
    groups = site.may_enter(message.zone, uid, login, user.groups)
    if groups is None:
        people = f"the people of {site.file} say who may"
        raise NotAdmitted(f'{login} may not enter zone "{message.zone}"; {people}')
    name = message.again
    taken = any(one.id == name for one in inside)
    if taken or not _BUBBLE.fullmatch(name) or not name.startswith(f"{uid}-"):
        name = f"{uid}-{os.urandom(6).hex()}"
    enforcement = "structural" if structural and not message.cooperative else "cooperative"
    attached = "".join(filter(str.isprintable, message.attached[:_LONGEST_ATTACHED]))
    with contextlib.ExitStack() as undo:
        user_fd, net_fd = _namespaces(message.pid, asker, undo)
        # Root may attach what belongs to others, such as the container of a user.
        _must_be_free(None if uid == 0 and attached else uid, asker, net_fd, inside)
        undo.pop_all()
    bubble = Bubble(name, message.zone, login, uid, asker, enforcement, (user_fd, net_fd), attached)
    return bubble, groups


def _namespaces(pid: int, asker: int, undo: contextlib.ExitStack) -> tuple[int, int]:
    """The user and the network namespace of a process, which must be a living child of who asks.

    What was opened is that very process's if it lives still: while it does, its number is nobody else's.
    """
    try:
        with contextlib.ExitStack() as looking:
            pidfd = os.pidfd_open(pid)
            looking.callback(os.close, pidfd)
            fds = []
            for kind in ("user", "net"):
                fds.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
                undo.callback(os.close, fds[-1])
            parent = _parent(pid)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if ended.poll(0):
                raise NotAdmitted("its process has ended")
    except (OSError, ValueError, OverflowError, IndexError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is no process"
        raise NotAdmitted(f"the namespaces of process {pid} cannot be seen: {words}") from error
    if parent != asker:
        raise NotAdmitted(f"process {pid} is no child of the one that asks ({asker})")
    return fds[0], fds[1]


def _parent(pid: int) -> int:
    """proc(5), stat, field 4."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _must_be_free(owner: int | None, asker: int, net_fd: int, inside: Collection[Bubble]) -> None:
    """NotAdmitted if a network namespace is the host's, has another owner, or is served already."""
    if namespaces.is_own_network(net_fd):
        raise NotAdmitted("a bubble must bring a network namespace of its own")
    if owner is not None and namespaces.owner_uid(net_fd) != owner:
        raise NotAdmitted("that network namespace belongs to another user")
    for one in inside:
        if one.pid != asker and os.path.sameopenfile(one.namespaces[1], net_fd):
            raise NotAdmitted(f"that network namespace is served already, as bubble {one.id}")
