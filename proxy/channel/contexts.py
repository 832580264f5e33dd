"""What TLS both ends of an mtls tunnel agree to: 1.3, certificates both ways, nothing resumed.

A resumed session would carry an identity past its revocation, so no tickets are given.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(*, ca_pem: str, certificate: Path, key: Path) -> ssl.SSLContext:
    """A context that trusts exactly `ca_pem` and shows `certificate`.

    Raises OSError and ssl.SSLError where the files cannot be used. A path may be /dev/fd/N.
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca_pem, certificate, key)


def server_context(*, client_ca_pem: str, certificate: Path, key: Path) -> ssl.SSLContext:
    """A context that shows `certificate` and requires one that `client_ca_pem` issued.

    Raises OSError and ssl.SSLError where the files cannot be used. A path may be /dev/fd/N.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return _load(context, client_ca_pem, certificate, key)


def require_client(context: ssl.SSLContext) -> None:
    """Raise ValueError unless a client with `context` would notice every impostor."""
    require_mutual(context)
    if not context.check_hostname:
        raise ValueError("the TLS context does not check the server's name; use client_context")


def require_mutual(context: ssl.SSLContext) -> None:
    """Raise ValueError unless `context` speaks TLS 1.3 only and verifies its peer."""
    if context.minimum_version < ssl.TLSVersion.TLSv1_3:
        raise ValueError("the TLS context speaks less than TLS 1.3; use client_context or server_context")
    if context.verify_mode is not ssl.CERT_REQUIRED:
        raise ValueError("the TLS context verifies no peer; use client_context or server_context")


def _load(context: ssl.SSLContext, ca_pem: str, certificate: Path, key: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.load_verify_locations(cadata=ca_pem)
    context.load_cert_chain(certificate, key, password=_no_password)
    return context


def _no_password() -> str:
    """Asked for an encrypted key: OpenSSL would otherwise ask on the terminal and hang a daemon."""
    raise ValueError("the private key is encrypted; give an unencrypted one that only its owner reads (0600)")
