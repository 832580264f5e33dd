"""The holder of a tunnel with its supervisor, and with the workers that it gives sockets to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


def written(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What is asked of the peer's side every second: `kind` is icmp (port 0), dns or tcp."""

    kind: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class PacketSetup:
    """What a tunnel that carries packets has beside: its own addresses (with prefix length), the networks
    that its peer may have, its resolvers, and what is asked of its peer."""

    addresses: tuple[str, ...]
    allowed: tuple[str, ...]
    resolvers: tuple[str, ...]
    mtu: int
    keepalive_s: int
    probe: Probe


@dataclass(frozen=True, slots=True)
class TunnelSetup:
    """One tunnel, as holder and worker need it. Host names and pins; no key.

    `server_name`, `judges_addresses` and `must_admit` (host:port, or nothing) are of an mtls tunnel,
    `packets` of one that carries packets.
    """

    name: str
    host: str
    port: int
    server_name: str
    pins: tuple[str, ...]
    judges_addresses: bool
    kind: str = "mtls"
    packets: PacketSetup | None = None
    must_admit: str = ""

    @property
    def endpoint(self) -> str:
        """Where its peer is, as the site file has it."""
        return written(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Hold:
    """To a new holder, once. Descriptors: CA, client certificate, key."""

    descriptors: ClassVar[tuple[int, int]] = (3, 3)

    tunnel: TunnelSetup
    probe_every_ms: int
    probe_limit_ms: int
    drop_to_uid: int


@dataclass(frozen=True, slots=True)
class Serve:
    """A worker's end of a link to this holder; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)


TO_HOLDER = (Hold, Serve)
type ToHolder = Hold | Serve


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a holder saw of its peer. It judges nothing.

    `certificate` is the peer's, DER in base64, empty before a handshake; `answered_ns` the moment at which
    the last answered probe was *sent*, 0 when none was on this connection; `broken` the peer refused,
    reset or could not be reached; `wrong_peer` its certificate did not verify, or it grants
    whatever it is asked for.
    """

    certificate: str
    answered_ns: int
    broken: bool
    wrong_peer: bool
    words: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Connected sockets to the pinned gateway, please."""

    count: int


@dataclass(frozen=True, slots=True)
class Dialled:
    """As many descriptors as could be connected; the reason when there are fewer than asked for."""

    descriptors: ClassVar[tuple[int, int]] = (0, 64)

    trouble: str
