"""When certificates expire, and what is said of it ahead of time. Pure: the clock is a parameter."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from proxy.certificates import common_name

SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Expiry:
    """Whose certificate it is, and until when it is valid."""

    name: str
    until: datetime

    def days_left(self, now: datetime) -> int:
        """Whole days, 0 on the last one and after it."""
        return max(0, (self.until - now).days)

    def is_soon(self, now: datetime) -> bool:
        """Whether it is time to renew it, or too late."""
        return self.until - now <= SOON

    def in_words(self, whose: str, now: datetime) -> str:
        """One line for people."""
        when = f"on {self.until:%Y-%m-%d}"
        if self.until <= now:
            return f"{whose} has expired {when}; renew it"
        left = self.days_left(now)
        return f"{whose} expires in {left} day{'' if left == 1 else 's'}, {when}; renew it"


def of_pem(certificate: bytes) -> Expiry | None:
    """The first certificate of a PEM file; None where there is none."""
    try:
        return _expiry(x509.load_pem_x509_certificates(certificate)[0])
    except (ValueError, x509.InvalidVersion):
        return None


def of_base64(der: str) -> Expiry | None:
    """A certificate as evidence shows it; None for "" and for what is none."""
    try:
        return _expiry(x509.load_der_x509_certificate(base64.b64decode(der, validate=True)))
    except (ValueError, x509.InvalidVersion):
        return None


def warnings(tunnel: str, certificate: bytes, shown: str, now: datetime) -> list[str]:
    """What is said of a tunnel 30 days ahead: of its own certificate (PEM) and of the one that its gateway
    showed (DER in base64)."""
    own, gateway = of_pem(certificate), of_base64(shown)
    both = (
        (own, f'the certificate "{own.name}" of tunnel {tunnel}' if own else ""),
        (gateway, f"the certificate of the gateway of tunnel {tunnel}"),
    )
    return [found.in_words(whose, now) for found, whose in both if found and found.is_soon(now)]


def _expiry(certificate: x509.Certificate) -> Expiry:
    name = common_name(certificate)
    return Expiry(name if name.isprintable() else "", certificate.not_valid_after_utc)
