"""The throw-away site of the demonstration: keys, certificates and configurations of both ends."""

from __future__ import annotations

import base64
import os
import pwd
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import proxy
from proxy.certificates import issue_client, issue_server, make_authority, write_issued
from proxy.demo.corporate import INTRANET, NAME
from proxy.demo.far_end import OWN_ADDRESS, PORT

GATEWAY_NAME = "gw.corp.example"
_INTRANET_NAMES = 'intranet: [corp.example, "*.corp.example"'
POLICY = Path(proxy.__file__).parent.parent / "policies" / "corporate.policy.yaml"

_SITE = """\
zonegate: 1
policy: {policy}
run: {run}
state: state
zones:
  corporate: {{tunnels: [hq]}}
tunnels:
  hq:
    kind: mtls
    gateway: 127.0.0.1:{port}
    server_name: {name}
    ca: ca.crt
    pins: ["{pin}"]
    certificate: laptop.crt
    key: laptop.key
people:
  "{person}": {{zones: [corporate]}}
"""

_PACKET_SITE = """\
zonegate: 1
policy: {policy}
run: {run}
state: state
zones:
  corporate: {{tunnels: [hq]}}
tunnels:
  hq:
    kind: wireguard
    private_key: laptop.wg
    peer: "{pin}"
    endpoint: 127.0.0.1:{port}
    addresses: [{own}/32]
    dns: [{intranet}]
    probe: icmp {intranet}
people:
  "{person}": {{zones: [corporate]}}
"""

_PEER = """\
[Interface]
PrivateKey = {key}
ListenPort = {port}
[Peer]
PublicKey = {laptop}
AllowedIPs = {own}/32
"""

_GATEWAY = """\
gateway: 1
listen: 127.0.0.1:{port}
certificate: gateway.crt
key: gateway.key
clients: {{ca: ca.crt}}
resolver: hosts
hosts: {{{intranet}: {address}}}
allow:
  - {{names: [corp.example, "*.corp.example"], networks: [{address}/32], ports: [80, 443]}}
log: gateway.log
"""


@dataclass(frozen=True, slots=True)
class DemoSite:
    """Where the two configurations lie, and the pin of the key at the corporate end."""

    gate: Path
    gateway: Path
    pin: str


def make_site(directory: Path, run: Path, port: int) -> DemoSite:
    """Write everything that both ends need into `directory`, which is ours alone."""
    now = datetime.now(UTC)
    authority = make_authority("Acme demonstration", now=now, days=2)
    server = issue_server(authority, [GATEWAY_NAME], now=now, days=1)
    for issued, name in (
        (authority, "ca"),
        (server, "gateway"),
        (issue_client(authority, "laptop", now=now, days=1), "laptop"),
    ):
        write_issued(issued, directory, name)
    gate, gateway = directory / "zonegate.yaml", directory / "gateway.yaml"
    gate.write_text(
        _SITE.format(policy=POLICY, run=run, port=port, name=GATEWAY_NAME, pin=server.pin, person=_person())
    )
    gateway.write_text(_GATEWAY.format(port=port, intranet=NAME, address=INTRANET))
    return DemoSite(gate, gateway, server.pin)


def make_packet_site(directory: Path, run: Path, port: int) -> DemoSite:
    """The same with a WireGuard peer at the corporate end. The policy says which network the intranet has."""
    (key, pin), (laptop_key, laptop) = _wireguard_keys(), _wireguard_keys()
    policy = directory / POLICY.name
    try:
        policy.write_text(POLICY.read_text().replace(_INTRANET_NAMES, f"{_INTRANET_NAMES}, {INTRANET}/32"))
    except OSError:
        policy = POLICY  # the gate says it in its own words
    gate, peer, own_key = (directory / name for name in ("zonegate.yaml", "peer.conf", "laptop.wg"))
    gate.write_text(
        _PACKET_SITE.format(
            policy=policy, run=run, port=port, pin=pin, own=OWN_ADDRESS, intranet=INTRANET, person=_person()
        )
    )
    for path, text in (
        (own_key, laptop_key),
        (peer, _PEER.format(key=key, port=PORT, laptop=laptop, own=OWN_ADDRESS)),
    ):
        path.touch(mode=0o600)
        path.write_text(text)
    return DemoSite(gate, peer, pin)


def _wireguard_keys() -> tuple[str, str]:
    """A private key and its public key, as WireGuard writes them."""
    key = X25519PrivateKey.generate()
    raw = (key.private_bytes_raw(), key.public_key().public_bytes_raw())
    private, public = (base64.b64encode(one).decode() for one in raw)
    return private, public


def _person() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"#{os.getuid()}"
