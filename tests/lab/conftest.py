"""The lab's fixtures. `LAB_WITHOUT=NAME[,NAME]` takes defences out of every gate: the named tests go red."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from lab import kernel
from lab.failing_tools import tools as tools
from lab.gate import Gate, Settings, remove
from lab.packet_peer import Peer, Wires
from lab.ssh_server import SshServer
from lab.weakened import BY_THE_LAB, WEAKENINGS
from lab.world import MOUNTS, Gateway, Host, World
from proxy.certificates import Issued

WITHOUT = frozenset(filter(None, os.environ.get("LAB_WITHOUT", "").split(",")))

OTHER_PORT = 8444

# The control of a row once, as root; the row itself as both users.
WITH_A_CONTROL = pytest.mark.parametrize(
    ("host", "control"),
    [("root", True), ("root", False), ("user", False)],
    ids=["control", "root", "user"],
    indirect=["host"],
)
AS_ROOT = pytest.mark.parametrize("host", ["root"], indirect=True)  # nothing in it depends on the user
AS_USER = pytest.mark.parametrize("host", ["user"], indirect=True)

type NewGate = Callable[..., Gate]
type NewGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The three namespaces and their servers."""
    unknown = WITHOUT - WEAKENINGS.keys() - BY_THE_LAB
    assert not unknown, f"LAB_WITHOUT names no defence: {', '.join(sorted(unknown))}"
    made = World()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session", params=["root", "user"])
def host(world: World, request: pytest.FixtureRequest) -> Host:
    """The device as root and as an ordinary user have it."""
    return world.host(request.param)


@pytest.fixture(scope="session")
def gate(host: Host) -> Iterator[Gate]:
    """A daemon that many tests use and none ends."""
    made = Gate(host, "shared", Settings(without=WITHOUT))
    try:
        yield made.start().attested()
    finally:
        remove(made)


@pytest.fixture(scope="session")
def sshd(world: World) -> Iterator[SshServer]:
    """A real one in corp, which one key may enter."""
    made = SshServer(world)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def new_gate(host: Host) -> Iterator[NewGate]:
    """Daemons of one test: `Settings` by keyword; `controls` are taken out beside LAB_WITHOUT."""
    made: list[Gate] = []

    def make(*controls: str, **changes: object) -> Gate:
        without = WITHOUT | frozenset(controls)
        settings = replace(Settings(without=without), **changes)  # type: ignore[arg-type] # by name
        found = Gate(host, f"gate{len(list(host.directory.iterdir()))}", settings)
        made.append(found)
        return found.start()

    try:
        yield make
    finally:
        for one in made:
            remove(one)


@pytest.fixture
def new_gateway(world: World) -> Iterator[NewGateway]:
    """Further corporate ends of one test, which show any certificate; on another port of the same machine."""
    made: list[Gateway] = []

    def make(server: Issued, **more: Any) -> Gateway:
        directory = world.directory / f"gateway{len(list(world.directory.iterdir()))}"
        found = Gateway(world, directory, server, port=OTHER_PORT, **more)
        made.append(found)
        found.start()
        return found

    try:
        yield make
    finally:
        for one in made:
            one.end()


@pytest.fixture(scope="module", autouse=True)
def left_as_it_was(world: World) -> Iterator[None]:
    """A file leaves no link, route, rule or mount behind: the next one has the same world."""
    before = world.left()
    yield
    changed: dict[str, tuple[list[str], list[str]]] = {}

    def is_as_before() -> bool:
        nonlocal changed
        now = world.left()
        looks = ((look, was, now[look]) for look, was in before.items())
        changed = {look: (was, is_now) for look, was, is_now in looks if not _as_before(look, was, is_now)}
        return not changed

    try:
        kernel.until("the world is as it was", is_as_before)
    except kernel.NotSeen as error:
        raise kernel.NotSeen(f"{error}: {changed}") from None


def _as_before(look: str, was: list[str], now: list[str]) -> bool:
    return set(now) <= set(was) if look.startswith(MOUNTS) else now == was


@pytest.fixture(autouse=True)
def nothing_on_the_wire(world: World) -> None:
    """Each test begins with a wire on which nothing was seen."""
    world.wire.forget()
    world.loopback.forget()


class Watch:
    """Asserting about the wire in the words of a test."""

    def __init__(self, world: World) -> None:
        self._world = world

    def only_the_gateway(self) -> None:
        """Nothing left the device but the connection to the gateway, and nothing went over its own lo."""
        assert not (seen := self._world.wire.seen()), f"left the device: {[str(f) for f in seen[:10]]}"
        assert not (seen := self._world.loopback.seen()), f"on the device's lo: {[str(f) for f in seen[:10]]}"

    def forget(self) -> None:
        """What was seen belongs to the control."""
        self._world.wire.forget()
        self._world.loopback.forget()


@pytest.fixture
def watch(world: World) -> Watch:
    """The wire of the device."""
    return Watch(world)


@pytest.fixture(scope="module")
def peer(world: World) -> Iterator[Peer]:
    """The corporate end of a WireGuard tunnel."""
    made = Peer(world)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def wires(world: World) -> Iterator[Wires]:
    """The wires of a device with a WireGuard tunnel, watched from the beginning of the test."""
    made = Wires(world)
    made.seen()
    try:
        yield made
    finally:
        made.close()
