"""The authority of a site's tunnel certificates, as a directory of files: issue, renew, revoke, list.

    SITE/authority/   ca.crt, ca.key, issued/NAME-SERIAL.crt, revoked.txt    for nobody else
    SITE/NAME/        NAME.crt, NAME.key, ca.crt, and revoked.txt where NAME is a gateway

What was issued is remembered before it is handed out, so that all of it can be revoked. A file that takes
another's place is whole before it does. It knows no clock (`now` is always given) and no process.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from proxy import certificates, expiry
from proxy.addresses import parse_host
from proxy.certificates import Issued

CA_DAYS, LEAF_DAYS = 3650, 397

REVOKED = "revoked.txt"
_FOLDER = "authority"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_REVOKED_HEAD = "# A line for each certificate that no longer counts; see docs/gateway.md, Revocation.\n"


class AuthorityError(Exception):
    """It cannot be done; one line with the cure."""


class Kind(StrEnum):
    """What a certificate is for."""

    CLIENT = "client"
    GATEWAY = "gateway"


class State(StrEnum):
    """What a certificate is worth. REPLACED is still good, and a later one of its name is there."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    REPLACED = "replaced"
    SOON = "expires soon"
    VALID = "valid"


@dataclass(frozen=True, slots=True)
class Record:
    """A certificate that was issued."""

    name: str
    kind: Kind
    certificate: x509.Certificate
    state: State

    @property
    def until(self) -> datetime:
        """When it expires."""
        return self.certificate.not_valid_after_utc

    @property
    def serial(self) -> str:
        """Its serial number, hexadecimal."""
        return f"{self.certificate.serial_number:X}"

    @property
    def fingerprint(self) -> str:
        """`sha256:<hex>`, as a revocation names it."""
        return certificates.fingerprint(_der(self.certificate))

    @property
    def pin(self) -> str:
        """`sha256:<base64>` of its key."""
        return certificates.spki_pin(_der(self.certificate))


class Authority:
    """The authority of the site in a directory. Its key is read when something is signed, and not before."""

    def __init__(self, site: Path) -> None:
        self.site, self._folder = site, site / _FOLDER
        if not (self._folder / "ca.crt").exists():
            raise AuthorityError(
                f'"{site}" has no authority; name the directory that `zonegate init` made with --site'
            )

    @classmethod
    def create(cls, site: Path, name: str, now: datetime) -> Authority:
        """A new authority in a directory that is ours alone. Raises OSError."""
        folder = site / _FOLDER
        folder.mkdir(mode=0o700)
        (folder / "issued").mkdir(mode=0o700)
        certificates.write_issued(certificates.make_authority(name, now=now, days=CA_DAYS), folder, "ca")
        certificates.write_new(folder / REVOKED, _REVOKED_HEAD.encode(), 0o600)
        return cls(site)

    # -- what there is -----------------------------------------------------------------------------

    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return _read_certificate(self._folder / "ca.crt")

    def records(self, now: datetime) -> list[Record]:
        """Every certificate that was issued, by name, the latest first."""
        revoked = self._revoked()
        paths = sorted((self._folder / "issued").glob("*.crt"), key=_written_ns, reverse=True)
        found = [_read_certificate(path) for path in paths]
        found.sort(key=lambda one: one.not_valid_before_utc, reverse=True)
        found.sort(key=certificates.common_name)
        newest: dict[str, x509.Certificate] = {}
        for one in found:
            newest.setdefault(certificates.common_name(one), one)
        return [_record(one, now, revoked, newest) for one in found]

    def _revoked(self) -> str:
        return _text(self._folder / REVOKED)

    # -- what it does ------------------------------------------------------------------------------

    def issue(
        self, name: str, kind: Kind, now: datetime, *, hosts: Sequence[str] = (), days: int = LEAF_DAYS
    ) -> Record:
        """A certificate and its key in the folder of `name`; files that exist are never replaced."""
        _check_name(name)
        folder = self.site / name
        if any(one.name == name and one.state in _GOOD for one in self.records(now)):
            raise AuthorityError(
                f'"{name}" has a certificate; zonegate cert renew {name}, or revoke it first if it was lost'
            )
        for suffix in ("crt", "key"):
            if (folder / f"{name}.{suffix}").exists():
                raise AuthorityError(f'"{folder / name}.{suffix}" exists; move it away')
        if hosts and kind is Kind.CLIENT:
            raise AuthorityError("a client's certificate carries no host; --host is for --kind gateway")
        authority = self._key()
        days = _bounded(authority, now, days)
        if kind is Kind.GATEWAY:
            issued = certificates.issue_server(
                authority, _hosts(hosts or (name,)), named=name, now=now, days=days
            )
        else:
            issued = certificates.issue_client(authority, name, now=now, days=days)
        self._remember(name, issued.certificate)
        folder.mkdir(mode=0o700, exist_ok=True)
        certificates.write_issued(issued, folder, name)
        self._put_beside(folder, kind)
        return self._of(issued.certificate, now)

    def renew(self, name: str, now: datetime, *, days: int = LEAF_DAYS, new_key: bool = False) -> Record:
        """A new certificate for the newest one of `name`, in its place; the key stays unless told otherwise.

        Needs no key of `name`. Key and certificate are two files: between them they do not fit, and
        whoever watches them waits for the second.
        """
        before = next((one for one in self.records(now) if one.name == name), None)
        if before is None:
            raise AuthorityError(f'"{name}" has no certificate here; zonegate cert issue {name}')
        if before.state is State.REVOKED:
            raise AuthorityError(f'"{name}" is revoked; move "{self.site / name}" away and issue it anew')
        authority = self._key()
        key = certificates.new_key() if new_key else None
        public = key.public_key() if key else _public_key(before)
        days = _bounded(authority, now, days)
        certificate = certificates.renew(authority, before.certificate, public, now=now, days=days)
        self._remember(name, certificate)
        folder = self.site / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if key is not None:
            _put(folder / f"{name}.key", Issued(certificate, key).key_pem, 0o600)
        _put(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM), 0o644)
        return self._of(certificate, now)

    def revoke(self, what: str, now: datetime) -> list[Record]:
        """End certificates: every one of a name that still counts, or the one with a serial number.

        Each gateway's list of this directory gets the lines, and the authority's own first.
        """
        known = self.records(now)
        named = [one for one in known if one.name == what]
        found = named or [one for one in known if one.serial == what.upper()]
        if not found:
            raise AuthorityError(f'nothing was issued to "{what}"; zonegate cert list')
        if any(one.kind is Kind.GATEWAY for one in found):
            raise AuthorityError(f'"{what}" is a gateway: take its pin out of the gates\' pins instead')
        ended = [one for one in found if one.state in _GOOD]
        if not ended:
            raise AuthorityError(f'no certificate of "{what}" still counts; zonegate cert list')
        lines = [f"{one.fingerprint}  # {one.name}, {now:%Y-%m-%d}\n" for one in ended]
        for path in (self._folder / REVOKED, *self.lists()):
            _append(path, lines)
        return ended

    def revocation_list(self, now: datetime, *, days: int = LEAF_DAYS) -> bytes:
        """What is revoked and has not expired, as a CRL in PEM."""
        authority = self._key()
        revoked = [one.certificate for one in self.records(now) if one.state is State.REVOKED]
        days = _bounded(authority, now, days)
        return certificates.revocation_list(authority, revoked, now=now, days=days)

    def lists(self) -> list[Path]:
        """The gateways' lists of revocations in this directory."""
        return sorted(path for path in self.site.glob(f"*/{REVOKED}") if path.parent != self._folder)

    def _of(self, certificate: x509.Certificate, now: datetime) -> Record:
        return _record(certificate, now, "", {certificates.common_name(certificate): certificate})

    def _remember(self, name: str, certificate: x509.Certificate) -> None:
        path = self._folder / "issued" / f"{name}-{certificate.serial_number:X}.crt"
        certificates.write_new(path, certificate.public_bytes(Encoding.PEM), 0o644)

    def _put_beside(self, folder: Path, kind: Kind) -> None:
        """What belongs to a certificate: whom to trust, and for a gateway whom no longer."""
        with contextlib.suppress(FileExistsError):
            ca = (self._folder / "ca.crt").read_bytes()
            certificates.write_new(folder / "ca.crt", ca, 0o644)
        if kind is Kind.GATEWAY:
            with contextlib.suppress(FileExistsError):
                certificates.write_new(folder / REVOKED, self._revoked().encode(), 0o600)

    def _key(self) -> Issued:
        path = self._folder / "ca.key"
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise AuthorityError(f'"{path}" can be read by others; make it yours alone: chmod 600 it')
            return certificates.read_issued(self._folder / "ca.crt", path)
        except OSError as error:
            words = (error.strerror or str(error)).lower()
            raise AuthorityError(f'"{path}": {words}; the key of the authority is needed here') from None
        except (ValueError, TypeError) as error:
            raise AuthorityError(f'"{path}" cannot be used: {error}') from None


