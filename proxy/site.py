"""Everything a daemon needs from files, read once at the start: site, policy, certificates, keys.

Refuses what would not keep the law: a key that others can read, a zone that the policy does not know, a
policy that needs addresses behind a gateway that is not trusted with them. Knows no process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy import inspection_ca, passwords
from proxy.allocator import OWN_NETWORKS
from proxy.config import (
    ANONYMOUS,
    AnyTunnel,
    Listener,
    Person,
    Site,
    Tunnel,
    groups_in,
    read_site,
)
from proxy.inspection_ca import Authority, CaError
from proxy.messages.holding import PacketSetup, TunnelSetup
from proxy.policy import Policy, Problems, load
from proxy.policy.duties import unseen
from proxy.policy.reading import did_you_mean
from proxy.wireguard_config import WireguardTunnel, parse_key

MAX_FILE_BYTES = 4 << 20
_CURE = "name one that is there and that this user may read"
_PAIR = "take certificate and key that were made together"


class SiteError(Exception):
    """The site cannot be used; every line says one thing that is wrong, where, and the cure."""


class Secret:
    """Bytes that no log and no traceback shows."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._content, other._content)

    def __hash__(self) -> int:
        return hash(self._content)

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._content


@dataclass(frozen=True, slots=True)
class TunnelFiles:
    """What a tunnel's holder and the workers are handed: CA, client certificate and key, PEM."""

    ca: bytes
    certificate: bytes
    key: Secret

    def contents(self) -> tuple[bytes, ...]:
        """What a holder is handed, in the order of Hold; a worker is handed the same."""
        return self.ca, self.certificate, self.key.reveal()


@dataclass(frozen=True, slots=True)
class WireguardKeys:
    """What the holder of a WireGuard tunnel is handed, in the order of HoldPackets. No worker has it."""

    private_key: Secret
    preshared_key: Secret | None

    def contents(self) -> tuple[bytes, ...]:
        """The private key, and the preshared one if there is one."""
        keys = (self.private_key, self.preshared_key)
        return tuple(key.reveal() for key in keys if key is not None)


type TunnelKeys = TunnelFiles | WireguardKeys


@dataclass(frozen=True, slots=True)
class ListenerFiles:
    """What an explicit listener's worker is handed; what its kind has not is empty."""

    passwords: Secret
    clients: bytes
    certificate: bytes
    key: Secret


@dataclass(frozen=True, slots=True)
class Loaded:
    """A site with the content of its files."""

    site: Site
    policy_text: bytes
    policy: Policy
    files: Mapping[str, TunnelKeys]
    inspection: Authority | None = None
    listeners: Mapping[str, ListenerFiles] = field(default_factory=dict)
    trust: bytes | None = None

    def roots(self, zone: str) -> str:
        """What the programs of a zone are to trust as well: PEM, "" where it is not inspected."""
        if self.inspection is None or not self.site.zones[zone].inspects:
            return ""
        return self.inspection.bundle(datetime.now(UTC)).decode("ascii")


def load_site(file: Path) -> Loaded:
    """Read a site file and all that it names. Raises SiteError with every problem found."""
    try:
        site = read_site(_read(file, "site file"), file)
        policy_text = _read(site.policy, "policy")
        policy = load(policy_text, str(site.policy), OWN_NETWORKS)
    except Problems as error:
        raise SiteError(str(error)) from error
    if not site.people and os.geteuid() != 0:
        own = Person(f"#{os.geteuid()}", tuple(site.zones), ())  # an ordinary user's daemon is that user's
        site = replace(site, people=(own,))
    problems = [*_zones(site, policy), *_people(site, policy)]
    files: dict[str, TunnelKeys] = {}
    for name, tunnel in site.tunnels.items():
        try:
            if isinstance(tunnel, WireguardTunnel):
                files[name] = _wireguard_keys(tunnel)
                continue
            files[name] = mtls_files = tunnel_files(tunnel)
            problems += client_problems(tunnel, mtls_files, datetime.now(UTC))
        except SiteError as error:
            problems.append(str(error))
    listeners: dict[str, ListenerFiles] = {}
    for name, listener in site.listeners.items():
        try:
            listeners[name] = _listener_files(listener)
            problems += _listener_problems(site, listener, listeners[name])
        except SiteError as error:
            problems.append(str(error))
    inspection = trust = None
    try:
        inspection = inspection_ca.read(site.inspection) if site.inspection else None
        trust = _trusted(site)
    except (CaError, SiteError) as error:
        problems.append(str(error))
    if problems:
        raise SiteError("\n".join(problems))
    return Loaded(site, policy_text, policy, files, inspection, listeners, trust)


