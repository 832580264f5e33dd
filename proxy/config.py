"""The site file: which zones there are, through which tunnels they leave, and who may enter them.

Reads values and refuses what is wrong with all problems at once; opens no file but the one it is given
(keys and policy are read by the supervisor). Knows no process and no flow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from proxy.addresses import parse_host
from proxy.flow import IPAddress
from proxy.policy.reading import Reading, did_you_mean
from proxy.policy.source import Map, Node, Scalar
from proxy.wireguard_config import WireguardTunnel, read_wireguard

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PIN = re.compile(r"sha256:[A-Za-z0-9+/]{43}=")
_PERSON = re.compile(r"[@]?[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?|#[0-9]{1,10}|\*")
_GATEWAY = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]+)):([0-9]{1,5})")
MAX_FLOWS, MAX_NAMES = 16_384, 4_096
_LOOPBACK = IPv4Address("127.0.0.1")
ANONYMOUS = "anonymous"  # the login of whoever is not asked for one
MAX_TUNNELS = 15  # their descriptors travel in one message

type AnyTunnel = Tunnel | WireguardTunnel
type _ReadNamed[T] = Callable[[str, Node], T | None]

_TOP = (
    "zonegate", "policy", "run", "state", "zones", "tunnels", "people", "listen", "limits", "inspection",
    "trust",
)  # fmt: skip
_LISTENER = ("kind", "address", "zone", "auth", "certificate", "key")
_TUNNEL = (
    "kind", "gateway", "server_name", "ca", "pins", "certificate", "key", "judges_addresses", "must_admit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One mtls tunnel. Paths are as the file says them, relative to the file.

    `must_admit` is where the gateway has to let this client, as host:port; empty where that is not said.
    """

    name: str
    host: str | IPAddress
    port: int
    server_name: str
    ca: Path
    pins: tuple[str, ...]
    certificate: Path
    key: Path
    judges_addresses: bool
    must_admit: str = ""


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone: its tunnels in the order in which they are tried, and whether its flows are recorded.

    `counted_only` is for a personal zone: its flows are counted and not logged. Where the gate `inspects`,
    flows whose verdict depends on what is in them are looked into, and its programs trust the inspection CA;
    `http2` lets them speak HTTP/2 there.
    """

    name: str
    tunnels: tuple[str, ...]
    counted_only: bool
    inspects: bool = False
    http2: bool = False


@dataclass(frozen=True, slots=True)
class Person:
    """A row of the table of who may enter what: `who` is a login name, `#uid`, `@group` or `*`."""

    who: str
    zones: tuple[str, ...]
    groups: tuple[str, ...]


class ListenerKind(StrEnum):
    """What an explicit listener speaks."""

    HTTP = "http"
    SOCKS5 = "socks5"


@dataclass(frozen=True, slots=True)
class Listener:
    """An address on which programs that are told of it are served, and how they log in: by a file of
    `passwords`, by certificates of the CA in `clients` (under TLS, with `certificate` and `key` of our own),
    or, where both are None, not at all."""

    name: str
    kind: ListenerKind
    address: IPAddress
    port: int
    zone: str
    passwords: Path | None
    clients: Path | None
    certificate: Path | None
    key: Path | None

    @property
    def auth(self) -> str:
        """How its clients log in: `passwords`, `certificates` or `none`."""
        return "passwords" if self.passwords else "certificates" if self.clients else "none"

    @property
    def shown(self) -> str:
        """`address:port`."""
        return _shown(self.address, self.port)


def groups_in(people: Iterable[Person], zone: str, names: Container[str]) -> tuple[str, ...] | None:
    """The groups of whoever has these names, from every row that fits; None where no row lets them in."""
    rows = [person for person in people if person.who in names]
    if not any(zone in person.zones for person in rows):
        return None
    return tuple(sorted({group for person in rows for group in person.groups}))


@dataclass(frozen=True, slots=True)
class Site:
    """A site file that was read. `run` and `state` are None where the file leaves them to the default."""

    file: Path
    policy: Path
    run: Path | None
    state: Path | None
    zones: Mapping[str, Zone]
    tunnels: Mapping[str, AnyTunnel]
    people: tuple[Person, ...]
    listeners: Mapping[str, Listener]
    max_flows: int
    max_names: int
    inspection: Path | None = None  # the directory of the inspection CA
    trust: Path | None = None  # the roots by which inspected destinations are verified

    def may_enter(self, zone: str, uid: int, login: str, groups: Sequence[str]) -> tuple[str, ...] | None:
        """The policy's groups of a user, from every row that fits; None where none lets that user in."""
        names = {f"#{uid}", "*", *(f"@{group}" for group in groups)}
        if login[:1] not in ("#", "@", "*"):  # a directory service may know the strangest names
            names.add(login)
        return groups_in(self.people, zone, names)


