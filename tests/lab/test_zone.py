"""Nothing but the gate is reachable from a zone: rows N1 to N5, N11 to N13, D1, D3, I3 and I10.

Each attempt runs first where the defence is missing, and must be seen there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab import kernel
from lab.conftest import WITH_A_CONTROL, NewGate, Watch
from lab.gate import Gate, python
from lab.kernel import Place
from lab.opening import Probe, attempt, opened, remove_capture
from lab.wire import Frame
from lab.world import GATEWAY, INTRANET, PUBLIC, PUBLIC6, RESOLVER, ROUTER, World

NAME = "intranet.corp.example"
ADVERTISED = "2001:db8:bad::/64"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A program of canary.py, and what of it the control must show: a kind and an end of a frame."""

    id: str
    arguments: tuple[str, ...]
    kind: str
    target: str


ATTEMPTS = (
    Attempt("N2 bound to a device", ("device", PUBLIC), "arp", ""),
    Attempt("N2 bound to a device, IPv6", ("device", PUBLIC6), "icmpv6", ""),
    Attempt("N4 a datagram to the endpoint", ("datagram", GATEWAY, "8443"), "udp", f"{GATEWAY}:8443"),
    Attempt("N11 discovery", ("discovery", PUBLIC), "udp", "224.0.0.251:5353"),
    Attempt("N11 discovery, IPv6", ("discovery", PUBLIC), "udp", "ff02::fb:5353"),
    Attempt("N11 an echo request", ("ping", PUBLIC), "icmp", PUBLIC),
    Attempt("N11 fragments", ("datagram", PUBLIC, "9", "5000"), "udp", f"{PUBLIC}:9"),
    Attempt("N12 IPv6, TCP", ("stream", PUBLIC6, "80"), "tcp", f"{PUBLIC6}:80"),
    Attempt("N12 IPv6, UDP", ("datagram", PUBLIC6, "9"), "udp", f"{PUBLIC6}:9"),
    Attempt("N12 IPv6, an echo request", ("ping", PUBLIC6), "icmpv6", PUBLIC6),
    Attempt("D1 the ISP's resolver", ("question", RESOLVER), "udp", f"{RESOLVER}:53"),
    Attempt("D1 the router's resolver", ("question", ROUTER), "udp", f"{ROUTER}:53"),
    Attempt("D1 a resolver over TCP", ("question", RESOLVER), "tcp", f"{RESOLVER}:53"),
    Attempt("D3 DNS over TLS", ("question", RESOLVER), "tcp", f"{RESOLVER}:853"),
    Attempt("D1 an IPv6 resolver", ("question", "2001:db8:1::1"), "udp", "2001:db8:1::1:53"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What every attempt of the table brought to light: frames, and what the programs said."""

    frames: list[Frame]
    said: str

    def of(self, tried: Attempt) -> list[Frame]:
        """The frames of one attempt."""
        return [frame for frame in self.frames if frame.kind == tried.kind and tried.target in frame.target]


def _try_all(gate: Gate, *, control: bool) -> Seen:
    words = sorted({" ".join(one.arguments) for one in ATTEMPTS})
    shell = 'while read words; do "$@" $words; done'
    lines = "\n".join(words)
    script = f"echo '{lines}' | {shell}"
    return Seen(*attempt(gate, "sh", "-c", script, "sh", *python("canary"), control=control))


@pytest.fixture(scope="module")
def with_a_link(gate: Gate) -> Seen:
    """All attempts in a zone that has a way out: the control."""
    return _try_all(gate, control=True)


@pytest.fixture(scope="module")
def without(gate: Gate) -> Seen:
    """All attempts in a zone as it is."""
    return _try_all(gate, control=False)


@pytest.mark.parametrize("tried", ATTEMPTS, ids=lambda tried: tried.id)
def test_structure(with_a_link: Seen, without: Seen, tried: Attempt) -> None:
    """What a program tries is seen where the zone has a link, and nowhere where it has none."""
    assert with_a_link.of(tried), f"a control must be red: {with_a_link.said}"
    assert not without.of(tried), f"{without.said}: {[str(frame) for frame in without.of(tried)]}"


def test_structure_and_nothing_else(without: Seen) -> None:
    """No attempt brought any frame to light, of whatever kind, and none was answered for real."""
    assert not without.frames, [str(frame) for frame in without.frames[:10]]
    assert "real" not in without.said, without.said


def test_raw_frames(gate: Gate, watch: Watch) -> None:
    """N5: a raw frame is sent by root of the device, and by nobody in a bubble."""
    done = kernel.run(gate.host.root, python("canary", "raw", ""))
    seen = gate.host.world.wire.seen()
    assert any(frame.kind == "ethertype 88b5" for frame in seen), f"a control must be red: {done}"
    watch.forget()
    inside, said = attempt(gate, *python("canary", "raw", ""), control=True)
    raw = [str(frame) for frame in inside if frame.kind == "ethertype 88b5"]
    assert not raw, f"no CAP_NET_RAW and no AF_PACKET, whatever link there is: {raw}"
    assert "sent" not in said, said
    seen, said = attempt(gate, *python("canary", "raw", ""))
    assert not seen and "sent" not in said, said


@WITH_A_CONTROL
def test_its_own_capture_vanishes(gate: Gate, control: bool) -> None:
    """N1: rules, routes and lo of a zone go in the middle of everything; there is no other way to take."""
    probe = Probe(gate, control=control)
    zone = probe.bubble.network()
    try:
        remove_capture(zone)
        kernel.must(zone, "ip link set lo down")
    finally:
        os.close(zone)
    probe.a_round()
    if control:
        with pytest.raises(AssertionError, match="left the zone"):
            probe.end()
    else:
        probe.end()


def test_routes_of_the_local_network(gate: Gate, watch: Watch) -> None:
    """N3: routes that a hostile DHCP gives the host pull its own traffic away, and none of a zone's."""
    routes = [
        f"{address} via {ROUTER} dev up0" for address in (f"{INTRANET}/32", "198.18.0.0/15", f"{PUBLIC}/32")
    ]
    world = gate.host.world
    for route in routes:
        kernel.must(world.device, f"ip route add {route}")
    try:
        kernel.run(gate.host.place, ["curl", "-sS", "-m", "2", f"http://{INTRANET}/"])
        assert [f for f in world.wire.seen() if INTRANET in f.target], "a control must be red"
        watch.forget()
        done = gate.run("curl", "-sS", "-m", "60", f"http://{NAME}/")
        assert done.out == "the intranet\n"
        watch.only_the_gateway()
        for control in (True, False):
            seen, said = attempt(gate, *python("canary", "stream", PUBLIC, "80"), control=control)
            assert bool(seen) == control, (said, [str(frame) for frame in seen[:10]])
    finally:
        for route in routes:
            kernel.must(world.device, f"ip route del {route}")


@WITH_A_CONTROL
def test_a_rogue_router(gate: Gate, watch: Watch, control: bool) -> None:
    """N12: a router advertisement changes the host's routes, and a zone does not hear it."""
    world = gate.host.world
    bubble = gate.bubble(
        "sh",
        "-c",
        'echo begun; read go; cat /proc/net/ipv6_route; echo end; read go; "$@"',
        "sh",
        *python("canary", "stream", PUBLIC6, "80"),
    )
    bubble.says("begun")
    with contextlib.ExitStack() as undo:
        undo.callback(bubble.end)
        if control or "linkless" in gate.settings.without:
            zone = bubble.network()
            undo.callback(os.close, zone)
            wire = undo.enter_context(opened(bubble))
            _advertise(world.device, wire.device)
            kernel.until("the zone has heard it", lambda: ADVERTISED in _routes6(zone))
        if not control:
            undo.enter_context(_the_host_is_misled(world))
        watch.forget()
        bubble.tell("go")
        bubble.says("end")
        heard = [line for line in bubble.heard if line.startswith("20010db80bad")]
        assert bool(heard) == control, heard or "a control must be red"
        bubble.tell("go")
        kernel.until("it has tried", lambda: bubble.lines()[-1] != "end")
        watch.only_the_gateway()


@contextlib.contextmanager
def _the_host_is_misled(world: World) -> Iterator[None]:
    """The host believes a router advertisement."""
    kernel.must(world.device, "sysctl -qw net.ipv6.conf.up0.accept_ra=2")
    kernel.must(world.device, "ip -6 addr add fe80::2/64 dev up0 nodad")
    try:
        _advertise(world.net, "n-device")
        kernel.until("a control must be red", lambda: ADVERTISED in _routes6(world.device))
        yield
    finally:
        kernel.must(
            world.device, "sysctl -qw net.ipv6.conf.up0.accept_ra=0", "ip -6 addr del fe80::2/64 dev up0"
        )
        kernel.must(world.device, f"ip -6 addr flush dev up0 to {ADVERTISED}")
        kernel.run(Place(world.device), ["ip", "-6", "route", "flush", "proto", "ra"])
        kernel.run(Place(world.device), ["ip", "-6", "route", "del", ADVERTISED, "dev", "up0"])
        kernel.must(world.net, "ip -6 addr del fe80::1/64 dev n-device")


def _routes6(network: int) -> str:
    return kernel.run(Place(network), ["ip", "-6", "route"]).out


def _advertise(network: int, device: str) -> None:
    """Send a router advertisement with an on-link prefix (RFC 4861, section 4.2) to everybody on a link."""
    kernel.must(network, f"ip -6 addr add fe80::1/64 dev {device} nodad")
    packed = socket.inet_pton(socket.AF_INET6, ADVERTISED.partition("/")[0])
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + packed
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
    with (
        kernel.inside(network),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock,
    ):
        index = socket.if_nametoindex(device)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.bind(("fe80::1", 0, 0, index))
        sock.sendto(message, ("ff02::1", 0, 0, index))


# -- addresses within addresses, and addresses of one's own ------------------------------------------

WIDE = {
    "judges_addresses": True,
    "destinations": '    anywhere: ["0.0.0.0/0", "::/0"]\n    forbidden: [11.66.0.0/16]\n',
    "guards": "  - {id: lab-forbidden, match: {to: forbidden}, at_most: block}\n",
    "rules": "  - {id: lab-anywhere, match: {zone: corporate, to: anywhere}, verdict: tunnel}\n",
}
WITHIN = ("::ffff:11.66.0.1", "64:ff9b::b42:1", "2002:b42:1::1", "2001:0:4136:e378:8000:63bf:f4bd:fffe")
OWN = (
    "169.254.169.254", "100.100.100.200", "192.0.0.192", "0.0.0.0", "127.0.0.1", "127.8.8.8", "::1",
    "100.64.0.1", "fd00:7a67:1::1", "198.18.0.1", "198.19.255.255", "fd00:7a67::1", "240.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fd00:ec2::254", "fec0::1",
)  # fmt: skip


def _connects(gate: Gate, *addresses: str) -> None:
    """Have a bubble connect to port 80 of each address."""
    lines = "\n".join(addresses)
    shell = 'while read a; do "$@" "$a" 80; done'
    done = gate.run("sh", "-c", shell, "sh", *python("canary", "stream"), stdin=lines.encode() + b"\n")
    assert len(done.out.split()) == len(addresses), done


def _verdicts(gate: Gate) -> dict[str, str]:
    return {
        row["address"]: row["verdict"]
        for row in gate.records()
        if row["record"] == "verdict" and row["address"]
    }


def test_addresses_within_addresses(new_gate: NewGate) -> None:
    """N13: a guard on a network holds for mapped, NAT64, 6to4 and Teredo spellings of its addresses."""
    control = new_gate("inner-address", **WIDE).attested()
    _connects(control, *WITHIN)
    assert "tunnel" in _verdicts(control).values(), "a control must be red"
    control.end()
    gate = new_gate(**WIDE).attested()
    _connects(gate, "11.22.33.44", *WITHIN)
    found = _verdicts(gate)
    assert found.pop("11.22.33.44") == "tunnel", "what the guard does not name is granted"
    assert len(found) == len(WITHIN) and set(found.values()) == {"block"}, found
    ids = {
        row["because"]["id"]
        for row in gate.records()
        if row["record"] == "verdict" and row["verdict"] == "block"
    }
    assert ids == {"lab-forbidden"}


def test_addresses_of_ones_own(new_gate: NewGate) -> None:
    """I10: the gate itself, loopback, metadata and link-local are not granted by a wide network."""
    control = new_gate("special-ranges", **WIDE).attested()
    _connects(control, *OWN)
    assert _verdicts(control)["169.254.169.254"] == "tunnel", "a control must be red"
    control.end()
    before = len(control.host.world.gateway.heard())
    gate = new_gate(**WIDE).attested()
    _connects(gate, *OWN)
    found = _verdicts(gate)
    assert "169.254.169.254" in found and set(found.values()) == {"block"}, found
    heard = gate.host.world.gateway.heard()[before:]  # which has the holder's own question on another port
    for address in OWN:
        host = f"[{address}]" if ":" in address else address
        assert f'"to":"{host}:80"' not in heard


def test_a_name_of_an_address_of_ones_own(new_gate: NewGate, watch: Watch) -> None:
    """I10: a granted name that resolves to a metadata address is refused by the gateway, who resolves it."""
    gate = new_gate().attested()
    done = gate.run("curl", "-sS", "-m", "60", "http://rebound.corp.example/")
    assert "allow-list does not admit the address 169.254.169.254" in done.out, done
    watch.only_the_gateway()


def test_the_ears_of_the_gate(gate: Gate) -> None:
    """I10: the gate's own ports in a zone are no destination, and its admin socket is not in sight."""
    for port in ("15001", "53"):
        said = gate.python("canary", "stream", "100.64.0.1", port).out.strip()
        assert said != "answered", said
    socket_ = str(gate.socket)
    assert gate.run("sh", "-c", f"test -e {socket_}").code == 1
    assert kernel.run(gate.host.place, ["test", "-e", socket_]).code == 0, "a control must be red"


SPELLINGS = (
    "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "017700000001", "127.0.0.1.", "0", "0.0",
    "169.254.43518", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "::1", "0x7f.0x0.0x0.0x1",
)  # fmt: skip


@WITH_A_CONTROL
def test_spellings_of_addresses(new_gate: NewGate, watch: Watch, control: bool) -> None:
    """I3: what looks like an address in octal, hex, short or decimal form is nobody's name."""
    gate = new_gate(*(["strict-names"] if control else []))
    words = [f"dig +short +tries=1 +time=60 {name} A" for name in SPELLINGS]
    answers = gate.run("sh", "-c", ";".join(words)).out.split()
    if control:
        assert answers, "a control must be red"
        return
    assert not answers
    named = gate.attested().run("curl", "-sS", "-m", "60", "-H", "Host: 127.1", f"http://{NAME}/")
    assert "names-disagree" in named.out, named
    watch.only_the_gateway()
