"""What is seen on the devices of a network namespace, by the signs that each attempt leaves on its packets.

One packet socket without a device sees them all, also those that come later. Frames without a sign are the
host's own business and are not kept. Knows no attempt: a sign leads to a number.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 3, 263, 6, 33
_BUFFER_BYTES = 32 << 20
_SNAPPED_BYTES = 4096
_LOOK_S = 0.05
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806


@dataclass(frozen=True, slots=True)
class Sign:
    """Bytes at a place of a packet of one kind, from its network header on, and whose they are."""

    kind: int
    offset: int
    content: bytes
    number: int


@dataclass(slots=True)
class Signs:
    """All signs of a test. A mark is `prefix` and the number in three digits, anywhere in a frame."""

    prefix: bytes
    at: Mapping[int, Mapping[tuple[int, int], Mapping[bytes, int]]]

    @classmethod
    def of(cls, prefix: bytes, signs: Iterable[Sign]) -> Signs:
        """Signs by the kind and place at which they are looked for."""
        at: dict[int, dict[tuple[int, int], dict[bytes, int]]] = defaultdict(lambda: defaultdict(dict))
        for sign in signs:
            at[sign.kind][sign.offset, sign.offset + len(sign.content)][sign.content] = sign.number
        return cls(prefix, at)

    def find(self, kind: int, packet: bytes) -> set[int]:
        """The numbers whose signs a packet bears."""
        found = set()
        start = packet.find(self.prefix)
        while start >= 0:
            end = start + len(self.prefix)
            if (digits := packet[end : end + 3]).isdigit():
                found.add(int(digits))
            start = packet.find(self.prefix, end)
        for (low, high), wanted in self.at.get(kind, {}).items():
            if (number := wanted.get(packet[low:high])) is not None:
                found.add(number)
        return found


def packet_socket() -> socket.socket:
    """A socket that sees every device of this process's network namespace. PermissionError without rights."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_ALL))
    with contextlib.suppress(OSError):  # beyond the limit only with rights on the host
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    sock.setblocking(False)
    return sock


@dataclass(slots=True)
class Sightings:
    """What was seen since the last look: where each number was, and how many frames were missed."""

    where: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    missed: int = 0


class Capture:
    """Looks at a packet socket, or at several listening ones (see ground), in a thread until `close`."""

    def __init__(self, sock: socket.socket, signs: Signs) -> None:
        self._sock, self._signs = sock, signs
        self._lock = threading.Lock()
        self._found = Sightings()
        self._ended = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            while not self._ended:
                if selector.select(_LOOK_S):
                    self._take()

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                packet, (device, kind, *_) = self._sock.recvfrom(_SNAPPED_BYTES)
                if numbers := self._signs.find(kind, packet):
                    with self._lock:
                        for number in numbers:
                            self._found.where[number].add(device)

    def take(self, settle_s: float) -> Sightings:
        """What was seen since the last call; what is under way has `settle_s` to arrive."""
        time.sleep(settle_s)
        with self._lock:
            found, self._found = self._found, Sightings()
        found.missed = self._missed()
        return found

    def _missed(self) -> int:
        """packet(7): PACKET_STATISTICS, which are reset by reading them."""
        with contextlib.suppress(OSError):
            _, dropped = struct.unpack("=II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            return int(dropped)
        return 0

    def close(self) -> None:
        """Look no more."""
        self._ended = True
        self._thread.join()
        self._sock.close()
