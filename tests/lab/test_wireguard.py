"""A WireGuard tunnel, as root and as an ordinary user: used, lost in every way, found again, and never left.

The wire between the device and the network, and the device's own loopback: nothing but datagrams between the
device and the endpoint may be seen.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from lab import carriers, kernel
from lab.carriers import network_of_tunnel
from lab.conftest import AS_ROOT, WITH_A_CONTROL, WITHOUT, NewGate
from lab.gate import LAB_RULES, Gate, Settings, python, remove
from lab.kernel import Place
from lab.packet_peer import (
    DEVICE_INSIDE,
    GATEWAY_INSIDE,
    MUTE,
    PORT,
    SHARED,
    Peer,
    Wires,
    new_key,
    packets,
    public,
)
from lab.test_tunnel import assert_refused_because, assert_served, download, goes_on
from lab.world import GATEWAY, HOSTS, INTRANET, INTRANET6, PUBLIC, PUBLIC6, Host, World

NAME = "intranet.corp.example"


@pytest.fixture(scope="module")
def gate(host: Host, peer: Peer) -> Iterator[Gate]:
    """A daemon with a WireGuard tunnel, which no test ends."""
    made = Gate(host, "wireguard", Settings(without=WITHOUT, **packets(peer, peer.tunnel(device=SHARED))))
    try:
        yield made.start().attested()
    finally:
        remove(made)


# -- used --------------------------------------------------------------------------------------------


def test_names_and_addresses_of_both_families(gate: Gate, peer: Peer, wires: Wires) -> None:
    """Pages by name over IPv4 and IPv6; the verdict has the address that was dialled, and who the peer is."""
    assert_served(gate)
    row = gate.record("end", lambda row: row["name"] == NAME)
    assert (row["address"], row["tunnel"], row["peer"]) == (INTRANET, "hq", public(peer.key))
    assert gate.run("curl", "-sS", "-m", "60", "http://six.corp.example/").out == "the intranet\n"
    assert gate.record("end", lambda row: row["name"] == "six.corp.example")["address"] == INTRANET6
    assert gate.run("curl", "-sS", "-m", "60", "-o", "/dev/null", f"http://{NAME}/big/8").code == 0
    assert {NAME, "six.corp.example"} <= set(peer.asked())
    told = gate.tunnel()
    assert (told["kind"], told["words"]) == ("wireguard", f"the pinned peer answers, at {GATEWAY}:{PORT}")
    wires.quiet()


@WITH_A_CONTROL
def test_rebinding(new_gate: NewGate, peer: Peer, wires: Wires, control: bool) -> None:
    """A name for a place that is not behind the tunnel, or not this name's, leads nowhere; one that changes
    its address at every question is judged at every question."""
    near = ["127.0.0.1", "169.254.169.254", DEVICE_INSIDE, "fe80::1", "::ffff:127.0.0.1", "198.18.0.9"]
    names: dict[str, Sequence[object]] = {f"n{at}.corp.example": [one] for at, one in enumerate(near)}
    names |= {"gateway.corp.example": [GATEWAY_INSIDE], "public.corp.example": [PUBLIC]}
    gate = new_gate(*(["rebinding"] if control else []), **packets(peer)).attested()
    peer.tell({**names, "turns.corp.example": [[GATEWAY_INSIDE], [INTRANET]]})
    try:
        asked = [*names, *["turns.corp.example"] * 4]
        ask = "; ".join(f"curl -sS -m {2 if control else 60} http://{name}/" for name in asked)
        said = gate.run("sh", "-c", ask).out
    finally:
        peer.tell({name: list(addresses) for name, addresses in HOSTS.items()})
    rows = [row for row in gate.records() if row["record"] == "verdict"]
    verdicts = {row["name"]: row["verdict"] for row in rows}
    if control:
        assert verdicts["gateway.corp.example"] == verdicts["n1.corp.example"] == "tunnel", "must be red"
        return
    assert {verdicts[name] for name in names} == {"block"}, verdicts
    turns = {
        row["address"] for row in rows if row["name"] == "turns.corp.example" and row["verdict"] != "block"
    }
    assert turns <= {INTRANET} and "the intranet" in said
    wires.quiet()


# -- the namespace -----------------------------------------------------------------------------------

TARGETS = (PUBLIC, PUBLIC6, GATEWAY, "224.0.0.251", "169.254.169.254")


def attempts(place: Place, *more: str) -> None:
    """Everything that a process there can send, as root of the machine."""
    program = " ".join(python("canary"))
    lines = [f"{program} {what} {to}" for to in TARGETS for what in ("datagram", "stream", "ping")]
    lines += [f"{program} {what} {PUBLIC}" for what in ("raw", *more)]
    kernel.run(place, ["sh", "-c", " & ".join(lines) + " & wait"])


def test_nothing_leaves_its_namespace_but_by_the_tunnel(gate: Gate, wires: Wires) -> None:
    """Not even for root of the machine: there is no other device, with the tunnel or without."""
    world = gate.host.world
    attempts(Place(world.device))
    assert len(wires.seen()) > len(TARGETS), "a control must be red"
    with network_of_tunnel(gate) as network:
        shown = kernel.run(Place(network), ["ip", "-br", "link"]).out
        names = {line.split()[0].partition("@")[0] for line in shown.splitlines()}
        assert {name for name in names if not name.startswith("zg")} <= {
            "lo",
            "sit0",
            "ip6tnl0",
            "tunl0",
            "gre0",
        }
        attempts(Place(network), "device", "discovery")
        wires.quiet()
        carriers.lose(gate)
        kernel.until("the device is gone", lambda: not carriers.device_in(network))
        attempts(Place(network), "device", "discovery")
        wires.quiet()
    gate.attested()


# -- lost and found ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """A way of losing the tunnel and of getting it back; `restore` None is by itself. Where something in it
    depends on the user, `both` users lose it."""

    id: str
    lose: Callable[[Gate, Peer], None]
    restore: Callable[[Peer], None] | None
    words: str
    both: bool = False


def _kill(module: str) -> Callable[[Gate, Peer], None]:
    return lambda gate, _: os.kill(gate.child(module), signal.SIGKILL)


def _change_device(gate: Gate, _: Peer) -> None:
    """Root of the machine adds a peer of its own to the tunnel's device."""
    carriers.change(gate, "peer", public(new_key()), "allowed-ips", "10.99.0.0/16")