_GOOD = frozenset({State.VALID, State.SOON, State.REPLACED})


def _record(
    one: x509.Certificate, now: datetime, revoked: str, newest: dict[str, x509.Certificate]
) -> Record:
    name = certificates.common_name(one)
    kind = Kind.GATEWAY if certificates.is_for_servers(one) else Kind.CLIENT
    if certificates.fingerprint(_der(one)) in revoked:
        state = State.REVOKED
    elif one.not_valid_after_utc <= now:
        state = State.EXPIRED
    elif newest[name] is not one:
        state = State.REPLACED
    else:
        state = State.SOON if one.not_valid_after_utc - now <= expiry.SOON else State.VALID
    return Record(name, kind, one, state)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == _FOLDER:
        raise AuthorityError(
            f'"{name}" cannot be a name here; use letters, digits, dots and -, such as laptop-7'
        )


def _hosts(hosts: Sequence[str]) -> list[str]:
    try:
        return [str(parse_host(host)) for host in hosts]
    except ValueError as error:
        raise AuthorityError(f"{error}; give the host that gates dial with --host") from None


def _bounded(authority: Issued, now: datetime, days: int) -> int:
    """No longer than the authority itself."""
    found = min(days, (authority.certificate.not_valid_after_utc - now).days)
    if found < 1:
        raise AuthorityError("the authority itself has expired; make a new one with zonegate init")
    return found


def _public_key(record: Record) -> ec.EllipticCurvePublicKey:
    key = record.certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthorityError(f'the key of "{record.name}" is of another kind; renew it with --new-key')
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuthorityError(f'"{path}" cannot be read as a certificate: {error}') from None


def _written_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise AuthorityError(f'"{path}" cannot be read: {error.strerror}; it says what is revoked') from None


def _append(path: Path, lines: Sequence[str]) -> None:
    """Whole lines at the end, those that are there already excepted; its owner and mode stay."""
    before = _text(path)
    more = [line for line in lines if line.split()[0] not in before]
    if not more:
        return
    start = "" if not before or before.endswith("\n") else "\n"
    with path.open("ab", buffering=0) as file:
        file.write((start + "".join(more)).encode())
        os.fsync(file.fileno())


def _put(path: Path, content: bytes, mode: int) -> None:
    """A file in the place of another, whole at once."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    certificates.write_new(fresh, content, mode)
    fresh.replace(path)
