"""gateway.yaml: what is read, and where each mistake is pointed at."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from proxy.gateway.config import Limits, read_config
from proxy.policy.source import Problems

GOOD = """\
gateway: 1
listen: ["0.0.0.0:8443", "[::]:8443"]
certificate: gateway.crt
key: keys/gateway.key
clients: {ca: clients.crt, revoked: revoked}
allow:
  - {names: [Intranet.example., "*.corp.example"], ports: [443, 8000-8099]}
  - {names: ["*"], networks: [10.20.0.0/16, "2001:db8::1"], ports: 22, clients: [admin]}
resolver: hosts
hosts: {intranet.example: [10.0.0.5, "2001:db8::5"]}
log: /var/log/zonegate-gateway.log
limits: {clients: 10, per_certificate: 5, handshakes: 4, per_address: 3, idle: 10m}
"""


def test_everything_that_may_be_written() -> None:
    config = read_config(GOOD.encode(), Path("/etc/zonegate/gateway.yaml"))
    assert [(str(at.address), at.port) for at in config.listen] == [("0.0.0.0", 8443), ("::", 8443)]
    assert config.key.path == Path("/etc/zonegate/keys/gateway.key")
    assert str(config.key.at) == "/etc/zonegate/gateway.yaml:4:6"
    assert config.log.path == Path("/var/log/zonegate-gateway.log")
    assert config.revoked is not None
    first, second = config.allowances
    assert first.names == ("intranet.example", "*.corp.example")
    assert first.ports == ((443, 443), (8000, 8099))
    assert second.networks == (ip_network("10.20.0.0/16"), ip_network("2001:db8::1/128"))
    assert second.clients == ("admin",)
    assert config.hosts == {"intranet.example": (ip_address("10.0.0.5"), ip_address("2001:db8::5"))}
    assert not config.uses_system_resolver
    assert config.limits == Limits(10, 5, 4, 3, 600, config.limits.clients_at)
    assert str(config.limits.clients_at).endswith(":12:19")


def test_what_may_be_left_out() -> None:
    kept = [line for line in GOOD.splitlines() if not line.startswith(("resolver", "hosts", "limits"))]
    config = read_config("\n".join(kept).replace(", revoked: revoked", "").encode(), Path("gateway.yaml"))
    assert config.uses_system_resolver
    assert config.revoked is None
    assert config.limits == Limits()


@dataclass(frozen=True)
class Mistake:
    id: str
    right: str
    wrong: str
    said: str


MISTAKES = (
    Mistake("another version", "gateway: 1", "gateway: 2", '1:10: the version of gateway.yaml cannot be "2"'),
    Mistake(
        "a misspelt key", "resolver:", "resolvre:", '9:1: unknown key "resolvre" in gateway.yaml; did you'
    ),
    Mistake("no certificate", "certificate: gateway.crt\n", "", 'gateway.yaml has no "certificate"; add it'),
    Mistake("no CA", "ca: clients.crt, ", "", '5:10: clients has no "ca"; add it'),
    Mistake(
        "a name to listen on", "0.0.0.0:8443", "localhost:8443", '2:10: listen "localhost:8443" is not an'
    ),
    Mistake("no port to listen on", "0.0.0.0:8443", "0.0.0.0", "2:10: listen"),
    Mistake("port 65536", "0.0.0.0:8443", "0.0.0.0:65536", "2:10: listen"),
    Mistake("a short address to listen on", "0.0.0.0:8443", "127.1:8443", "2:10: listen"),
    Mistake("nowhere to listen", '["0.0.0.0:8443", "[::]:8443"]', "[]", "2:9: listen is an empty list"),
    Mistake(
        "an allowance of nothing", 'names: [Intranet.example., "*.corp.example"], ', "", "7:5: an entry of"
    ),
    Mistake("no ports", ", ports: 22", "", '8:5: an entry of allow has no "ports"; add it'),
    Mistake("port 0", "443,", "0,", '7:60: ports "0" is not a port'),
    Mistake("a range backwards", "8000-8099", "8099-8000", '"8099-8000" is not a port'),
    Mistake("an inner wildcard", "*.corp.example", "a.*.example", "is not a domain name"),
    Mistake("an address as a name", "Intranet.example.", "10.0.0.1", "write it as a network"),
    Mistake("host bits", "10.20.0.0/16", "10.20.0.1/16", "write 10.20.0.0/16 or 10.20.0.1"),
    Mistake("a mask too long", "10.20.0.0/16", "10.20.0.0/33", "is not a network"),
    Mistake("an octal network", "10.20.0.0/16", "010.20.0.0/16", "is not an address"),
    Mistake("a broken fingerprint", "[admin]", '["sha256:abc"]', "is not a fingerprint"),
    Mistake("a name for a name", "[10.0.0.5, ", "[other.example, ", "is a name; write its addresses"),
    Mistake("a limit of nothing", "clients: 10,", "clients: 0,", "is not a whole number from 1"),
    Mistake("no time at all", "idle: 10m", "idle: 10ms", "idle is shorter than a second"),
    Mistake("a resolver's address", "resolver: hosts", "resolver: 10.0.0.53", "write system or hosts"),
    Mistake("a key twice", "log: /", "key: other.key\nlog: /", '11:1: duplicate key "key", first on line 4'),
    Mistake("no YAML", "gateway: 1", "gateway: [", "this is not YAML"),
)


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.id)
def test_mistake(case: Mistake) -> None:
    assert case.right in GOOD
    with pytest.raises(Problems) as raised:
        read_config(GOOD.replace(case.right, case.wrong, 1).encode(), Path("gateway.yaml"))
    assert case.said in str(raised.value)
    assert all(str(problem).startswith("gateway.yaml:") for problem in raised.value.problems)


def test_all_mistakes_are_told_at_once() -> None:
    text = GOOD.replace("gateway: 1", "gateway: 3").replace("10m", "soon").replace("10.20.0.0/16", "x")
    with pytest.raises(Problems) as raised:
        read_config(text.encode(), Path("gateway.yaml"))
    assert len(raised.value.problems) == 3
