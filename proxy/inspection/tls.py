"""TLS of both sides of an inspected connection: what clients are shown, and how destinations are verified.

Touches no file and no socket. mitmproxy's own ways, a CA whose key every leaf has and a bundle that it finds,
are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto

from proxy.flow import IPAddress
from proxy.leaves import Leaf, Leaves

H2, HTTP1 = b"h2", b"http/1.1"
_LIB: Any = SSL._lib  # type: ignore[attr-defined] # pyOpenSSL itself has no word for the name to verify
_OPTIONS = (
    SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
)
# TLS 1.2 with forward secrecy and authenticated encryption only (RFC 9325, section 4.2).
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


class TlsSides:
    """The TLS of one inspector. `trusted_pem` are the roots of destinations. Raises ValueError."""

    def __init__(self, leaves: Leaves, trusted_pem: bytes) -> None:
        self._leaves = leaves
        self.roots = frozenset(x509.load_pem_x509_certificates(trusted_pem))
        self._shown: dict[str | IPAddress, tuple[Leaf, bool, SSL.Context]] = {}
        self._verifying: dict[tuple[bytes, ...], SSL.Context] = {}

    def for_client(self, host: str | IPAddress, *, http2: bool) -> SSL.Connection:
        """The server's side, for a client that wants `host`. Raises CannotSign."""
        leaf = self._leaves.leaf(host)
        kept = self._shown.get(host)
        if kept is None or kept[:2] != (leaf, http2):
            if len(self._shown) > len(self._leaves):
                self._shown.clear()
            kept = self._shown[host] = (leaf, http2, _showing(leaf, http2))
        connection = SSL.Connection(kept[2])
        connection.set_accept_state()
        return connection

    def for_server(self, host: str | IPAddress, offered: Sequence[bytes]) -> SSL.Connection:
        """The client's side: whoever answers must prove to be `host` under the trusted roots."""
        offers = tuple(offered)
        if offers not in self._verifying:
            self._verifying[offers] = self._verify(offers)
        connection = SSL.Connection(self._verifying[offers])
        connection.set_verify(SSL.VERIFY_PEER, None)
        param = _LIB.SSL_get0_param(connection._ssl)
        if isinstance(host, IPv4Address | IPv6Address):
            done = _LIB.X509_VERIFY_PARAM_set1_ip(param, host.packed, len(host.packed))
        else:
            # By a subject alternative name, and by whole labels, as browsers do.
            flags = _LIB.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | _LIB.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
            _LIB.X509_VERIFY_PARAM_set_hostflags(param, flags)
            name = host.encode("ascii")
            connection.set_tlsext_host_name(name)
            done = _LIB.X509_VERIFY_PARAM_set1_host(param, name, len(name))
        if done != 1:
            raise ValueError("the name to verify cannot be set")
        connection.set_connect_state()
        return connection

    def _verify(self, offers: tuple[bytes, ...]) -> SSL.Context:
        context = _context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_PEER, None)
        store = context.get_cert_store()
        if store is None:
            raise ValueError("there is no place for the trusted roots")
        for root in self.roots:
            store.add_cert(crypto.X509.from_cryptography(root))
        context.set_alpn_protos(list(offers))
        return context


def _showing(leaf: Leaf, http2: bool) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(leaf.certificate)
    context.use_privatekey(leaf.key)
    for certificate in leaf.above:
        context.add_extra_chain_cert(certificate)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    spoken = (H2, HTTP1) if http2 else (HTTP1,)
    context.set_alpn_select_callback(lambda _, offered: _first_of(spoken, offered))
    return context


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    context.set_cipher_list(_CIPHERS)
    return context


def _first_of(spoken: Sequence[bytes], offered: Sequence[bytes]) -> Any:
    """The first protocol of ours that the client offers; a client that offers none of them is refused."""
    return next((name for name in spoken if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
