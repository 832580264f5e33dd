"""The throw-away site of the demonstration: keys, certificates and configurations of both ends."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import proxy
from proxy.certificates import issue_client, issue_server, make_authority, write_issued
from proxy.demo.corporate import INTRANET, NAME

GATEWAY_NAME = "gw.corp.example"
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
    """Where the two configurations lie, and the pin of the gateway's key."""

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


def _person() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"#{os.getuid()}"
