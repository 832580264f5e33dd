"""The certificates that an inspector shows to clients: one for each name, each with a key of its own.

They live for a day and never longer than what signs them; a bounded number is kept. Knows no connection and
no clock but the one it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.flow import IPAddress
from proxy.inspection_ca import BACKDATE, Intermediate

LEAF_LIFE = timedelta(hours=24)
MOST_LEAVES = 1024
# No name of a host: some clients would match it.
_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inspected by zonegate")])


class CannotSign(Exception):
    """There is nothing to sign with any more."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate, its key, and what follows it in the handshake."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    above: tuple[x509.Certificate, ...]

    def pem(self) -> bytes:
        """The whole chain as text, the leaf first."""
        certificates = (self.certificate, *self.above)
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


class Leaves:
    """Leaf certificates by the name of the host. `replace` changes what signs them."""

    def __init__(self, by: Intermediate, now: Callable[[], datetime], most: int = MOST_LEAVES) -> None:
        self._by, self._now, self._most = by, now, most
        self._kept: OrderedDict[str | IPAddress, Leaf] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def replace(self, by: Intermediate) -> None:
        """Sign with another intermediate from now on."""
        self._by = by
        self._kept.clear()

    def leaf(self, host: str | IPAddress) -> Leaf:
        """The certificate of a host, a canonical name or an address. Raises CannotSign."""
        now = self._now()
        kept = self._kept.get(host)
        if kept is None or now + LEAF_LIFE / 2 > kept.certificate.not_valid_after_utc:
            kept = self._kept[host] = self._issue(host, now)
        self._kept.move_to_end(host)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return kept

    def _issue(self, host: str | IPAddress, now: datetime) -> Leaf:
        issuer = self._by.issued
        until = min(now + LEAF_LIFE, issuer.certificate.not_valid_after_utc)
        if until <= now:
            raise CannotSign("the intermediate of the inspection CA has expired")
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_SUBJECT)
            .issuer_name(issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
            )
        )
        certificate = builder.sign(issuer.key, hashes.SHA256())
        return Leaf(certificate, key, (issuer.certificate, *self._by.above))


_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