FAULTS = (
    Fault("its device is lost", lambda gate, _: carriers.lose(gate), None, "", both=True),
    Fault("its inner holder is killed", _kill("packet_holder"), None, ""),
    Fault(
        "the gateway forgets the device",
        lambda _, peer: peer.configure(knows=False),
        lambda peer: peer.configure(),
        "it no longer knows this device's key",
    ),
    Fault(
        "another peer is in its place",
        lambda _, peer: peer.configure(key=new_key()),
        lambda peer: peer.configure(),
        "another peer has taken its place",
    ),
    Fault(
        "nothing listens at the endpoint",
        lambda _, peer: peer.end(),
        lambda peer: peer.start(),
        "cannot be reached: Connection refused",
    ),
    Fault("somebody adds a peer to its device", _change_device, None, "which is not pinned"),
)


CASES = [pytest.param("root", fault, id=f"root-{fault.id}") for fault in FAULTS]
CASES += [pytest.param("user", fault, id=f"user-{fault.id}") for fault in FAULTS if fault.both]


@pytest.mark.parametrize(("host", "fault"), CASES, indirect=["host"])
def test_lost_and_back(gate: Gate, peer: Peer, wires: Wires, fault: Fault) -> None:
    """The running download is cut, new requests are refused, readably; later all is good again, unaided."""
    gate.attested()
    bubble = download(gate)
    fault.lose(gate, peer)
    try:
        assert "ConnectionResetError" in bubble.says("after")
        if fault.words:
            kernel.until("status says why", lambda: fault.words in gate.tunnel()["words"])
            assert_refused_because(gate, fault.words)
    finally:
        if fault.restore is not None:
            fault.restore(peer)
        elif fault.words:
            carriers.lose(gate)  # only a new device is as it was made
    gate.attested()
    assert_served(gate)
    wires.quiet()


@AS_ROOT
def test_the_peer_moves(gate: Gate, peer: Peer) -> None:
    """Its key is what counts: it is followed to another port without a gap, and that is told."""
    gate.attested()
    bubble = download(gate)
    try:
        peer.move(PORT + 1)
        kernel.until(
            "it is told", lambda: gate.tunnel()["words"].endswith(f"answers, at {GATEWAY}:{PORT + 1}")
        )
        assert goes_on(bubble, 1.0)
        assert f"the pinned peer answers, at {GATEWAY}:{PORT + 1}" in gate.said()
    finally:
        peer.move(PORT)
    kernel.until("it is back", lambda: gate.tunnel()["words"].endswith(f"at {GATEWAY}:{PORT}"))


@AS_ROOT
def test_down_by_hand(gate: Gate, wires: Wires) -> None:
    """`zonegate tunnel down` cuts and refuses, in words; `up` is good again."""
    gate.attested()
    bubble = download(gate)
    assert gate.call("tunnel", "down", "hq").code == 0
    assert "ConnectionResetError" in bubble.says("after")
    assert_refused_because(gate, "held down by root")
    shown = gate.call("tunnel", "show", "hq")
    assert shown.code == 1 and "held down by root" in shown.out and "zonegate tunnel up hq" in shown.out
    assert gate.call("tunnel", "up", "hq").code == 0
    gate.attested()
    assert_served(gate)
    assert gate.call("tunnel", "list").code == 0
    wires.quiet()


