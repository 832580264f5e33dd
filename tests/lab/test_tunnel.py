"""A tunnel that is not proved carries nothing: cut, refused with the reason, and back by itself.

Rows T1 to T3, and B11: leases end in the worker, whoever is stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, OTHER_PORT, WITH_A_CONTROL, NewGate, NewGateway, Watch
from lab.gate import Bubble, Gate, python
from lab.world import GATEWAY, SERVER_NAME, World
from proxy import certificates
from proxy.certificates import Issued

NAME = "intranet.corp.example"
BOUND_S = 3.0  # of the design: silent loss, a supervisor that is stopped


def download(gate: Gate) -> Bubble:
    """A bubble in which a download is running."""
    bubble = gate.bubble(*python("clients", "hold", NAME, "80"))
    bubble.says("flowing")
    return bubble


def goes_on(bubble: Bubble, for_s: float) -> bool:
    """Whether a download is still running when some time is over."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        if "after" in bubble.says(" "):
            return False
    return True


def assert_refused_because(gate: Gate, words: str) -> None:
    """A new request is refused, readably, and so it is recorded."""
    done = gate.run("curl", "-sS", "-m", "60", "-i", f"http://{NAME}/")
    assert "503 Service Unavailable" in done.out and "tunnel hq is not proved" in done.out, done
    assert words in done.out, done.out
    row = gate.record("verdict", lambda row: row["name"] == NAME)
    assert (row["verdict"], row["because"]["id"]) == ("block", "proof-or-nothing")


def assert_served(gate: Gate) -> None:
    """A new request is good."""
    done = gate.run("curl", "-sS", "-m", "60", f"http://{NAME}/")
    assert done.out == "the intranet\n", done


@dataclass(frozen=True, slots=True)
class Fault:
    """A way of losing the tunnel and of getting it back."""

    id: str
    lose: Callable[[World], None]
    restore: Callable[[World], None]
    words: str


def _unroute(world: World, action: str) -> None:
    kernel.must(world.device, f"ip route {action} unreachable {GATEWAY}/32")


FAULTS = (
    Fault(
        "the gateway is stopped (silence)",
        lambda world: world.gateway.send(signal.SIGSTOP),
        lambda world: world.gateway.send(signal.SIGCONT),
        "no proof of the peer",
    ),
    Fault(
        "the gateway is killed", lambda world: world.gateway.end(), lambda world: world.gateway.start(), ""
    ),
    Fault("the link to it is down", World.take_link_down, World.take_link_up, "answer"),
    Fault("the route to it is gone", lambda w: _unroute(w, "add"), lambda w: _unroute(w, "del"), ""),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_lost_and_back(gate: Gate, watch: Watch, fault: Fault) -> None:
    """The running download is cut, new requests are refused with the reason; later they are good again."""
    gate.attested()
    before = gate.flows()
    bubble = download(gate)
    fault.lose(gate.host.world)
    try:
        assert "ConnectionResetError" in bubble.says("after")
        kernel.until("status says so", lambda: not gate.tunnel()["attested"])
        assert_refused_because(gate, fault.words)
        end = gate.record("end", lambda row: row["flow"] not in before)
        assert end["why"] != "finished by both ends"
    finally:
        fault.restore(gate.host.world)
    gate.attested()
    assert_served(gate)
    watch.only_the_gateway()


# -- T1: not yet proved ------------------------------------------------------------------------------


@AS_ROOT
@pytest.mark.parametrize(("port", "words"), [("9", "Connection refused"), ("8445", "answer")])
def test_never_up(new_gate: NewGate, world: World, port: str, words: str) -> None:
    """While an endpoint cannot be reached nothing is admitted; with attestation assumed, all is."""
    if port == "8445":
        kernel.must(world.corp, "nft add table inet lab")
        rule = "{ type filter hook input priority 0 ; tcp dport 8445 drop ; }"
        kernel.must(world.corp, f"nft add chain inet lab silent {rule}")
    try:
        if port == "9":
            control = new_gate("attest", gateway=f"{GATEWAY}:{port}")
            control.run("curl", "-sS", "-m", "60", f"http://{NAME}/")
            seen = control.record("verdict", lambda row: row["name"] == NAME)
            assert seen["verdict"] == "tunnel", "a control must be red"
            control.end()
        gate = new_gate(gateway=f"{GATEWAY}:{port}")
        kernel.until("it has tried", lambda: words in gate.tunnel()["words"])
        assert not gate.tunnel()["attested"]
        assert_refused_because(gate, words)
    finally:
        if port == "8445":
            kernel.must(world.corp, "nft delete table inet lab")


# -- T2: proved once, and no longer ------------------------------------------------------------------


def lose_the_probe_alone(world: World, ports: set[int]) -> None:
    """Drop what the peer's proof travels on, and every new connection; a running flow keeps its own."""
    known = ", ".join(map(str, sorted(ports)))
    kernel.must(world.net, "nft add table inet lab")
    chain = "{ type filter hook forward priority 0 ; }"
    kernel.must(world.net, f"nft add chain inet lab probe {chain}")
    kernel.must(world.net, f"nft add rule inet lab probe tcp dport 8443 tcp sport {{ {known} }} drop")
    kernel.must(world.net, "nft add rule inet lab probe tcp dport 8443 tcp flags & (syn|ack) == syn drop")


def ports_in_use(world: World) -> set[int]:
    """The device's ports of connections to the gateway."""
    shown = kernel.run(kernel.Place(world.device), ["ss", "-tnH", "dst", f"{GATEWAY}:8443"]).out
    return {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines()}


@WITH_A_CONTROL
def test_proof_gone_stale_cuts_a_good_flow(new_gate: NewGate, world: World, control: bool) -> None:
    """A flow whose own connection is good is cut all the same once the peer's proof is too old."""
    gate = new_gate("attest") if control else new_gate().attested()
    kernel.until("the probe is there", lambda: ports_in_use(world))
    probes = ports_in_use(world)
    bubble = download(gate)
    lose_the_probe_alone(world, probes)
    try:
        if control:
            assert goes_on(bubble, BOUND_S + 1), "a control must be red"
        else:
            assert "ConnectionResetError" in bubble.says("after")
            assert_refused_because(gate, "answer")
    finally:
        kernel.must(world.net, "nft delete table inet lab")


# -- T3: another peer --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Impostor:
    """A gateway's certificate that must not do, and what is said of it."""

    id: str
    certificate: Callable[[World], Issued]
    words: str


def _issued(authority: Issued, name: str, ago_days: int = 0) -> Issued:
    now = datetime.now(UTC) - timedelta(days=ago_days)
    return certificates.issue_server(authority, [name], now=now, days=30)


IMPOSTORS = (
    Impostor(
        "another authority",
        lambda world: _issued(certificates.make_authority("Lab CA", now=datetime.now(UTC)), SERVER_NAME),
        "does not verify",
    ),
    Impostor(
        "another name",
        lambda world: _issued(world.names.authority, "other.corp.example"),
        "Hostname mismatch",
    ),
    Impostor("another key", lambda world: _issued(world.names.authority, SERVER_NAME), "which is not pinned"),
    Impostor(
        "expired", lambda world: _issued(world.names.authority, SERVER_NAME, 40), "certificate has expired"
    ),
)


@AS_ROOT
@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda impostor: impostor.id)
def test_impostors(new_gate: NewGate, new_gateway: NewGateway, world: World, impostor: Impostor) -> None:
    """An impostor is refused and told of, and hears no request; without the proof it hears them."""
    other = new_gateway(impostor.certificate(world), without=frozenset(["expiry-check"]))
    control = new_gate("attest", "peer", gateway=f"{GATEWAY}:{OTHER_PORT}")
    assert_served(control)
    assert NAME in other.heard(), "a control must be red"
    control.end()
    before = other.heard()
    gate = new_gate(gateway=f"{GATEWAY}:{OTHER_PORT}")
    told = gate.in_state("refused")
    assert impostor.words in told["words"], told
    assert_refused_because(gate, impostor.words)
    assert impostor.words in gate.said() and gate.call("status").code == 1
    assert NAME not in other.heard()[len(before) :]