def _trusted(site: Site) -> bytes | None:
    """The roots by which inspected destinations are verified. Raises SiteError."""
    if site.trust is None:
        if zone := next((zone.name for zone in site.zones.values() if zone.inspects), ""):
            raise SiteError(
                f'{site.file}: zone "{zone}" inspects, and nothing verifies its destinations; '
                "name a file of root certificates under trust, such as /etc/ssl/certs/ca-certificates.crt"
            )
        return None
    text = _read(site.trust, "bundle of trusted roots")
    try:
        x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise SiteError(f"{site.trust}: trust holds no root certificate in PEM") from error
    return text


def _zones(site: Site, policy: Policy) -> list[str]:
    problems = []
    for name, zone in site.zones.items():
        if name not in policy.zones:
            known = ", ".join(policy.zones)
            problems.append(f'{site.file}: zone "{name}" is not in policy {site.policy}, which has {known}')
            continue
        blind = [name for name in zone.tunnels if _is_blind(site.tunnels[name])]
        mtls = [one for one in zone.tunnels if isinstance(site.tunnels.get(one), Tunnel)]
        if blind and policy.needs_addresses(name):
            problems.append(
                f'{site.file}: the policy of zone "{name}" blocks addresses; tunnel "{blind[0]}" resolves '
                "names at its gateway; set judges_addresses: true if that gateway is trusted to judge them"
            )
        problems += [
            f'{one.at}: "{one.name}" has networks, and a scan, quota or opacity that would miss what zone '
            f'"{name}" sends there by name: the gateway of tunnel "{mtls[0]}" resolves it; the gate never '
            "learns its address; list every name that the zone may go to, or write names in place of networks"
            for one in (unseen(policy.model, name) if mtls else ())
        ]
    return problems


def _is_blind(tunnel: AnyTunnel) -> bool:
    """Whether names are resolved, and their addresses not judged, where we cannot see it."""
    return isinstance(tunnel, Tunnel) and not tunnel.judges_addresses


def setup_of(tunnel: AnyTunnel) -> TunnelSetup:
    """A tunnel as its holder and workers need it."""
    if isinstance(tunnel, Tunnel):
        return TunnelSetup(
            tunnel.name,
            str(tunnel.host),
            tunnel.port,
            tunnel.server_name,
            tunnel.pins,
            tunnel.judges_addresses,
            must_admit=tunnel.must_admit,
        )
    packets = PacketSetup(
        tuple(map(str, tunnel.addresses)),
        tuple(map(str, tunnel.allowed)),
        tuple(map(str, tunnel.dns)),
        tunnel.mtu,
        tunnel.keepalive_s,
        tunnel.probe,
    )
    return TunnelSetup(
        tunnel.name, str(tunnel.host), tunnel.port, "", (tunnel.peer,), False, "wireguard", packets
    )


def _people(site: Site, policy: Policy) -> list[str]:
    if not site.people:
        return [f"{site.file}: nobody may enter any zone; say who may under people"]
    known = policy.model.groups
    return [
        f'{site.file}: group "{group}" of "{person.who}" is not in policy {site.policy}'
        f"{did_you_mean(group, known) or '; define it there or remove it here'}"
        for person in site.people
        for group in person.groups
        if group not in known
    ]


