"""Who may enter which zone, and with which namespace."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_namespaces import NOBODY, namespaces_of, process

from proxy import reception
from proxy.config import Site, read_site
from proxy.crew import Bubble
from proxy.messages.admin import Enter
from proxy.reception import NotAdmitted, User, admit, identity

SITE = b"""
zonegate: 1
policy: p.policy.yaml
zones:
  corporate: {tunnels: [hq]}
  lab: {tunnels: [hq]}
tunnels:
  hq:
    kind: mtls
    gateway: gw.example:8443
    ca: ca.crt
    pins: ["sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
    certificate: laptop.crt
    key: laptop.key
people:
  alice: {zones: [corporate], groups: [staff]}
  "@makers": {zones: [corporate, lab], groups: [makers]}
  "#4242": {zones: [lab]}
"""
ME = os.getuid()
ALICE = User(ME, "alice", ())
PID = 4711


@pytest.fixture(scope="module")
def site() -> Site:
    return read_site(SITE, Path("zonegate.yaml"))


@pytest.fixture(scope="module")
def mine() -> Iterator[list[int]]:
    """The namespaces of a bubble of this user."""
    with process() as started, namespaces_of(started.pid) as fds:
        yield fds


def enter(zone: str = "corporate", again: str = "", *, cooperative: bool = False) -> Enter:
    return Enter(zone, again, cooperative)


def entered(
    site: Site, user: User, message: Enter, fds: list[int], *taken: str, structural: bool = True
) -> Bubble:
    return admit(site, user, PID, message, fds, taken, structural=structural)[0]


@dataclass(frozen=True, slots=True)
class Person:
    sentence: str
    user: User
    zone: str
    groups: tuple[str, ...] | None

    def __str__(self) -> str:
        return self.sentence


PEOPLE = [
    Person("by login", ALICE, "corporate", ("staff",)),
    Person("not into a zone that is not listed", ALICE, "lab", None),
    Person("by a group of the system", User(ME, "bob", ("makers",)), "lab", ("makers",)),
    Person("with the groups of every row", User(ME, "alice", ("makers",)), "corporate", ("makers", "staff")),
    Person("by a group's name as a login: no", User(ME, "makers", ()), "lab", None),
    Person("by a login's name as a group: no", User(ME, "bob", ("alice",)), "corporate", None),
    Person("nobody who is not listed", User(ME, "mallory", ("users",)), "corporate", None),
    Person("with the number of somebody as a login: no", User(ME, "4242", ()), "lab", None),
]


@pytest.mark.parametrize("case", PEOPLE, ids=str)
def test_people(site: Site, mine: list[int], case: Person) -> None:
    if case.groups is None:
        with pytest.raises(
            NotAdmitted, match=f'{case.user.login} may not enter zone "{case.zone}"; .*people'
        ):
            entered(site, case.user, enter(case.zone), mine)
        return
    bubble, groups = admit(site, case.user, PID, enter(case.zone), mine, (), structural=True)
    assert groups == case.groups
    assert (bubble.zone, bubble.user, bubble.uid, bubble.pid) == (case.zone, case.user.login, ME, PID)
    assert bubble.namespaces == tuple(mine)


def test_a_zone_that_is_not_there_is_named_with_those_that_are(site: Site, mine: list[int]) -> None:
    with pytest.raises(NotAdmitted, match='no zone "garden" here; there is corporate, lab'):
        entered(site, ALICE, enter("garden"), mine)


# -- namespaces --------------------------------------------------------------------------------------


def test_the_daemons_own_network_is_no_bubble(site: Site) -> None:
    with namespaces_of(os.getpid()) as fds, pytest.raises(NotAdmitted, match="of its own"):
        entered(site, ALICE, enter(), fds)


def test_a_network_namespace_of_another_user_is_refused(site: Site) -> None:
    """Else a user could have the traffic of somebody else's bubble judged as one's own."""
    with process(uid=NOBODY) as other, namespaces_of(other.pid) as fds:
        with pytest.raises(NotAdmitted, match="belongs to another user"):
            entered(site, ALICE, enter(), fds)
        theirs = User(NOBODY, "alice", ())
        assert entered(site, theirs, enter(), fds).uid == NOBODY


@pytest.mark.parametrize(
    "what",
    [
        lambda fds: [fds[0], os.open("/dev/null", os.O_RDONLY)],
        lambda fds: [fds[0], os.memfd_create("x")],
        lambda fds: [fds[0], os.pidfd_open(os.getpid())],
        lambda fds: fds[1:],
        lambda fds: [*fds, fds[1]],
        lambda fds: [],
    ],
    ids=["a device", "memory", "a process", "one only", "three", "none"],
)
def test_what_is_no_pair_of_namespaces_is_refused_in_words(
    site: Site, mine: list[int], what: Callable[[list[int]], list[int]]
) -> None:
    fds = what(mine)
    try:
        with pytest.raises(NotAdmitted, match="network namespace"):
            entered(site, ALICE, enter(), fds)
    finally:
        for fd in set(fds) - set(mine):
            os.close(fd)


# -- the bubble's name -------------------------------------------------------------------------------

BEFORE = f"{ME}-0123456789ab"


def test_a_bubble_that_comes_again_keeps_its_name(site: Site, mine: list[int]) -> None:
    assert entered(site, ALICE, enter(again=BEFORE), mine).id == BEFORE


@pytest.mark.parametrize(
    "again",
    [
        f"{ME + 1}-0123456789ab",
        f"1{ME}-0123456789ab" if ME else "10-0123456789ab",
        f"{ME}-0123456789AB",
        f"{ME}-0123456789abc",
        f"{ME}-0123456789ab\n",
        f"{ME}-../../../../a",
        "",
    ],
)
def test_a_name_that_is_not_this_users_is_not_given(site: Site, mine: list[int], again: str) -> None:
    found = entered(site, ALICE, enter(again=again), mine).id
    assert found != again
    assert reception._BUBBLE.fullmatch(found) and found.startswith(f"{ME}-")


def test_a_name_that_is_taken_is_not_given_twice(site: Site, mine: list[int]) -> None:
    assert entered(site, ALICE, enter(again=BEFORE), mine, BEFORE).id != BEFORE


def test_new_names_differ(site: Site, mine: list[int]) -> None:
    assert len({entered(site, ALICE, enter(), mine).id for _ in range(50)}) == 50


@pytest.mark.parametrize(
    "structural, cooperative, expected",
    [
        (True, False, "structural"),
        (True, True, "cooperative"),
        (False, False, "cooperative"),
        (False, True, "cooperative"),
    ],
)
def test_what_is_promised_of_a_bubble(
    site: Site, mine: list[int], structural: bool, cooperative: bool, expected: str
) -> None:
    bubble = entered(site, ALICE, enter(cooperative=cooperative), mine, structural=structural)
    assert bubble.enforcement == expected


# -- who it is ---------------------------------------------------------------------------------------


def test_a_user_of_the_system_has_a_login_and_groups() -> None:
    me = pwd.getpwuid(ME)
    found = identity(ME)
    assert (found.uid, found.login) == (ME, me.pw_name)
    assert grp.getgrgid(me.pw_gid).gr_name in found.groups


def test_a_user_whom_the_system_does_not_know_has_a_number_and_no_groups() -> None:
    assert identity(4_242_424) == User(4_242_424, "#4242424", ())
