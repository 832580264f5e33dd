"""The words of the gate: what a flow is, what may be known of it, and what is answered.

Ground floor: this module knows no policy, no socket and no clock. Everything here is a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address

type IPAddress = IPv4Address | IPv6Address


class Verdict(IntEnum):
    """What may become of a flow, strictest first: the zero value blocks."""

    BLOCK = 0
    TUNNEL = 1
    DIRECT = 2


class Stage(IntEnum):
    """When a fact of a flow becomes known."""

    ACCEPT = 0
    FIRST_BYTES = 1
    DIAL = 2
    REQUEST = 3


class TunnelState(StrEnum):
    """What is proved of a tunnel now. Only ATTESTED is ever leased to a worker."""

    DOWN = "down"
    CONNECTING = "connecting"
    REFUSED = "refused"
    STALE = "stale"
    ATTESTED = "attested"


class Protocol(StrEnum):
    """A lattice: tcp > tls > https, tcp > http, tcp > ssh; udp > quic, udp > dns; icmp apart."""

    TCP = "tcp"
    TLS = "tls"
    HTTPS = "https"
    HTTP = "http"
    SSH = "ssh"
    UDP = "udp"
    QUIC = "quic"
    DNS = "dns"
    ICMP = "icmp"

    @property
    def parent(self) -> Protocol | None:
        """The next wider protocol, None at the top."""
        return _PARENT.get(self)

    def is_a(self, wider: Protocol) -> bool:
        """Whether every flow of this protocol is also one of `wider`."""
        at: Protocol | None = self
        while at is not None:
            if at is wider:
                return True
            at = at.parent
        return False


_PARENT: Mapping[Protocol, Protocol] = {
    Protocol.TLS: Protocol.TCP,
    Protocol.HTTPS: Protocol.TLS,
    Protocol.HTTP: Protocol.TCP,
    Protocol.SSH: Protocol.TCP,
    Protocol.QUIC: Protocol.UDP,
    Protocol.DNS: Protocol.UDP,
}


class Missing(Enum):
    """Why a fact has no value. UNKNOWN leaves a residual; the other two fail closed."""

    UNKNOWN = "not known yet"
    NEVER = "a flow of this kind never has it"
    FAILED = "inspection failed to give it"

    def __repr__(self) -> str:
        return self.name


UNKNOWN, NEVER, FAILED = Missing.UNKNOWN, Missing.NEVER, Missing.FAILED

type Fact[T] = T | Missing


class Transfer(StrEnum):
    """The direction of one transfer, as the client sees it."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One attempt to reach a destination, with what is known of it so far.

    `name` is canonical (lower case A-labels, no trailing dot) and NEVER for a literal address.
    `address` is the address that will be dialled: known at accept for a literal, at dial for a name,
    and never a synthetic one. `sizes` are bytes of one transfer. A later stage makes a new Flow with
    `dataclasses.replace`.
    """

    zone: str
    user: str
    port: int
    at: datetime
    groups: frozenset[str] = frozenset()
    device: Fact[str] = NEVER
    postures: frozenset[str] = frozenset()
    name: Fact[str] = NEVER
    address: Fact[IPAddress] = UNKNOWN
    protocol: Fact[Protocol] = UNKNOWN
    transport: Protocol = Protocol.TCP
    method: Fact[str] = UNKNOWN
    path: Fact[str] = UNKNOWN
    content_type: Fact[str] = UNKNOWN
    transfer: Fact[Transfer] = UNKNOWN
    size: Fact[int] = UNKNOWN

    @property
    def destination(self) -> str:
        """`host:port` as the user would write it."""
        host = self.name if isinstance(self.name, str) else self.address
        text = (
            f"[{host}]" if isinstance(host, IPv6Address) else "?" if isinstance(host, Missing) else str(host)
        )
        return f"{text}:{self.port}"


@dataclass(frozen=True, slots=True)
class TunnelFact:
    """One candidate tunnel as the policy sees it: its name, and what is proved of it now."""

    name: str
    state: TunnelState


class Origin(StrEnum):
    """What kind of thing decided."""

    DEFAULT = "default"
    GATE = "gate"
    GUARD = "guard"
    RULE = "rule"


@dataclass(frozen=True, slots=True)
class Because:
    """Why a verdict is what it is: the rule, guard or part of the gate that decided.

    `where` is `file:line:col` for rules and guards; `text` is what the owner of the policy wrote,
    or the gate's own sentence.
    """

    origin: Origin
    id: str
    text: str = ""
    where: str = ""

    def __str__(self) -> str:
        head = str(self.origin) if self.id in ("", self.origin) else f"{self.origin} {self.id}"
        return f"{head} ({self.text})" if self.text else head


@dataclass(frozen=True, slots=True)
class Refusal:
    """A flow that goes nowhere, why, what the user can do about it, and whom to ask (one line each)."""

    because: Because
    cure: str = ""
    tunnel: str = ""
    ask: str = ""

    def __str__(self) -> str:
        return f"blocked by {self.because}" + (f"; {self.cure}" if self.cure else "")


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound on one direction of an opaque flow: at the byte after `limit_bytes` it is cut."""

    transfer: Transfer
    limit_bytes: int
    because: Because


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a policy says of a flow for one candidate tunnel.

    `verdict` None is a residual: `waits_for` names the attributes still unknown, `in_play` the rules
    and guards they could still decide, and `stage` the first stage that knows one of them.
    `reports` are what rules in report mode would have said. `trace` is a line for each rule or guard
    considered, in order, for people; it is made only when asked for.
    """

    verdict: Verdict | None
    because: Because
    waits_for: frozenset[str] = frozenset()
    stage: Stage = Stage.ACCEPT
    in_play: tuple[Because, ...] = ()
    budgets: tuple[Budget, ...] = ()
    reports: tuple[str, ...] = ()
    trace: tuple[str, ...] = field(default=(), compare=False)
