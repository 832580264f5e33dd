"""The bytes of one connected socket, plain or under TLS, each direction ended on its own.

asyncio's transports are not used: its TLS transport cannot end one direction and keep the other, and
both keep buffers for each connection. A channel holds nothing while it waits. It works on sockets that
were handed over and calls neither socket, connect, bind, listen nor getaddrinfo, so it runs in a process
to which seccomp forbids them.

    plain      the Channel protocol, its errors, and the socket itself
    tls        TLS 1.3 over a plain channel; who the peer is
    contexts   what TLS both ends agree to
    connect    HTTP/1.1 CONNECT through a channel, and the probe
    around     a channel that does what another does
    lingering  one last thing that a peer reads, whatever it was still saying
"""

from proxy.channel.connect import ConnectFailed, ConnectRefused, connect_through, probe
from proxy.channel.contexts import client_context, server_context
from proxy.channel.plain import (
    Aborted,
    Backlog,
    Channel,
    NotAdmitted,
    PlainChannel,
    Reset,
    Truncated,
)
from proxy.channel.tls import HandshakeFailed, SaidNothing, TlsChannel, WrongPeer, tls_client, tls_server

__all__ = [
    "Aborted",
    "Backlog",
    "Channel",
    "ConnectFailed",
    "ConnectRefused",
    "HandshakeFailed",
    "NotAdmitted",
    "PlainChannel",
    "Reset",
    "SaidNothing",
    "TlsChannel",
    "Truncated",
    "WrongPeer",
    "client_context",
    "connect_through",
    "probe",
    "server_context",
    "tls_client",
    "tls_server",
]
