"""UDP by SOCKS5 through a WireGuard tunnel: programs that are told of it work, what may not be goes nowhere.

They could go around it: the control of this file is one that was told nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, WITHOUT
from lab.gate import Bubble, Gate, Settings, python, remove, started
from lab.packet_peer import NETWORKS, SHARED, Peer, echoing
from lab.wire import Frame, Wire
from lab.world import GATEWAY, INTRANET, INTRANET6, PUBLIC, Host, World, is_of_mtls
from proxy import passwords

NAME = "intranet.corp.example"
WG_PORT, PORT, OTHER_PORT, SOCKS = 51_828, 7100, 7101, 1080
ALICE = ("alice", "correct horse")
RULE = f"""
  - id: lab-datagrams
    match: {{zone: corporate, to: intranet, protocol: udp, port: {PORT}}}
    verdict: tunnel
"""
LISTEN = f"""
  socks: {{kind: socks5, address: "127.0.0.1:{SOCKS}", zone: corporate, auth: {{passwords: people.passwd}}}}
"""
NOT_ADMITTED = "no longer admitted"
DEBIAN_PYTHON = "/usr/bin/python3"
PYSOCKS = """
import socks, sys
sock = socks.socksocket(socks.socket.AF_INET, socks.socket.SOCK_DGRAM)
sock.set_proxy(socks.SOCKS5, "127.0.0.1", int(sys.argv[1]), True, sys.argv[2], sys.argv[3])
sock.settimeout(20)
sock.sendto(b"hello", (sys.argv[4], int(sys.argv[5])))
print(*sock.recvfrom(100))
"""


@pytest.fixture(scope="module")
def peer(world: World) -> Iterator[Peer]:
    """The corporate end, and servers behind it that say back what they hear."""
    with echoing(world, WG_PORT, PORT) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(host: Host, peer: Peer) -> Iterator[Gate]:
    """A daemon with a SOCKS5 listener."""
    settings = Settings(
        without=WITHOUT,
        tunnels=peer.tunnel(device=SHARED),
        networks=NETWORKS,
        secrets=peer.secrets,
        rules=RULE,
        people="  alice: {zones: [corporate]}\n",
        listen=LISTEN,
    )
    made = Gate(host, "associations", settings)
    file = made.directory / "people.passwd"
    file.write_text(passwords.line(ALICE[0], ALICE[1].encode()) + "\n")
    file.chmod(0o600)
    os.chown(file, host.uid, host.uid)
    try:
        yield made.start()
    finally:
        remove(made)


@pytest.fixture
def gate(daemon: Gate) -> Gate:
    """The same, with a proved tunnel and a holder of sockets."""
    daemon.attested()
    daemon.child("datagram_holder")
    kernel.until("it is served", lambda: asks(daemon) == "answered")
    return daemon


@pytest.fixture
def quiet(world: World) -> Iterator[None]:
    """During a test nothing is seen but the tunnel's own datagrams, and clients with their listener on lo."""
    wires = [
        Wire(network, device, GATEWAY, WG_PORT, socket.IPPROTO_UDP)
        for network, device in ((world.net, "n-device"), (world.device, "lo"))
    ]
    try:
        yield
        own = (is_of_mtls, _is_of_client)
        seen = [frame for wire in wires for frame in wire.seen()]
        strange = [str(frame) for frame in seen if not any(is_one(frame) for is_one in own)]
        assert not strange, strange[:10]
    finally:
        for wire in wires:
            wire.close()


def _is_of_client(frame: Frame) -> bool:
    return all(end.partition(":")[0] == "127.0.0.1" for end in (frame.source, frame.target))


def asks(gate: Gate, target: str = NAME) -> str:
    """What becomes of a program of the device, in no bubble, that is told of the listener."""
    command = python("associate", "ask", str(SOCKS), *ALICE, target, str(PORT))
    done = kernel.run(gate.host.place, command, limit_s=60)
    return done.out.strip() or str(done)