def read_site(text: bytes, file: Path) -> Site:
    """The site of a file's text. Raises Problems with everything that is wrong with it."""
    reading = Reading(text, str(file))
    site = _Reader(reading, file).site()
    reading.finish()
    assert site is not None
    return site


class _Reader:
    """Reads one site file; what it cannot read it reports and leaves out."""

    def __init__(self, reading: Reading, file: Path) -> None:
        self._reading, self._file = reading, file

    def site(self) -> Site | None:
        reading = self._reading
        top = reading.mapping(reading.root, "the site file", _TOP, ("zonegate", "policy", "zones", "tunnels"))
        if "zonegate" in top:
            reading.choice(top["zonegate"], "the version of the site file", ("1",))
        tunnels: dict[str, AnyTunnel] = self._named(top.get("tunnels"), "tunnel", self._tunnel)
        known = self._names(top.get("tunnels"))
        zones = self._named(top.get("zones"), "zone", lambda name, node: self._zone(name, node, known))
        known_zones = self._names(top.get("zones"))
        people = [
            self._person(key.text, node, known_zones)
            for key, node in (reading.entries(top["people"], "people") if "people" in top else ())
            if self._is_person(key)
        ]
        listeners = self._named(
            top.get("listen"), "listener", lambda name, node: self._listener(name, node, known_zones)
        )
        self._apart(listeners, top.get("listen"))
        limits = reading.mapping(top["limits"], "limits", ("flows", "names")) if "limits" in top else {}
        policy = self._path(top.get("policy"), "policy")
        inspection = self._path(top.get("inspection"), "inspection")
        if inspecting := [zone.name for zone in zones.values() if zone.inspects and "inspection" not in top]:
            cure = "make one: zonegate ca create, and name its directory under inspection"
            reading.problem(reading.root, f'zone "{inspecting[0]}" inspects and there is no CA; {cure}')
        if policy is None:
            return None
        return Site(
            self._file,
            policy,
            self._path(top.get("run"), "run"),
            self._path(top.get("state"), "state"),
            zones,
            tunnels,
            tuple(person for person in people if person),
            listeners,
            self._limit(limits.get("flows"), "flows", MAX_FLOWS),
            self._limit(limits.get("names"), "names", MAX_NAMES),
            inspection,
            self._path(top.get("trust"), "trust"),
        )

    def _named[T](self, node: Node | None, what: str, read: _ReadNamed[T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for key, value in self._reading.entries(node, f"{what}s") if node is not None else ():
            if not _NAME.fullmatch(key.text):
                self._reading.problem(
                    key, f'"{key.text}" is no name of a {what}; use a-z, 0-9 and -, at most 32'
                )
            elif (one := read(key.text, value)) is not None:
                found[key.text] = one
        return found

    @staticmethod
    def _names(node: Node | None) -> list[str]:
        """Every name of a map; one whose value is wrong has been told of, and is not unknown as well."""
        return [key.text for key, _ in node.entries] if isinstance(node, Map) else []

    def _tunnel(self, name: str, node: Node) -> AnyTunnel | None:
        reading, what = self._reading, f'tunnel "{name}"'
        if _kind(node) == "wireguard":
            return read_wireguard(reading, name, node, self._path)
        keys = reading.mapping(node, what, _TUNNEL, ("kind", "gateway", "ca", "pins", "certificate", "key"))
        if "kind" in keys:
            reading.choice(keys["kind"], f"kind of {what}", ("mtls", "wireguard"))
        gateway = (
            reading.parsed(keys["gateway"], f"gateway of {what}", _gateway) if "gateway" in keys else None
        )
        paths = [self._path(keys.get(key), f"{key} of {what}") for key in ("ca", "certificate", "key")]
        pins = self._pins(keys.get("pins"), what)
        server_name = (
            reading.parsed(keys["server_name"], f"server_name of {what}", parse_host)
            if "server_name" in keys
            else None
        )
        trusted = "judges_addresses" in keys and reading.boolean(keys["judges_addresses"], "judges_addresses")
        admits = (
            reading.parsed(keys["must_admit"], f"must_admit of {what}", _gateway)
            if "must_admit" in keys
            else None
        )
        ca, certificate, key = paths
        if gateway is None or ca is None or certificate is None or key is None:
            return None
        host, port = gateway
        return Tunnel(
            name, host, port, str(server_name or host), ca, pins, certificate, key, trusted or False,
            _shown(*admits) if admits else "",
        )  # fmt: skip

    def _pins(self, node: Node | None, what: str) -> tuple[str, ...]:
        words = self._reading.words(node, f"pins of {what}") if node is not None else ()
        for word in words:
            if not _PIN.fullmatch(word.text):
                self._reading.problem(
                    word, f'"{word.text}" is no pin; write sha256: and the base64 of the SPKI\'s SHA-256'
                )
        return tuple(word.text for word in words)

    def _zone(self, name: str, node: Node, tunnels: Collection[str]) -> Zone | None:
        reading, what = self._reading, f'zone "{name}"'
        keys = reading.mapping(node, what, ("tunnels", "audit", "inspect", "http2"), ("tunnels",))
        listed = self._listed(keys.get("tunnels"), what, "tunnel", tunnels)
        if len(listed) > MAX_TUNNELS:
            reading.problem(node, f"{what} has {len(listed)} tunnels; write at most {MAX_TUNNELS}")
        audit = (
            reading.choice(keys["audit"], f"audit of {what}", ("flows", "counts")) if "audit" in keys else ""
        )
        inspects = reading.boolean(keys["inspect"], f"inspect of {what}") if "inspect" in keys else False
        http2 = reading.boolean(keys["http2"], f"http2 of {what}") if "http2" in keys else False
        return Zone(name, listed, audit == "counts", inspects or False, http2 or False)

    def _listener(self, name: str, node: Node, zones: Collection[str]) -> Listener | None:
        reading, what = self._reading, f'listener "{name}"'
        keys = reading.mapping(node, what, _LISTENER, ("kind", "zone", "auth"))
        kind = reading.choice(keys["kind"], f"kind of {what}", list(ListenerKind)) if "kind" in keys else None
        zone = reading.choice(keys["zone"], f"zone of {what}", zones) if "zone" in keys else None
        address: tuple[IPAddress, int] | None = (_LOOPBACK, 3128 if kind == ListenerKind.HTTP else 1080)
        if "address" in keys:
            address = reading.parsed(keys["address"], f"address of {what}", _address)
        auth = self._auth(keys["auth"], what) if "auth" in keys else None
        certificate, key = (self._path(keys.get(key), f"{key} of {what}") for key in ("certificate", "key"))
        if kind is None or zone is None or address is None or auth is None:
            return None
        passwords, clients = auth
        if not (passwords or clients or address[0].is_loopback):
            reading.problem(node, f"{what} asks nobody who it is; give it auth, or an address of loopback")
        if clients and kind != ListenerKind.HTTP:
            reading.problem(node, f"{what} has certificates, which SOCKS cannot ask for; write kind: http")
        if bool(clients) != bool(certificate) or bool(clients) != bool(key):
            cure = "give certificate and key with auth: {certificates: FILE}, and not otherwise"
            reading.problem(node, f"{what} speaks TLS where clients show certificates; {cure}")
        return Listener(name, ListenerKind(kind), *address, zone, passwords, clients, certificate, key)

    def _auth(self, node: Node, what: str) -> tuple[Path | None, Path | None] | None:
        """The file of passwords and that of the clients' CA: one of them, or none for `none`."""
        reading = self._reading
        if isinstance(node, Scalar):
            return (None, None) if reading.choice(node, f"auth of {what}", ("none",)) else None
        keys = reading.mapping(node, f"auth of {what}", ("passwords", "certificates"))
        if len(keys) > 1:
            reading.problem(node, f"auth of {what} has two ways; a listener has one, so make two of them")
        passwords = self._path(keys.get("passwords"), f"passwords of {what}")
        clients = self._path(keys.get("certificates"), f"certificates of {what}")
        return (passwords, clients) if bool(passwords) != bool(clients) else None

    def _apart(self, listeners: Mapping[str, Listener], node: Node | None) -> None:
        """No two listeners have one address."""
        taken: dict[tuple[IPAddress, int], str] = {}
        for one in listeners.values():
            other = taken.setdefault((one.address, one.port), one.name)
            if other != one.name and node is not None:
                self._reading.problem(
                    node, f'listeners "{other}" and "{one.name}" have one address; give one another port'
                )

    def _is_person(self, key: Scalar) -> bool:
        if _PERSON.fullmatch(key.text):
            return True
        self._reading.problem(key, f'"{key.text}" is nobody; write a login name, "#uid", "@group" or "*"')
        return False

    def _person(self, who: str, node: Node, zones: Collection[str]) -> Person | None:
        reading, what = self._reading, f'person "{who}"'
        keys = reading.mapping(node, what, ("zones", "groups"), ("zones",))
        listed = self._listed(keys.get("zones"), what, "zone", zones)
        groups = reading.texts(keys["groups"], f"groups of {what}") if "groups" in keys else ()
        return Person(who, listed, groups)

    def _listed(self, node: Node | None, what: str, kind: str, known: Collection[str]) -> tuple[str, ...]:
        """Names of tunnels or zones that this file has."""
        words = self._reading.words(node, f"{kind}s of {what}") if node is not None else ()
        for word in words:
            if word.text not in known:
                cure = did_you_mean(word.text, known) or f"; name it under {kind}s"
                self._reading.problem(word, f'"{word.text}" is not a {kind} of this file{cure}')
        return tuple(word.text for word in words)

    def _path(self, node: Node | None, what: str) -> Path | None:
        text = self._reading.text(node, what) if node is not None else None
        return self._file.parent / text if text else None

    def _limit(self, node: Node | None, what: str, most: int) -> int:
        return (self._reading.integer(node, what, 1, most) if node is not None else most) or most


def is_name(text: str) -> bool:
    """Whether a zone or a tunnel may be called so."""
    return _NAME.fullmatch(text) is not None


def _shown(host: str | IPAddress, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"


def _kind(node: Node) -> str:
    """What a tunnel says it is, "" where it says nothing that can be read."""
    values = (value for key, value in (node.entries if isinstance(node, Map) else ()) if key.text == "kind")
    kind = next(values, None)
    return kind.text if isinstance(kind, Scalar) else ""


def _address(text: str) -> tuple[IPAddress, int]:
    """An address and a port to listen on."""
    host, port = _gateway(text)
    if isinstance(host, str):
        raise ValueError(f'"{text}" has a name; write an address of this machine, such as 127.0.0.1:3128')
    return host, port


def _gateway(text: str) -> tuple[str | IPAddress, int]:
    """`host:port`, the host a name or an address (IPv6 in brackets)."""
    found = _GATEWAY.fullmatch(text)
    if not found or not 0 < int(found[3]) < 65536:
        raise ValueError(f'"{text}" needs a host and a port; write host:port, such as gw.corp.example:8443')
    if found[2] is not None:
        return parse_host(found[2]), int(found[3])
    host = parse_host(found[1])
    if not isinstance(host, IPv6Address):
        raise ValueError(f'"{text}" has brackets around what is no IPv6 address; write host:port')
    return host, int(found[3])
