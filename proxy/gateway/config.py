"""gateway.yaml: where to listen, who may come, and what may be reached.

Reads values and refuses what is wrong with all problems at once. Opens no file: the paths that it gives
carry their place in the file, so that whoever opens them can say where a wrong one stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from proxy.addresses import IPNetwork, parse_host
from proxy.flow import IPAddress
from proxy.gateway.judge import ANY_NAME, Allowance
from proxy.policy.reading import Reading
from proxy.policy.source import Node, Where

type _Parse[T] = Callable[[str], T]

_TOP = ("gateway", "listen", "certificate", "key", "clients", "allow", "resolver", "hosts", "log", "limits")
_REQUIRED = ("gateway", "listen", "certificate", "key", "clients", "allow", "log")
_LIMITS = ("clients", "per_certificate", "handshakes", "per_address", "idle")
_ALLOWANCE = ("names", "networks", "ports", "clients")
_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9.]+):(0|[1-9][0-9]{0,4})")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file that the configuration names, and where it does."""

    path: Path
    at: Where


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen; port 0 leaves the choice to the kernel."""

    address: IPAddress
    port: int
    at: Where


@dataclass(frozen=True, slots=True)
class Limits:
    """What one gateway may spend. Times are in seconds.

    `clients` are open connections, of all certificates and with `per_certificate` of one. `handshakes`
    bounds connections that have not proved anything, in all and `per_address` of their sender.
    `clients_at` is None where the file leaves their number to the gateway.
    """

    clients: int = 2048
    per_certificate: int = 1024
    handshakes: int = 512
    per_address: int = 64
    idle_s: float = 3600
    clients_at: Where | None = None


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """A gateway.yaml that was read. `uses_system_resolver` False means that `hosts` is all there is."""

    listen: tuple[Endpoint, ...]
    certificate: FileRef
    key: FileRef
    client_ca: FileRef
    revoked: FileRef | None
    allowances: tuple[Allowance, ...]
    hosts: Mapping[str, tuple[IPAddress, ...]]
    uses_system_resolver: bool
    log: FileRef
    limits: Limits


def read_config(text: bytes, file: Path) -> GatewayConfig:
    """The configuration of a file's text. Raises Problems with everything that is wrong with it."""
    reading = Reading(text, str(file))
    config = _Reader(reading, file).config()
    reading.finish()
    assert config is not None
    return config