@pytest.mark.parametrize(
    ("host", "how"),
    [("root", signal.SIGTERM), ("root", signal.SIGKILL), ("user", signal.SIGKILL)],
    ids=["root-ended", "root-killed", "user-killed"],
    indirect=["host"],
)
def test_nothing_is_left(new_gate: NewGate, peer: Peer, wires: Wires, how: int) -> None:
    """A daemon that ends or is killed leaves no process, device, socket or mount of its tunnel."""
    gate = new_gate(**packets(peer)).attested()
    below = kernel.descendants(gate.pid)
    names = [kernel.command_of(pid) for pid in below]
    keeper = "ip link add" if carriers.is_kernels(gate) else "wireguard-go"
    for word in (keeper, "proxy.wireguard", "proxy.packet_holder"):
        assert any(word in name for name in names), names
    assert gate.process is not None
    kernel.end(gate.process, how)
    kernel.until("they are gone", lambda: not [pid for pid in below if kernel.is_alive(pid)])
    assert "zg" not in kernel.run(gate.host.root, ["ip", "-br", "link"]).out
    assert "wireguard" not in kernel.run(gate.host.root, ["ls", "/run"]).out
    wires.quiet()


@AS_ROOT
def test_many_at_once(gate: Gate, wires: Wires) -> None:
    """A burst of connections, by name: each is served, and none costs the link to the holder."""
    gate.attested()
    done = gate.run("sh", "-c", f"curl -sS -m 60 --parallel --parallel-max 200 'http://{NAME}/?[1-300]'")
    assert done.out.count("the intranet") == 300, done.err[-500:]
    assert_served(gate)
    wires.quiet()


def last_tunnel(gate: Gate) -> str:
    """The tunnel of the flow that was admitted last; its verdict is written before it is served."""
    return str(gate.record("verdict", lambda row: row["name"] == NAME and row["tunnel"])["tunnel"])


@AS_ROOT
def test_never_up_in_words(new_gate: NewGate, peer: Peer, world: World, wires: Wires) -> None:
    """Each reason for not coming up has its own words; the zone takes the tunnel that is up."""
    tunnels = {
        "wrong": peer.tunnel("wrong", device=MUTE, peer=public(new_key())),
        "closed": peer.tunnel("closed", endpoint=f"{GATEWAY}:{PORT + 9}"),
        "nowhere": peer.tunnel("nowhere", endpoint="10.99.99.99:51820"),
        "mute": peer.tunnel("mute", device=MUTE, probe="icmp 10.77.99.99"),
        "hq": peer.tunnel("hq", probe=f"icmp {GATEWAY_INSIDE}"),
    }
    kernel.must(world.device, "ip route add unreachable 10.99.99.99/32")
    try:
        order = "wrong, closed, nowhere, mute, hq"
        gate = new_gate(**packets(peer, "".join(tunnels.values()), order)).attested()
        expected = {
            "wrong": "has another key than the pinned one",
            "closed": f"{GATEWAY}:{PORT + 9} cannot be reached: Connection refused",
            "nowhere": "cannot be reached: No route to host",
            "mute": "is there, but no answer to the probe",
        }
        for name, words in expected.items():
            kernel.until(words, lambda name=name, words=words: words in gate.tunnel(name)["words"])  # type: ignore[misc]
            assert not gate.tunnel(name)["attested"]
        assert_served(gate)
        assert last_tunnel(gate) == "hq"
    finally:
        kernel.must(world.device, "ip route del unreachable 10.99.99.99/32")
    strange = [seen for seen in wires.seen() if f"{GATEWAY}:{PORT + 9}" not in seen]
    assert not strange, strange[:10]


@AS_ROOT
def test_another_kind_takes_over(new_gate: NewGate, peer: Peer, world: World) -> None:
    """An mtls and a WireGuard tunnel in one zone: flows of the lost one are cut, new ones take the other, and
    when the first is back new ones take it again and the open ones stay."""
    gate = new_gate(**packets(peer, order="gw, hq")).attested()
    kernel.until("both are attested", lambda: gate.tunnel("gw")["attested"])
    through_gateway = download(gate)
    world.gateway.end()
    try:
        assert "ConnectionResetError" in through_gateway.says("after")
        assert_served(gate)
        assert last_tunnel(gate) == "hq"
        through_peer = download(gate)
    finally:
        world.gateway.start()
    kernel.until("the first is back", lambda: gate.tunnel("gw")["attested"])
    assert_served(gate)
    assert last_tunnel(gate) == "gw"
    through_peer.says(" ")


@AS_ROOT
def test_a_rule_names_its_tunnel(new_gate: NewGate, peer: Peer, wires: Wires) -> None:
    """`via`: what the zone's first tunnel would carry goes by the named one, or not at all."""
    narrow = LAB_RULES.replace("verdict: tunnel", "verdict: tunnel\n    via: [hq]")
    gate = new_gate(**packets(peer, order="gw, hq"), rules=narrow).attested()
    kernel.until("both are attested", lambda: gate.tunnel("gw")["attested"])
    assert_served(gate)
    assert last_tunnel(gate) == "gw"

    def ask() -> dict[str, Any]:
        gate.python("clients", "half-closed", NAME, "7000")
        return gate.record("verdict", lambda row: row["port"] == 7000)

    assert (ask()["verdict"], last_tunnel(gate)) == ("tunnel", "hq")
    gate.order("tunnel-down", tunnel="hq")
    kernel.until("it is down", lambda: not gate.tunnel("hq")["attested"])
    refused = ask()
    assert (refused["verdict"], refused["because"]["id"]) == ("block", "via"), refused
    assert_served(gate)
    assert last_tunnel(gate) == "gw"
    wires.quiet()
