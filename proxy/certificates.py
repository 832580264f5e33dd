"""Certificates of a site: an authority, and the server and client certificates that it issues.

It decides names, uses and validity, and writes files. It knows no socket and no clock: `now` is always
given. Keys are ECDSA P-256; every certificate is one that OpenSSL's strict verification accepts.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BACKDATE = timedelta(minutes=5)  # a peer whose clock is a little behind still accepts a new certificate
_KEY_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, which no repr shows."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def der(self) -> bytes:
        """The certificate, as `SSLObject.getpeercert(True)` gives it."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> str:
        """The certificate as text."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    @property
    def key_pem(self) -> bytes:
        """The private key, unencrypted PKCS #8: for a 0600 file, never for argv or a log."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def pin(self) -> str:
        """`sha256:<base64>` of the public key: survives renewal with the same key."""
        return spki_pin(self.der)

    @property
    def fingerprint(self) -> str:
        """`sha256:<hex>` of the whole certificate: what a revocation names."""
        return fingerprint(self.der)


def make_authority(name: str, *, now: datetime, days: int = 3650) -> Issued:
    """A self-signed authority that can issue leaf certificates and nothing deeper."""
    key = new_key()
    subject = _subject(name)
    builder = (
        _unsigned(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    authority: Issued, names: Sequence[str], *, named: str = "", now: datetime, days: int = 397
) -> Issued:
    """A server certificate for DNS names and address literals, at least one; `named` is its common name."""
    if not names:
        raise ValueError("a server certificate needs a name; give the host name that clients dial")
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    return _issue(authority, named or names[0], ExtendedKeyUsageOID.SERVER_AUTH, now, days, alternatives)


def issue_client(authority: Issued, name: str, *, now: datetime, days: int = 397) -> Issued:
    """A client certificate whose subject common name is `name`."""
    return _issue(authority, name, ExtendedKeyUsageOID.CLIENT_AUTH, now, days, None)


def spki_pin(der: bytes) -> str:
    """`sha256:<base64>` of the SubjectPublicKeyInfo of a DER certificate (RFC 7469, section 2.4).

    Raises ValueError where `der` is not a certificate.
    """
    public_key = x509.load_der_x509_certificate(der).public_key()
    spki = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256:" + base64.b64encode(hashlib.sha256(spki).digest()).decode("ascii")


def fingerprint(der: bytes) -> str:
    """`sha256:<hex>` of a DER certificate."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


def renew(
    authority: Issued,
    before: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    days: int = 397,
) -> x509.Certificate:
    """A certificate of `key` with the names and the use of the one `before`. The same key keeps its pin."""
    extensions = before.extensions
    use = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    alternatives = None
    with contextlib.suppress(x509.ExtensionNotFound):
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return _certify(authority, key, before.subject, use, now, days, alternatives)


def revocation_list(
    authority: Issued, revoked: Sequence[x509.Certificate], *, now: datetime, days: int
) -> bytes:
    """A CRL (RFC 5280, section 5) in PEM, for TLS servers that read no other list of what is revoked."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - _BACKDATE)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(now - _BACKDATE).build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def common_name(certificate: x509.Certificate) -> str:
    """Whom a certificate names; "" where it names nobody so."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def is_for_servers(certificate: x509.Certificate) -> bool:
    """Whether a server may show it."""
    try:
        use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in use


def read_issued(certificate: Path, key: Path) -> Issued:
    """What `write_issued` wrote. Raises OSError, and ValueError where the two do not belong together."""
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != read.public_key():
        raise ValueError(f'"{key}" is not the key of "{certificate}"; give the pair that was made together')
    return Issued(read, private)


def write_issued(issued: Issued, directory: Path, name: str) -> tuple[Path, Path]:
    """Write `name.crt` and `name.key` (0600) and give both paths; a file that exists is never replaced."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    write_new(key, issued.key_pem, 0o600)
    write_new(certificate, issued.pem.encode("ascii"), 0o644)
    return certificate, key


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Create `path` with exactly `mode`, whatever the umask; one that exists is FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(descriptor, mode)


def _issue(
    authority: Issued,
    name: str,
    use: x509.ObjectIdentifier,
    now: datetime,
    days: int,
    alternatives: x509.SubjectAlternativeName | None,
) -> Issued:
    key, uses = new_key(), x509.ExtendedKeyUsage([use])
    return Issued(_certify(authority, key.public_key(), _subject(name), uses, now, days, alternatives), key)


def _certify(
    authority: Issued,
    key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    uses: x509.ExtendedKeyUsage,
    now: datetime,
    days: int,
    alternatives: x509.SubjectAlternativeName | None,
) -> x509.Certificate:
    issuer_key = authority.key.public_key()
    builder = (
        _unsigned(subject, authority.certificate.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage("digital_signature"), critical=True)
        .add_extension(uses, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in _KEY_USES})


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