def client_problems(tunnel: Tunnel, files: TunnelFiles, now: datetime) -> list[str]:
    """What is wrong with the certificates and the key of a tunnel, a line each."""
    what = f'of tunnel "{tunnel.name}"'
    try:
        x509.load_pem_x509_certificates(files.ca)
    except ValueError:
        return [f"{tunnel.ca}: the ca {what} holds no certificate; write a file with BEGIN CERTIFICATE"]
    try:
        certificate = x509.load_pem_x509_certificates(files.certificate)[0]
    except ValueError:
        cure = "write a file with BEGIN CERTIFICATE"
        return [f"{tunnel.certificate}: the certificate {what} holds no certificate; {cure}"]
    problems = []
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        until = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        problems.append(
            f"{tunnel.certificate}: the certificate {what} is valid from {until}; issue a new one"
        )
    if not _is_for_clients(certificate):
        problems.append(
            f"{tunnel.certificate}: the certificate {what} is not for clients; "
            "issue one with extendedKeyUsage clientAuth"
        )
    try:
        key = load_pem_private_key(files.key.reveal(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return [
            *problems,
            f"{tunnel.key}: the key {what} is no private key in PEM without a password; {_PAIR}",
        ]
    if key.public_key() != certificate.public_key():
        problems.append(f"{tunnel.key}: the key {what} is not the key of {tunnel.certificate}; {_PAIR}")
    return problems


def _is_for_clients(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def _listener_files(listener: Listener) -> ListenerFiles:
    def found(path: Path | None, what: str, *, secret: bool = False) -> bytes:
        return _read(path, f'{what} of listener "{listener.name}"', secret=secret) if path else b""

    return ListenerFiles(
        Secret(found(listener.passwords, "file of passwords", secret=True)),
        found(listener.clients, "CA of clients"),
        found(listener.certificate, "certificate"),
        Secret(found(listener.key, "key", secret=True)),
    )


def _listener_problems(site: Site, listener: Listener, files: ListenerFiles) -> list[str]:
    """What is wrong with who may log in to a listener, and with its certificate, a line each."""
    what = f'listener "{listener.name}"'
    logins: list[str] = [ANONYMOUS]
    if listener.clients:
        return _tls_problems(listener, files, what)
    if listener.passwords:
        try:
            logins = list(passwords.read(files.passwords.reveal()))
        except passwords.BadPasswords as error:
            return [f"{listener.passwords}: {error}"]
        if not logins:
            return [f"{listener.passwords} has no login; make one with `zonegate passwd FILE USER`"]
    return [
        f'{site.file}: "{login}" of {what} may not enter zone "{listener.zone}"; name that login, or "*", '
        "under people"
        for login in logins
        if groups_in(site.people, listener.zone, {login, "*"}) is None
    ]


def _tls_problems(listener: Listener, files: ListenerFiles, what: str) -> list[str]:
    for path, content in ((listener.clients, files.clients), (listener.certificate, files.certificate)):
        try:
            found = x509.load_pem_x509_certificates(content)
        except ValueError:
            return [f"{path}: {what} finds no certificate there; write a file with BEGIN CERTIFICATE"]
    try:
        key = load_pem_private_key(files.key.reveal(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return [f"{listener.key}: the key of {what} is no private key in PEM without a password; {_PAIR}"]
    if key.public_key() != found[0].public_key():
        return [f"{listener.key}: the key of {what} is not the key of {listener.certificate}; {_PAIR}"]
    return []


def tunnel_files(tunnel: Tunnel) -> TunnelFiles:
    """The files of a tunnel as they are now. Raises SiteError; whether they fit says `client_problems`."""
    return TunnelFiles(
        _read(tunnel.ca, f'ca of tunnel "{tunnel.name}"'),
        _read(tunnel.certificate, f'certificate of tunnel "{tunnel.name}"'),
        Secret(_read(tunnel.key, f'key of tunnel "{tunnel.name}"', secret=True)),
    )


def _wireguard_keys(tunnel: WireguardTunnel) -> WireguardKeys:
    return WireguardKeys(
        _wireguard_key(tunnel.private_key, f'private_key of tunnel "{tunnel.name}"'),
        _wireguard_key(tunnel.preshared_key, f'preshared_key of tunnel "{tunnel.name}"')
        if tunnel.preshared_key
        else None,
    )


def _wireguard_key(path: Path, what: str) -> Secret:
    text = _read(path, what, secret=True).strip()
    try:
        parse_key(text.decode())
    except ValueError:  # which would show the key
        raise SiteError(f"{path}: the {what} is no WireGuard key; write what `wg genkey` prints") from None
    return Secret(text)


def _read(path: Path, what: str, *, secret: bool = False) -> bytes:
    """A regular file of reasonable size; a device or a pipe as a configuration is a mistake or an attack.

    A secret must be ours alone; what is looked at is the open file, whatever its name means later.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise SiteError(f"{path}: the {what} is not a regular file; {_CURE}")
            if secret and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SiteError(f"{path} can be read by others; make it yours alone: chmod 600 {path}")
            if secret and found.st_uid not in (0, os.geteuid()):
                raise SiteError(f"{path} belongs to another user; make it yours: chown $USER {path}")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SiteError(f"{path}: the {what} cannot be read: {error.strerror}; {_CURE}") from error
    if len(content) > MAX_FILE_BYTES:
        raise SiteError(f"{path}: the {what} is longer than {MAX_FILE_BYTES >> 20} MiB; {_CURE}")
    return content
