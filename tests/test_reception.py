"""Who may enter which zone, and with which namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors
from own_namespaces import NOBODY, process

from proxy import ipc, reception
from proxy.config import Site, read_site
from proxy.directory import User
from proxy.messages.admin import Enter
from proxy.posts import Bubble
from proxy.reception import NotAdmitted, admit

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
PID = os.getpid()


@pytest.fixture(scope="module")
def site() -> Site:
    return read_site(SITE, Path("zonegate.yaml"))


@pytest.fixture(scope="module")
def mine() -> Iterator[int]:
    """A process in the namespaces of a bubble of this user."""
    with process() as started:
        yield started.pid


def enter(
    pid: int, zone: str = "corporate", again: str = "", *, cooperative: bool = False, attached: str = ""
) -> Enter:
    return Enter(zone, again, cooperative, pid, attached)


def entered(
    site: Site, user: User, message: Enter, *inside: Bubble, asker: int = PID, structural: bool = True
) -> Bubble:
    """The bubble that is let in; its namespaces are closed."""
    bubble, _ = admit(site, user, asker, message, inside, structural=structural)
    ipc.close_all(bubble.namespaces)
    return bubble


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
def test_people(site: Site, mine: int, case: Person) -> None:
    if case.groups is None:
        with pytest.raises(
            NotAdmitted, match=f'{case.user.login} may not enter zone "{case.zone}"; .*people'
        ):
            entered(site, case.user, enter(mine, case.zone))
        return
    bubble, groups = admit(site, case.user, PID, enter(mine, case.zone), (), structural=True)
    there = [Path(f"/proc/{mine}/ns/{kind}").stat() for kind in ("user", "net")]
    assert [os.fstat(fd).st_ino for fd in bubble.namespaces] == [one.st_ino for one in there]
    ipc.close_all(bubble.namespaces)
    assert groups == case.groups
    assert (bubble.zone, bubble.user, bubble.uid, bubble.pid) == (case.zone, case.user.login, ME, PID)


def test_a_zone_that_is_not_there_is_named_with_those_that_are(site: Site, mine: int) -> None:
    with pytest.raises(NotAdmitted, match='no zone "garden" here; there is corporate, lab'):
        entered(site, ALICE, enter(mine, "garden"))


# -- namespaces --------------------------------------------------------------------------------------


@contextlib.contextmanager
def sleeper(**more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child in the network of this process."""
    with subprocess.Popen(["sleep", "1000"], **more) as started:
        try:
            yield started
        finally:
            started.kill()


def test_the_daemons_own_network_is_no_bubble(site: Site) -> None:
    with sleeper() as child, pytest.raises(NotAdmitted, match="of its own"):
        entered(site, ALICE, enter(child.pid))


def test_a_network_namespace_of_another_user_is_refused(site: Site) -> None:
    """Else a user could have somebody else's traffic judged as one's own. Root may attach them."""
    with process(uid=NOBODY) as other:
        with pytest.raises(NotAdmitted, match="belongs to another user"):
            entered(site, User(4242, "alice", ()), enter(other.pid))
        assert entered(site, User(NOBODY, "alice", ()), enter(other.pid)).uid == NOBODY
        root = User(0, "alice", ())
        with pytest.raises(NotAdmitted, match="belongs to another user"):
            entered(site, root, enter(other.pid))
        assert entered(site, root, enter(other.pid, attached="process 7")).attached == "process 7"


def test_a_process_that_is_not_the_askers_own_is_refused(site: Site, mine: int) -> None:
    """The daemon may see what who asks may not: nobody has it look at another's process."""
    with sleeper() as other, pytest.raises(NotAdmitted, match=f"process {mine} is no child"):
        entered(site, ALICE, enter(mine), asker=other.pid)


@pytest.mark.parametrize("pid", [0, -1, 1 << 40, (1 << 63) - 1])
def test_what_is_no_process_is_refused_in_words(site: Site, pid: int) -> None:
    with pytest.raises(NotAdmitted, match=f"of process {pid} cannot be seen"):
        entered(site, ALICE, enter(pid))


def test_a_process_that_has_ended_is_refused(site: Site) -> None:
    """A zombie has its number still; its namespaces are nobody's."""
    with sleeper() as child:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NotAdmitted, match=r"cannot be seen|has ended"):
            entered(site, ALICE, enter(child.pid))


def test_a_process_that_ends_while_it_is_looked_at_is_refused(
    site: Site, mine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be somebody else's by then, and what was opened that process's."""
    with sleeper() as child:
        opened = os.pidfd_open

        def of_the_child(pid: int) -> int:
            fd = opened(child.pid)
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            return fd

        monkeypatch.setattr(os, "pidfd_open", of_the_child)
        before = open_descriptors()
        with pytest.raises(NotAdmitted, match="has ended"):
            entered(site, ALICE, enter(mine))
        assert open_descriptors() == before


def test_a_namespace_that_is_served_is_refused_with_who_serves_it(site: Site, mine: int) -> None:
    bubble, _ = admit(site, ALICE, PID, enter(mine), (), structural=True)
    before = open_descriptors()
    bubble.pid = 1
    with pytest.raises(NotAdmitted, match=f"served already, as bubble {bubble.id}"):
        entered(site, ALICE, enter(mine), bubble)
    assert open_descriptors() == before
    bubble.pid = PID  # it comes again, and its old link has only not ended yet
    assert entered(site, ALICE, enter(mine), bubble).id != bubble.id
    ipc.close_all(bubble.namespaces)


def test_what_is_attached_is_told_without_what_a_terminal_would_act_on(site: Site, mine: int) -> None:
    assert entered(site, ALICE, enter(mine, attached="netns \x1b[2Jweb")).attached == "netns [2Jweb"


# -- the bubble's name -------------------------------------------------------------------------------

BEFORE = f"{ME}-0123456789ab"


def test_a_bubble_that_comes_again_keeps_its_name(site: Site, mine: int) -> None:
    assert entered(site, ALICE, enter(mine, again=BEFORE)).id == BEFORE


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
def test_a_name_that_is_not_this_users_is_not_given(site: Site, mine: int, again: str) -> None:
    found = entered(site, ALICE, enter(mine, again=again)).id
    assert found != again
    assert reception._BUBBLE.fullmatch(found) and found.startswith(f"{ME}-")


def test_a_name_that_is_taken_is_not_given_twice(site: Site, mine: int) -> None:
    there = Bubble(BEFORE, "corporate", "alice", ME, PID, "structural", ())
    assert entered(site, ALICE, enter(mine, again=BEFORE), there).id != BEFORE


def test_new_names_differ(site: Site, mine: int) -> None:
    assert len({entered(site, ALICE, enter(mine)).id for _ in range(50)}) == 50


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
    site: Site, mine: int, structural: bool, cooperative: bool, expected: str
) -> None:
    bubble = entered(site, ALICE, enter(mine, cooperative=cooperative), structural=structural)
    assert bubble.enforcement == expected