class _Reader:
    """Reads one file; what it cannot read it reports and leaves out."""

    def __init__(self, reading: Reading, file: Path) -> None:
        self._reading, self._file = reading, file

    def config(self) -> GatewayConfig | None:
        reading = self._reading
        top = reading.mapping(reading.root, "gateway.yaml", _TOP, _REQUIRED)
        if "gateway" in top:
            reading.choice(top["gateway"], "the version of gateway.yaml", ("1",))
        clients: dict[str, Node] = {}
        if "clients" in top:
            clients = reading.mapping(top["clients"], "clients", ("ca", "revoked"), ("ca",))
        certificate = self._path(top.get("certificate"), "certificate")
        key = self._path(top.get("key"), "key")
        client_ca = self._path(clients.get("ca"), "ca of clients")
        log = self._path(top.get("log"), "log")
        allowances = [self._allowance(node) for node in self._items(top.get("allow"), "allow")]
        resolver = (
            reading.choice(top["resolver"], "resolver", ("system", "hosts")) if "resolver" in top else ""
        )
        hosts = self._hosts(top.get("hosts"))
        limits = self._limits(top.get("limits"))
        listen = self._listen(top.get("listen"))
        revoked = self._path(clients.get("revoked"), "revoked of clients")
        if certificate is None or key is None or client_ca is None or log is None:
            return None
        return GatewayConfig(
            listen,
            certificate,
            key,
            client_ca,
            revoked,
            tuple(allowances),
            hosts,
            resolver != "hosts",
            log,
            limits,
        )

    def _items(self, node: Node | None, what: str) -> tuple[Node, ...]:
        return self._reading.items(node, what) if node is not None else ()

    def _path(self, node: Node | None, what: str) -> FileRef | None:
        word = self._reading.word(node, what) if node is not None else None
        return FileRef(self._file.parent / word.text, word.at) if word else None

    def _listen(self, node: Node | None) -> tuple[Endpoint, ...]:
        words = self._reading.words(node, "listen") if node is not None else ()
        found = [(self._reading.parsed(word, "listen", _endpoint), word.at) for word in words]
        return tuple(Endpoint(*endpoint, at) for endpoint, at in found if endpoint is not None)

    def _allowance(self, node: Node) -> Allowance:
        reading, what = self._reading, "an entry of allow"
        keys = reading.mapping(node, what, _ALLOWANCE, ("ports",))
        if "names" not in keys and "networks" not in keys:
            reading.problem(node, f"{what} has neither names nor networks; add what it allows")
        return Allowance(
            names=self._all(keys.get("names"), "names", _pattern),
            networks=self._all(keys.get("networks"), "networks", _network),
            ports=self._all(keys.get("ports"), "ports", _ports),
            clients=self._all(keys.get("clients"), "clients", _client),
            where=str(node.at),
        )

    def _all[T](self, node: Node | None, what: str, parse: _Parse[T]) -> tuple[T, ...]:
        words = self._reading.words(node, what) if node is not None else ()
        found = (self._reading.parsed(word, what, parse) for word in words)
        return tuple(value for value in found if value is not None)

    def _hosts(self, node: Node | None) -> dict[str, tuple[IPAddress, ...]]:
        found = {}
        for key, value in self._reading.entries(node, "hosts") if node is not None else ():
            name = self._reading.parsed(key, "hosts", _name)
            addresses = self._all(value, f'addresses of "{key.text}"', _address)
            if name is not None:
                found[name] = addresses
        return found

    def _limits(self, node: Node | None) -> Limits:
        if node is None:
            return Limits()
        reading, usual = self._reading, Limits()
        keys = reading.mapping(node, "limits", _LIMITS)
        counts = {
            key: reading.integer(keys[key], key, 1, 1_000_000) or 1 if key in keys else getattr(usual, key)
            for key in _LIMITS[:-1]
        }
        idle_s = reading.duration_s(keys["idle"], "idle") if "idle" in keys else usual.idle_s
        if idle_s is not None and idle_s < 1:
            reading.problem(keys["idle"], "idle is shorter than a second; write 1s or more")
        at = keys["clients"].at if "clients" in keys else None
        return Limits(**counts, idle_s=idle_s or usual.idle_s, clients_at=at)


def _endpoint(text: str) -> tuple[IPAddress, int]:
    found = _LISTEN.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f'"{text}" is not an address and port; write it as in 0.0.0.0:8443 or [::]:8443')
    return _address(found[1]), int(found[2])


def _pattern(text: str) -> str:
    """A name, `*.suffix` for everything below it, or `*`."""
    if text == ANY_NAME:
        return text
    stem = text.removeprefix("*.")
    name = _name(stem)
    return f"*.{name}" if stem != text else name


def _name(text: str) -> str:
    host = parse_host(text)
    if not isinstance(host, str):
        raise ValueError(f'"{text}" is an address; write it as a network, such as {text}/32')
    return host


def _address(text: str) -> IPAddress:
    host = parse_host(text)
    if isinstance(host, str):
        raise ValueError(f'"{text}" is a name; write its addresses')
    return host


def _network(text: str) -> IPNetwork:
    address, slash, length = text.partition("/")
    host = _address(address)
    if slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
        raise ValueError(f'"{text}" is not a network; write it as in 10.20.0.0/16')
    try:
        return ip_network(f"{host}/{length}" if slash else str(host))
    except ValueError:
        wide = ip_network(f"{host}/{length}", strict=False) if int(length) <= host.max_prefixlen else None
        cure = f"write {wide} or {host}" if wide else "write it as in 10.20.0.0/16"
        raise ValueError(f'"{text}" is not a network; {cure}') from None


def _ports(text: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f'"{text}" is not a port; write 443 or a range such as 8000-8099')
    return low, high


def _client(text: str) -> str:
    """A client by the common name of its certificate, or by the certificate's fingerprint."""
    if text.startswith("sha256:") and not _FINGERPRINT.fullmatch(text):
        raise ValueError(f'"{text}" is not a fingerprint; write sha256: and 64 hexadecimal digits')
    return text
