"""Certificates that are renewed while everything goes on: the device's, and the gateway's."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime

from lab import kernel
from lab.conftest import AS_ROOT, OTHER_PORT, NewGate, NewGateway
from lab.gate import Gate
from lab.test_tunnel import assert_served, download, goes_on
from lab.world import GATEWAY, SERVER_NAME, World
from proxy import certificates
from proxy.certificates import Issued, issue_client, issue_server, make_authority

CURL = ("curl", "-sS", "-m", "60", "http://intranet.corp.example/")


def put(gate: Gate, issued: Issued) -> None:
    """A new key and certificate in the place of the device's, one after the other, each whole at once."""
    for name, content in (("device1.key", issued.key_pem), ("device1.crt", issued.pem.encode())):
        fresh = gate.directory / f".{name}"
        certificates.write_new(fresh, content, 0o600)
        kernel.must(gate.host.world.device, f"chown {gate.host.uid}:{gate.host.uid} {fresh}")
        fresh.replace(gate.directory / name)


@AS_ROOT
def test_the_devices(new_gate: NewGate, new_gateway: NewGateway, world: World) -> None:
    """A rogue one changes nothing; the right one is proved, and used for what comes; a download goes on."""
    other = new_gateway(world.names.server)
    gate = new_gate(gateway=f"{GATEWAY}:{OTHER_PORT}").attested()
    bubble = download(gate)
    now = datetime.now(UTC)
    put(gate, issue_client(make_authority("Lab CA", now=now), "device1", now=now))
    kernel.until("the rogue is told of", lambda: "keeps the certificate that it has: " in gate.said())
    assert_served(gate)
    new = issue_client(world.names.authority, "device1", now=now, days=20)
    put(gate, new)
    kernel.until("it is in use", lambda: "has its new certificate in use" in gate.said())
    assert_served(gate)
    assert any('"what":"connect"' in line and new.fingerprint in line for line in other.heard().splitlines())
    status = gate.status()
    assert any('the certificate "device1" of tunnel hq expires in' in line for line in status["warnings"])
    assert status["tunnels"]["hq"]["certificate"]["expires_soon"]
    assert "expires in" in gate.call("status").out
    assert goes_on(bubble, 0.5)
    said = [line for line in gate.said().splitlines() if "tunnel hq (" in line and "attested" in line]
    assert len(said) == 1, "it was never lost"


@AS_ROOT
def test_the_gateways(new_gate: NewGate, new_gateway: NewGateway, world: World) -> None:
    """The same key keeps the pin; the next key is good where it was listed beforehand, any other is not."""
    now, authority = datetime.now(UTC), world.names.authority
    first, following, foreign = (issue_server(authority, [SERVER_NAME], now=now) for _ in range(3))
    other = new_gateway(first)
    gate = new_gate(gateway=f"{GATEWAY}:{OTHER_PORT}", pins=(first.pin, following.pin)).attested()
    bubble = download(gate)
    renewed = certificates.renew(authority, first.certificate, first.key.public_key(), now=now)
    (other.directory / "server.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    kernel.until("half of it is kept out", lambda: "certificate kept" in other.heard())
    assert_served(gate)
    for one in (Issued(renewed, first.key), following, foreign):
        other.show(one)
        kernel.until("a new connection is shown it", lambda der=one.der: shown(world) == der)  # type: ignore[misc]
        if one.pin != foreign.pin:
            assert_served(gate)
    # Connections that were kept ready since before are still shown what was there when they were made.
    kernel.until("it is refused", lambda: "which is not the pinned one" in gate.run(*CURL).out)
    assert goes_on(bubble, 0.3)


def shown(world: World) -> bytes:
    """The certificate that the other gateway shows to a new connection."""
    context = ssl.create_default_context(cadata=world.names.authority.pem)
    with kernel.inside(world.device), socket.create_connection((GATEWAY, OTHER_PORT), 10) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=SERVER_NAME) as channel:
                return channel.getpeercert(binary_form=True) or b""
        except OSError:
            return b""
