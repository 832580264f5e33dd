"""Who may enter which zone, and with what: the judgement of a bubble at the door.

The user is known by the kernel's word, the zone by the site's table of people, the namespace by what the
kernel says of its owner. Starts nothing.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from proxy import namespaces
from proxy.config import Site
from proxy.crew import Bubble
from proxy.messages.admin import Enter

_BUBBLE = re.compile(r"[0-9]{1,10}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class User:
    """A user of this machine: the kernel's number, and what the system calls it."""

    uid: int
    login: str
    groups: tuple[str, ...]


class NotAdmitted(Exception):
    """This bubble may not enter; one line in the user's words."""


def admit(
    site: Site,
    user: User,
    pid: int,
    message: Enter,
    fds: Sequence[int],
    taken: Container[str],
    *,
    structural: bool,
) -> tuple[Bubble, tuple[str, ...]]:
    """The bubble of a user, and the policy's groups of that user in its zone. Raises NotAdmitted.

    `pid` is the process that asks, by the kernel's word; `fds` are the bubble's user and network namespace. A
    bubble that names what it was under an earlier daemon keeps that name, and with it the names that it was
    told, if it is the same user's and not `taken`.
    """
    if message.zone not in site.zones:
        raise NotAdmitted(f'there is no zone "{message.zone}" here; there is {", ".join(sorted(site.zones))}')
    uid, login = user.uid, user.login
    groups = site.may_enter(message.zone, uid, login, user.groups)
    if groups is None:
        people = f"the people of {site.file} say who may"
        raise NotAdmitted(f'{login} may not enter zone "{message.zone}"; {people}')
    try:
        if len(fds) != 2 or namespaces.is_own_network(fds[1]):
            raise NotAdmitted("a bubble must bring a network namespace of its own")
        if namespaces.owner_uid(fds[1]) != uid:
            raise NotAdmitted("that network namespace belongs to another user")
    except OSError as error:
        raise NotAdmitted(f"that is no network namespace: {error.strerror}") from error
    name = message.again
    if not _BUBBLE.fullmatch(name) or not name.startswith(f"{uid}-") or name in taken:
        name = f"{uid}-{os.urandom(6).hex()}"
    enforcement = "structural" if structural and not message.cooperative else "cooperative"
    bubble = Bubble(name, message.zone, login, uid, pid, enforcement, (fds[0], fds[1]))
    return bubble, groups


def identity(uid: int) -> User:
    """The login name of a user and the names of the groups; a number where the system knows no name.

    A directory service may be asked, which may take its time.
    """
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, f"#{uid}", ())
    names = []
    for group in os.getgrouplist(user.pw_name, user.pw_gid):
        with contextlib.suppress(KeyError):
            names.append(grp.getgrgid(group).gr_name)
    return User(uid, user.pw_name, tuple(names))
