"""The process around a gateway: its files, sockets, signals and limits.

Everything that can be wrong with a configuration is found here before anything listens.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from proxy import notify
from proxy.certificates import spki_pin
from proxy.channel import server_context
from proxy.channel.connect import authority
from proxy.gateway import renewed
from proxy.gateway.config import Endpoint, FileRef, GatewayConfig, Limits, read_config
from proxy.gateway.dial import Dialer, system_resolver
from proxy.gateway.log import Log
from proxy.gateway.revoked import Revocations
from proxy.gateway.server import Gateway
from proxy.policy.source import MAX_BYTES, Problem, Problems, Where
from proxy.stamps import look

_BACKLOG = 1024
_OTHER_DESCRIPTORS = 64
_NO_PEM = "there is no certificate in it"
_TLS_WORDS: Mapping[str, str] = {
    "KEY_VALUES_MISMATCH": "it is not the key's",
    "NO_START_LINE": _NO_PEM,
    "NO_CERTIFICATE_OR_CRL_FOUND": _NO_PEM,
}


async def run(file: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises Problems where the configuration cannot be used."""
    config = load(file)
    limits = affordable(config.limits)
    files = (config.certificate.path, config.key.path, config.client_ca.path)
    stamps = look(files)
    context, pin = shown(config)
    with ExitStack() as undo:
        with _said_at(config.log, "write a path in a directory that is there and yours"):
            log = Log(config.log.path, lambda: datetime.now(UTC))
        undo.callback(log.close)
        revocations = Revocations(config.revoked.path if config.revoked else None, time.time)
        if config.revoked is not None and revocations.trouble:
            raise _problems(config.revoked.at, f"{revocations.trouble}; an empty file revokes nobody")
        dialer = Dialer(
            config.allowances, config.hosts, system_resolver if config.uses_system_resolver else None
        )
        undo.callback(dialer.close)
        with _said_at(FileRef(file, Where(str(file), 1, 1))):
            listeners = [undo.enter_context(sock) for sock in inherited(os.environ, os.getpid())]
        if not listeners:
            listeners = [undo.enter_context(listen(endpoint)) for endpoint in config.listen]
        where = ", ".join(map(_shown, listeners))
        stop = asyncio.Event()
        _on_signals(undo, stop, log)
        gateway = Gateway(context, limits, dialer, log, revocations)
        log.write("started", listen=where, pin=pin)
        notify.say(f"gateway listening on {where}, key {pin}")
        notify.ready()
        renewing = asyncio.create_task(
            renewed.follow(files, stamps, lambda: shown(config), gateway.show, log)
        )
        undo.callback(renewing.cancel)
        await gateway.serve(listeners, stop)
        notify.stopping()
        log.note("stopped", lost=log.lost)


def load(file: Path) -> GatewayConfig:
    """The configuration of a file. Raises Problems, also where the file cannot be read."""
    whole = FileRef(file, Where(str(file), 1, 1))
    with _said_at(whole, "name it with -c, or make one: zonegate init DIR"), file.open("rb") as opened:
        text = opened.read(MAX_BYTES + 1)
    return read_config(text, file)


def tls(config: GatewayConfig) -> ssl.SSLContext:
    """The context of the configured files. Raises Problems, each where the file is named."""
    with _said_at(config.key, "write the path of the certificate's key"):
        if stat.S_IMODE(config.key.path.stat().st_mode) & 0o077:
            raise ValueError("others may read it; chmod 600 it")
        _check_key(config.key.path.read_bytes())
    with _said_at(config.certificate, "write the path of a certificate, as PEM"):
        certificate = _certificate(config.certificate.path)
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            raise ValueError("it has expired; issue a new one")
    with _said_at(config.client_ca, "write the path of the CA's certificate, as PEM"):
        ca_pem = config.client_ca.path.read_text("ascii")
        ssl.create_default_context(cadata=ca_pem)
    with _said_at(config.certificate, "take certificate and key that were made together"):
        return server_context(client_ca_pem=ca_pem, certificate=config.certificate.path, key=config.key.path)


def shown(config: GatewayConfig) -> tuple[ssl.SSLContext, str]:
    """The context of the configured files as they are now, and the pin of the key. Raises Problems."""
    context = tls(config)
    with _said_at(config.certificate):
        return context, spki_pin(_certificate(config.certificate.path).public_bytes(Encoding.DER))


def affordable(limits: Limits) -> Limits:
    """The limits, with as many descriptors allowed as the clients may need, and no core dump.

    Where the file gives no number of clients it is what the system allows. Raises Problems.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would contain the key
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    most = limits.clients if unlimited else max((hard - _OTHER_DESCRIPTORS) // 2, 1)
    if limits.clients > most and limits.clients_at is not None:
        said = f"{limits.clients} clients need more open files than the {hard} that are allowed"
        raise _problems(limits.clients_at, f"{said}; write at most {most}, or raise LimitNOFILE")
    limits = replace(limits, clients=min(limits.clients, most))
    needed = min(2 * limits.clients + _OTHER_DESCRIPTORS, hard if not unlimited else sys.maxsize)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return limits


def inherited(environment: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The listening sockets that a service manager opened in place of `listen` (sd_listen_fds(3)).

    They may belong to another network namespace than this process: it then serves there from here.
    Raises OSError and ValueError for what is no listening socket.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return []
    listeners = []
    for fd in range(3, 3 + int(environment.get("LISTEN_FDS", "0"))):
        listener = socket.socket(fileno=fd)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, f"descriptor {fd} of the service manager does not listen")
        listener.setblocking(False)
        listener.set_inheritable(False)
        listeners.append(listener)
    return listeners


@contextmanager
def listen(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A listening socket, closed at the end. Raises Problems."""
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    with ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((str(endpoint.address), endpoint.port))
            sock.listen(_BACKLOG)
        except OSError as error:
            said = f"cannot listen there ({_strerror(error)}); free it or write another address or port"
            raise _problems(endpoint.at, said) from None
        yield sock


def _on_signals(undo: ExitStack, stop: asyncio.Event, log: Log) -> None:
    """SIGTERM and SIGINT stop; SIGHUP goes on in a new log, after the old one was moved away."""

    def reopen() -> None:
        try:
            log.reopen()
        except (OSError, ValueError) as error:
            log.note("cannot reopen the log", because=str(error))

    loop = asyncio.get_running_loop()
    for number, do in ((signal.SIGTERM, stop.set), (signal.SIGINT, stop.set), (signal.SIGHUP, reopen)):
        loop.add_signal_handler(number, do)
        undo.callback(loop.remove_signal_handler, number)


@contextmanager
def _said_at(file: FileRef, cure: str = "") -> Iterator[None]:
    """What is wrong with a file becomes a problem where it is named. A ValueError has its own cure."""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        said = f'"{file.path}" cannot be used: {_strerror(error)}'
        raise _problems(file.at, f"{said}; {cure}" if cure else said) from None
    except ValueError as error:
        raise _problems(file.at, f'"{file.path}" cannot be used: {error}') from None


def _problems(at: Where, said: str) -> Problems:
    return Problems([Problem(*at, said)])


def _strerror(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "NO_START_LINE"
        return _TLS_WORDS.get(reason, reason.lower().replace("_", " "))
    return (error.strerror or str(error)).lower()


def _check_key(pem: bytes) -> None:
    try:
        load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("there is no key in it, or one with a password; write the path of a key") from None


def _certificate(file: Path) -> x509.Certificate:
    """Raises OSError and ValueError."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError:
        raise ValueError(f"{_NO_PEM}; write the path of a certificate, as PEM") from None


def _shown(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return authority(address, port)
