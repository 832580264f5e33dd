"""The inspection CA: a root that stays, and what inspectors sign with, which is short-lived and bounded.

    DIRECTORY/   root-N.crt, root-N.key    the root; the highest N that is whole is the one that signs
                 cross-N.crt               the same root, vouched for by the one before it

The root signs intermediates and nothing else. An intermediate lives for days, cannot make another authority,
and is good only for the hosts that the policy may have inspected. It is all that an inspector is given.
Whoever trusts the last root accepts what the present one signs (by `cross-N.crt`), so a rotation breaks no
program that runs. Knows no clock (`now` is always given), no process and no policy but its hosts.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.certificates import Issued, read_issued, write_issued
from proxy.policy.inspected import Scope

ROOT_DAYS, INTERMEDIATE_DAYS = 1095, 7
# A chain goes out with every handshake: past this many it is not bound to names, and `show` says so.
MAX_SUBTREES = 200
BACKDATE = timedelta(minutes=5)  # a client whose clock is a little behind still accepts it
_EVERY_ADDRESS = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_FILE = re.compile(r"root-([1-9][0-9]{0,5})\.crt")
_NUMBERED = re.compile(r" \(root [0-9]+\)$")


class CaError(Exception):
    """The CA cannot be used or made; one line with the cure."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA as it was read: the root that signs, what vouches for it, and every root that is to be trusted."""

    root: Issued
    crosses: tuple[x509.Certificate, ...]
    trusted: tuple[x509.Certificate, ...]

    def bundle(self, now: datetime) -> bytes:
        """The roots that a program in an inspecting zone is to trust, PEM."""
        return pem(one for one in self.trusted if one.not_valid_after_utc > now)

    def intermediate(self, scope: Scope, now: datetime, days: int = INTERMEDIATE_DAYS) -> Intermediate:
        """An authority for the hosts of `scope`, at least one, to be handed to an inspector."""
        until = min(now + timedelta(days=days), self.root.certificate.not_valid_after_utc)
        if not scope or until <= now:
            raise CaError(
                "the root has expired; make a new one: zonegate ca rotate"
                if scope
                else "the policy has nothing inspected, so there is nothing to sign for"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(
            _subject(f"zonegate inspection {now:%Y-%m-%d %H:%M}"),
            self.root.certificate.subject,
            key,
            now,
            until,
        )
        builder = _as_authority(builder, 0).add_extension(_issuer_key(self.root.key), critical=False)
        if (constraints := name_constraints(scope)) is not None:
            builder = builder.add_extension(constraints, critical=True)
        issued = Issued(builder.sign(self.root.key, hashes.SHA256()), key)
        live = tuple(cross for cross in self.crosses if cross.not_valid_after_utc > now)
        return Intermediate(issued, live)


@dataclass(frozen=True, slots=True)
class Intermediate:
    """What signs for inspected hosts, and the certificates that follow it in a chain."""

    issued: Issued
    above: tuple[x509.Certificate, ...]

    def pem(self) -> bytes:
        """Its certificate and those that vouch for its issuer, in the order of a chain."""
        return pem((self.issued.certificate, *self.above))

    @classmethod
    def read(cls, chain: bytes, key: bytes) -> Intermediate:
        """What `pem` and its key say. Raises ValueError."""
        certificate, *above = x509.load_pem_x509_certificates(chain)
        private = serialization.load_pem_private_key(key, password=None)
        if (
            not isinstance(private, ec.EllipticCurvePrivateKey)
            or private.public_key() != certificate.public_key()
        ):
            raise ValueError("the key is not the intermediate's")
        return cls(Issued(certificate, private), tuple(above))


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as one PEM text."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def name_constraints(scope: Scope) -> x509.NameConstraints | None:
    """What an intermediate is bound to; None where its hosts cannot be listed.

    A subtree has its own domain in it as well (RFC 5280, 4.2.1.10), which no wildcard of a policy has: the
    bound is a little wider than the policy. A kind that is not inspected at all is excluded as a whole.
    """
    if scope.names is None or scope.networks is None:
        return None
    bases = _outermost(name.removeprefix("*.") for name in scope.names)
    if len(bases) + len(scope.networks) > MAX_SUBTREES:
        return None
    permitted: list[x509.GeneralName] = [x509.DNSName(base) for base in bases]
    permitted += [x509.IPAddress(network) for network in scope.networks]
    excluded: list[x509.GeneralName] = [] if bases else [x509.DNSName("")]
    versions = {network.version for network in scope.networks}
    excluded += [x509.IPAddress(network) for network in _EVERY_ADDRESS if network.version not in versions]
    return x509.NameConstraints(permitted or None, excluded or None)


def _outermost(bases: Iterable[str]) -> list[str]:
    found = set(bases)
    return sorted(b for b in found if not any(b.endswith(f".{other}") for other in found))


# -- files -------------------------------------------------------------------------------------------


def create(directory: Path, name: str, now: datetime) -> Authority:
    """A new CA in a directory that is made for it, 0700."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise CaError(f"{directory} is not empty; a new root is made by: zonegate ca rotate")
        directory.chmod(0o700)
        write_issued(_new_root(name, 1, now), directory, "root-1")
    except OSError as error:
        raise CaError(f"{directory}: {error.strerror}") from error
    return read(directory)


def read(directory: Path) -> Authority:
    """The CA of a directory. Raises CaError where it is not whole, or not its owner's alone."""
    try:
        _must_be_private(directory)
        numbers = sorted(
            int(found[1]) for path in directory.iterdir() if (found := _FILE.fullmatch(path.name))
        )
        whole = [n for n in numbers if n == numbers[0] or (directory / f"cross-{n}.crt").exists()]
        if not whole or not (directory / f"root-{whole[-1]}.key").exists():
            raise CaError(f"{directory} has no inspection CA; make one: zonegate ca create")
        signing = whole[-1]
        _must_be_private(directory / f"root-{signing}.key")
        root = read_issued(directory / f"root-{signing}.crt", directory / f"root-{signing}.key")
        trusted = [_read(directory / f"root-{n}.crt") for n in reversed(whole)]
        crosses = [_read(directory / f"cross-{n}.crt") for n in reversed(whole[1:])]
    except OSError as error:
        raise CaError(
            f"{error.filename or directory}: {error.strerror}; make a CA: zonegate ca create"
        ) from error
    except ValueError as error:
        raise CaError(f"{directory}: {error}") from error
    return Authority(root, tuple(crosses), tuple(trusted))


def rotate(directory: Path, now: datetime, *, distrust: bool = False) -> Authority:
    """A new root. Who trusts the old one accepts it, unless that is distrusted; the old key is destroyed."""
    before = read(directory)
    try:
        kept = sorted(directory.iterdir())
        number = 1 + max(int(found[1]) for path in kept if (found := _FILE.fullmatch(path.name)))
        root = _new_root(_NUMBERED.sub("", name_of(before.root.certificate)), number, now)
        write_issued(root, directory, f"root-{number}")
        if not distrust:
            # The last to be written: without it the new root is not whole, and the old one signs on.
            _write(directory / f"cross-{number}.crt", pem([_cross(root, before.root, now)]))
        gone = kept if distrust else [path for path in kept if path.suffix == ".key"]
        for path in gone:
            path.unlink()
    except OSError as error:
        raise CaError(f"{error.filename or directory}: {error.strerror}") from error
    return read(directory)


def name_of(certificate: x509.Certificate) -> str:
    """Whom a certificate names."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def permitted(certificate: x509.Certificate) -> Sequence[str]:
    """The hosts that an intermediate is bound to, in words; none where it has no bound."""
    with contextlib.suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        return [str(one.value) for one in found.permitted_subtrees or ()]
    return ()


def _must_be_private(path: Path) -> None:
    found = path.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise CaError(f"{path} can be read by others; make it yours alone: chmod {mode} {path}")
    if found.st_uid not in (0, os.geteuid()):
        raise CaError(f"{path} belongs to another user; make it yours: chown $USER {path}")


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".new")
    partial.write_bytes(content)
    partial.replace(path)


# -- certificates ------------------------------------------------------------------------------------


def _new_root(name: str, number: int, now: datetime) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"{name} (root {number})")
    builder = _builder(subject, subject, key, now, now + timedelta(days=ROOT_DAYS))
    return Issued(_as_authority(builder, None).sign(key, hashes.SHA256()), key)


def _cross(root: Issued, before: Issued, now: datetime) -> x509.Certificate:
    """A root's name and key under the signature of the one before it."""
    until = min(before.certificate.not_valid_after_utc, root.certificate.not_valid_after_utc)
    builder = _builder(root.certificate.subject, before.certificate.subject, root.key, now, until)
    builder = _as_authority(builder, None).add_extension(_issuer_key(before.key), critical=False)
    return builder.sign(before.key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _as_authority(builder: x509.CertificateBuilder, path_length: int | None) -> x509.CertificateBuilder:
    uses = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    usage = x509.KeyUsage(**uses, key_cert_sign=True, crl_sign=True)
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)


def _issuer_key(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