@AS_ROOT
@pytest.mark.parametrize("layer", ["attest", "peer"])
def test_impostor_meets_two_locks(
    new_gate: NewGate, new_gateway: NewGateway, world: World, layer: str
) -> None:
    """Attestation in the supervisor and verification in the worker each suffice."""
    other = new_gateway(_issued(world.names.authority, SERVER_NAME))
    gate = new_gate(layer, gateway=f"{GATEWAY}:{OTHER_PORT}")
    done = gate.run("curl", "-sS", "-m", "60", f"http://{NAME}/")
    assert "zonegate:" in done.out and NAME not in other.heard()


def test_revoked_device(new_gate: NewGate, new_gateway: NewGateway, world: World) -> None:
    """A revoked device is cut, told why, and let in again when it is taken off the list."""
    other = new_gateway(world.names.server)
    gate = new_gate(gateway=f"{GATEWAY}:{OTHER_PORT}").attested()
    bubble = download(gate)
    other.revoked.write_text(world.names.client.fingerprint + "\n")
    assert "ConnectionResetError" in bubble.says("after")
    kernel.until("status says why", lambda: "is this client's certificate allowed?" in gate.tunnel()["words"])
    assert_refused_because(gate, "is this client's certificate allowed?")
    other.revoked.write_text("")
    gate.attested()
    assert_served(gate)


# -- B11: the supervisor is stopped ------------------------------------------------------------------


@WITH_A_CONTROL
def test_supervisor_stopped(new_gate: NewGate, control: bool) -> None:
    """A stopped supervisor prolongs nothing: the lease runs out in the worker, which cuts and says so."""
    gate = new_gate(*(["lease"] if control else [])).attested()
    asking = gate.bubble(*python("clients", "ask", NAME, "80"))
    asking.says("status 200")
    bubble = download(gate)
    kernel.signal_all([gate.pid], signal.SIGSTOP)
    try:
        if control:
            assert goes_on(bubble, BOUND_S + 1), "a control must be red"
            return
        assert "ConnectionResetError" in bubble.says("after")
        assert "its lease has run out" in asking.says("status 503")
    finally:
        kernel.signal_all([gate.pid], signal.SIGCONT)
    asking.says("status 200")
