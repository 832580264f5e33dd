"""The two holders of a packet tunnel with their supervisor, with each other, and with workers.

The outer holder stands where the tunnel's own datagrams leave and keeps the program that makes the tunnel;
the inner one stands in the tunnel's namespace, probes, and connects sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proxy.messages.holding import Serve, TunnelSetup


@dataclass(frozen=True, slots=True)
class HoldPackets:
    """To a new outer holder, once. Descriptors: the private key, and the preshared one if there is one."""

    descriptors: ClassVar[tuple[int, int]] = (1, 2)

    tunnel: TunnelSetup
    probe_every_ms: int
    probe_limit_ms: int
    drop_to_uid: int


TO_OUTER = (HoldPackets, Serve)
type ToOuter = HoldPackets | Serve


@dataclass(frozen=True, slots=True)
class PacketEvidence:
    """What was seen of a packet tunnel. It judges nothing.

    `peer` is the key of the device's only peer, several keys with commas where somebody added one, "" while
    there is no device; `endpoint` where the device last heard that peer. `handshake_ns` is the moment at
    which its newest handshake was noticed, `answered_ns` the moment at which the last answered probe was
    sent; 0 is never. `broken`: process or device are gone. `altered`: the device is not as it was made.
    `underlay` is the trouble of the way to the endpoint, `words` that of the probe.
    """

    peer: str
    endpoint: str
    handshake_ns: int
    answered_ns: int
    broken: bool
    altered: bool
    underlay: str
    words: str


# -- between the holders -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """To a new inner holder, once. `device` is the name that the tunnel's device will have."""

    tunnel: TunnelSetup
    device: str
    probe_every_ms: int
    probe_limit_ms: int
    drop_to_uid: int


@dataclass(frozen=True, slots=True)
class Made:
    """The namespace is there and shut. Descriptors: the network namespace; of an ordinary user's tunnel also
    the user and mount namespaces, and the socket on its loopback that takes the tunnel's own datagrams."""

    descriptors: ClassVar[tuple[int, int]] = (1, 4)


@dataclass(frozen=True, slots=True)
class DeviceIsThere:
    """The device is in the namespace: address it and begin."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe has ended: the moment at which it was sent if it was answered, 0 otherwise."""

    answered_ns: int
    words: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The tunnel cannot go on: its namespace could not be made, or its device is gone."""

    words: str


TO_INNER = (Begin, DeviceIsThere, Serve)
type ToInner = Begin | DeviceIsThere | Serve
FROM_INNER = (Made, Probed, Failed)
type FromInner = Made | Probed | Failed


# -- with a worker -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """A socket inside the tunnel, connected to a judged address; `transport` is tcp or udp.

    A TCP socket comes back connecting: whoever gets it waits until it is writable and asks for its error.
    A UDP socket hears from that address and port alone.
    """

    number: int
    transport: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The answer to Connect: one socket, or why there is none."""

    descriptors: ClassVar[tuple[int, int]] = (0, 1)

    number: int
    trouble: str