def goes_on(gate: Gate, target: str = NAME, port: int = PORT, says: str = "answered") -> Bubble:
    """The same, that goes on until it is ended; what it says comes in lines."""
    command = python("associate", "for-ever", str(SOCKS), *ALICE, target, str(port))
    client = started(gate, gate.host.place, command)
    gate.bubbles.append(client)
    client.says(says)
    return client


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("target", [NAME, INTRANET, INTRANET6])
def test_datagrams_are_carried(gate: Gate, target: str) -> None:
    """By name and by address, small ones and such as must be cut into fragments; and recorded as alice's."""
    assert asks(gate, target) == "answered"
    address = INTRANET6 if ":" in target else INTRANET
    record = gate.record("end", lambda row: row["name" if target == NAME else "address"] == target)
    assert (record["protocol"], record["verdict"], record["tunnel"]) == ("udp", "tunnel", "hq")
    assert (record["bytes_up"], record["bytes_down"], record["address"]) == (10_873, 10_873, address)
    assert (record["user"], record["bubble"]) == ("alice", "socks@127.0.0.1")
    assert (record["because"]["id"], record["enforcement"]) == ("lab-datagrams", "cooperative")


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_pysocks(gate: Gate) -> None:
    """A client of another hand: it declares nothing of itself, and leaves the name to the gate."""
    command = [DEBIAN_PYTHON, "-c", PYSOCKS, str(SOCKS), *ALICE, NAME, str(PORT)]
    done = kernel.run(gate.host.place, command, limit_s=60)
    assert done.out == f"b'hello' (b'{NAME}', {PORT})\n", done


@AS_ROOT
def test_who_is_told_nothing_goes_around(gate: Gate, world: World) -> None:
    """The control: the same datagram, past the listener, is seen on the wire."""
    wire = Wire(world.net, "n-device", GATEWAY, WG_PORT, socket.IPPROTO_UDP)
    try:
        kernel.run(gate.host.place, python("datagrams", "refused", INTRANET, str(PORT)))
        kernel.until("a control is red", lambda: any(f"{INTRANET}:{PORT}" in str(f) for f in wire.seen()))
    finally:
        wire.close()


@AS_ROOT
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("target", "port"),
    [(NAME, OTHER_PORT), (PUBLIC, PORT), ("127.0.0.1", PORT), ("169.254.169.254", 80), (GATEWAY, WG_PORT)],
)
def test_what_no_rule_grants_goes_nowhere(gate: Gate, target: str, port: int) -> None:
    client = goes_on(gate, target, port, "silence")
    record = gate.record(
        "verdict", lambda row: row["port"] == port and target in (row["name"], row["address"])
    )
    assert (record["verdict"], record["protocol"], record["user"]) == ("block", "udp", "alice")
    client.end()


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_they_are_listed_killed_and_locked_like_others(gate: Gate) -> None:
    client = goes_on(gate)
    rows = kernel.until("the flow is listed", lambda: json.loads(gate.call("flows", "--json").out))
    assert [(row["user"], row["bubble"], row["protocol"]) for row in rows] == [
        ("alice", "socks@127.0.0.1", "udp")
    ]
    assert gate.call("kill", "--user", "alice").code == 0
    gate.record("end", lambda row: "killed by root" in row["why"] and row["port"] == PORT)
    client.says("silence")
    client.says("answered")
    assert gate.call("lock", "--reason", "a drill").code == 0
    try:
        gate.record("end", lambda row: "a drill" in row["why"] and row["port"] == PORT)
        client.says("silence")
        at = len(client.heard)
        client.says("silence")
        assert "answered" not in client.heard[at:]
        assert asks(gate) == "refused 2"
    finally:
        gate.call("unlock")
    client.says("answered")
    client.end()


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_a_policy_without_datagrams_cuts_and_refuses(gate: Gate) -> None:
    client, file = goes_on(gate), gate.directory / "policy.yaml"
    text = file.read_text()
    file.write_text(text.replace(RULE.lstrip("\n"), ""))
    try:
        assert gate.call("reload").code == 0
        gate.record("end", lambda row: row["port"] == PORT and "cut by the gate" in row["why"])
        client.says("silence")
        assert asks(gate) == "refused 7"
    finally:
        file.write_text(text)
        assert gate.call("reload").code == 0
    client.says("answered")
    client.end()


@AS_ROOT
def test_lost_and_back(gate: Gate, peer: Peer) -> None:
    """Without the tunnel's peer exchanges are cut, and nobody associates; when it is back they go on."""
    client = goes_on(gate)
    peer.configure(knows=False)
    try:
        client.says("silence")
        gate.record(
            "end", lambda row: row["port"] == PORT and ("lost" in row["why"] or NOT_ADMITTED in row["why"])
        )
        kernel.until("it is refused", lambda: asks(gate) == "refused 3")
    finally:
        peer.configure()
    gate.attested()
    client.says("answered")
    client.end()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("process", ["datagram_holder", "worker"])
def test_a_process_is_killed(gate: Gate, process: str) -> None:
    """Associations end, and clients hear so; another one takes its place."""
    client = goes_on(gate)
    pids = _workers(gate) if process == "worker" else [gate.child(process)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    client.says("ended")
    client.says("answered")
    client.end()


def _workers(gate: Gate) -> list[int]:
    words = {pid: kernel.command_of(pid) for pid in kernel.descendants(gate.pid)}
    return [pid for pid, said in words.items() if "from proxy.worker import" in said and "bwrap" not in said]
