"""Inspection behind a tunnel that carries packets: names are resolved through it, and addresses judged."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from quic_client import first_flight

from lab.conftest import AS_ROOT, NewGate
from lab.gate import LAB_RULES
from lab.packet_peer import GATEWAY_INSIDE, Peer, Wires, packets, public
from lab.test_inspection import GUARDS, NAME, curl
from lab.world import HOSTS, INTRANET, INTRANET6, PUBLIC

NAMES: dict[str, Sequence[object]] = {
    "near.corp.example": ["169.254.169.254"],
    "gateway.corp.example": [GATEWAY_INSIDE],
    "both.corp.example": [PUBLIC, GATEWAY_INSIDE, INTRANET],
}


RULES = f"{LAB_RULES}  - {{id: quic, match: {{to: intranet, protocol: quic}}, verdict: tunnel}}\n"
SEND_QUIC = """
import errno, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(60)
sock.connect((socket.gethostbyname(sys.argv[1]), 443))
sock.send(bytes.fromhex(sys.argv[2]))
try:
    print(sock.recv(2000))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def peer(peer: Peer) -> Peer:
    """The corporate end; some names lead to places that are not behind it, or not theirs."""
    peer.tell({**{name: list(addresses) for name, addresses in HOSTS.items()}, **NAMES})
    return peer


@AS_ROOT
@pytest.mark.parametrize("control", [True, False], ids=["control", "row"])
def test_requests_and_rebinding(new_gate: NewGate, peer: Peer, wires: Wires, control: bool) -> None:
    """Each request is judged; the address on record is the one that was judged and no other is spoken to."""
    without = ["request-verdicts", "rebinding"] if control else []
    gate = new_gate(*without, inspects=True, guards=GUARDS, rules=RULES, **packets(peer)).attested()
    refused = curl(gate, "-X", "DELETE", f"https://{NAME}/page")
    asked = "; ".join(f"curl -sS -m {3 if control else 60} http://{name}/" for name in NAMES)
    said = gate.run("sh", "-c", asked).out
    rows = [row for row in gate.records() if row["record"] == "verdict" and row["name"] in NAMES]
    verdicts = {row["name"]: row["verdict"] for row in rows}
    if control:
        assert refused.startswith("HTTP/2 200"), "must be red"
        assert verdicts["gateway.corp.example"] == verdicts["near.corp.example"] == "tunnel", "must be red"
        return
    assert refused.startswith("HTTP/2 403") and "nothing is deleted" in refused, refused + gate.said()
    assert verdicts["near.corp.example"] == verdicts["gateway.corp.example"] == "block", rows
    assert {row["address"] for row in rows if row["verdict"] == "tunnel"} == {INTRANET}, rows
    assert said.endswith("the intranet\n") and said.count("the intranet\n") == 1, said

    begun = gate.run("/usr/bin/python3", "-c", SEND_QUIC, NAME, first_flight(NAME)[0].hex())
    assert begun.out == "EHOSTUNREACH\n", begun  # its program takes TCP instead
    row = gate.record("verdict", lambda row: row["protocol"] == "quic")
    assert (row["verdict"], row["because"]["id"]) == ("block", "needs-inspection"), row

    for more in ([f"https://{NAME}/"], ["--http1.1", f"https://{NAME}/"], [f"http://{NAME}/"]):
        good = curl(gate, *more)
        assert re.match(r"HTTP/(2|1\.1) 200", good) and good.endswith("the intranet\n"), good + gate.said()
    row = gate.record("end", lambda row: row["request"] == "GET /" and row["name"] == NAME)
    assert (row["address"], row["tunnel"], row["peer"]) == (INTRANET, "hq", public(peer.key))
    assert curl(gate, "https://six.corp.example/").endswith("the intranet\n")
    assert gate.record("end", lambda row: row["name"] == "six.corp.example")["address"] == INTRANET6
    upload = curl(gate, "-T", "-", f"https://{NAME}/small", "-X", "POST", stdin=b"x" * (2 << 20))
    assert "403" in upload.partition("\n")[0] and "small-uploads" in upload, upload
    wires.quiet()
