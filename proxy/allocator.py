"""The synthetic addresses of one zone: a name gets an address, and a flow to it is known by its name.

Decides which address a name has, which bubble may use it, and when it may mean another name. Touches
one journal. Never knows DNS, policy, sockets, or what a name resolves to. It lives in the supervisor
and outlives workers and restarts; there is one for a journal (the file is locked).

An address is answered only after its journal line is written. The line need not reach the disk: the
page cache survives every process, and a crash of the machine ends the bubbles that know the address.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

from proxy import namespaces
from proxy.addresses import parse_name
from proxy.flow import Because, IPAddress, Origin, Refusal
from proxy.journal import Boot, Gone, Journal, Rest, Row, Told

POOL_V4 = IPv4Network("198.18.0.0/15")  # RFC 2544: for benchmarks, so nothing real is hidden by it
POOL_V6 = IPv6Network("fd00:7a67::/64")  # RFC 4193; never leaves a namespace, so it need not be random
POOL_SIZE = POOL_V4.num_addresses
# What no policy may grant as an address: the pools, and the gate's own addresses in a zone.
OWN_NETWORKS = (POOL_V4, POOL_V6, ip_network(namespaces.OWN_V4), ip_network(namespaces.OWN_V6))
FIRST_OFFSET = 256  # below it: kept for the gate's own addresses, should it need any

_BASE_V4, _BASE_V6 = int(POOL_V4.network_address), int(POOL_V6.network_address)
_BUBBLE_MAX = 128


class NameFault(StrEnum):
    """Why a name has no address, or an address no name: the id of the refusal's `because`."""

    JOURNAL = "names-journal"
    INVALID = "names-invalid"
    QUOTA = "names-quota"
    EXHAUSTED = "names-exhausted"
    UNREACHABLE = "names-unreachable"
    UNKNOWN = "names-unknown"


@dataclass(frozen=True, slots=True)
class Synthetic:
    """The two addresses of one name: the same offset in both pools."""

    v4: IPv4Address
    v6: IPv6Address

    @classmethod
    def at(cls, offset: int) -> Synthetic:
        """The pair at an offset, 0 ≤ offset < POOL_SIZE."""
        if not 0 <= offset < POOL_SIZE:
            raise ValueError(f"offset {offset} is outside the pool")
        return cls(IPv4Address(_BASE_V4 + offset), IPv6Address(_BASE_V6 + offset))


def is_synthetic(address: IPAddress) -> bool:
    """Whether an address lies in a pool, allocated or not; it must never be judged as an address."""
    return address in (POOL_V4 if isinstance(address, IPv4Address) else POOL_V6)


def offset_of(address: IPAddress) -> int | None:
    """The offset that an address stands for, None when it can stand for no name."""
    base = _BASE_V4 if isinstance(address, IPv4Address) else _BASE_V6
    offset = int(address) - base
    return offset if FIRST_OFFSET <= offset < POOL_SIZE else None


@dataclass(slots=True)
class _Slot:
    name: str
    bubbles: set[str] = field(default_factory=set)


class Allocator:
    """Names to addresses and back. `clock` gives wall-clock seconds, `boot` names this start of the
    machine (bubbles of another are dead).

    `quota` is how many names one living bubble may have been told, whoever asked for them first: it
    bounds what one bubble can hold of the pool. An address rests `quarantine_s` after the last bubble
    that was told it has gone (its flows ended with it), and only then may mean another name.

    Raises JournalUnusable when the journal cannot be opened or trusted. One that can only not be
    written to is opened: known addresses keep their names, and new ones are refused.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
        boot: str,
        quota: int = 4096,
        quarantine_s: float = 24 * 3600,
        pool_size: int = POOL_SIZE,
    ) -> None:
        self._clock, self.quota, self._quarantine_s = clock, quota, quarantine_s
        self._pool_size = min(pool_size, POOL_SIZE)
        self._slots: dict[int, _Slot] = {}
        self._offsets: dict[str, int] = {}
        self._told: dict[str, set[int]] = {}  # bubble → offsets
        self._resting: dict[int, float] = {}  # offset → since when, oldest first
        self._fresh = FIRST_OFFSET  # everything from here on was never used
        self._boot = ""
        self._journal = Journal(path, this_boot=boot, replay=self._apply)
        if self._boot != boot:
            self._remember(Boot(boot, clock()))
        self._compact()

    def allocate(self, bubble: str, name: str) -> Synthetic | Refusal:
        """The addresses of a canonical `name`, from now on usable by `bubble`; the same every time."""
        offset = self._offsets.get(name)
        if offset is not None and bubble in self._slots[offset].bubbles:
            return Synthetic.at(offset)
        if not _is_canonical(name) or not 0 < len(bubble) <= _BUBBLE_MAX:
            return _refusal(NameFault.INVALID, "not a host name")
        if len(self._told.get(bubble, ())) >= self.quota:
            return _refusal(
                NameFault.QUOTA,
                f"this bubble has asked for {self.quota} different names",
                "leave the bubble and start it again",
            )
        if offset is None and (offset := self._vacant()) is None:
            return _refusal(
                NameFault.EXHAUSTED, "every synthetic address of the zone is in use", "end bubbles"
            )
        row = Told(offset, name, bubble)
        try:
            self._journal.append(row)
        except OSError as error:
            text = f"the names' journal cannot be written: {error.strerror}"
            return _refusal(NameFault.JOURNAL, text, "make room on its disk")
        self._apply(row)
        if self._journal.is_long:
            self._compact()
        return Synthetic.at(offset)

    def name_of(self, bubble: str, address: IPAddress) -> str | None:
        """The name behind an address, None unless this very bubble was told it.

        So a bubble can neither read nor reach what only others asked for by walking through the pool.
        """
        offset = offset_of(address)
        slot = None if offset is None else self._slots.get(offset)
        return slot.name if slot is not None and bubble in slot.bubbles else None

    def release(self, bubble: str) -> None:
        """The bubble and all its flows have ended. A journal that cannot be written is told later,
        before anything else; until then a restart takes the bubble for living, which only holds more.
        """
        if bubble in self._told:
            self._remember(Gone(bubble, self._clock()))

    def bubbles(self) -> frozenset[str]:
        """Those that were told a name and not released. A new supervisor releases what it did not adopt."""
        return frozenset(self._told)

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()

    def _vacant(self) -> int | None:
        if self._fresh < self._pool_size:
            return self._fresh
        now = self._clock()
        for offset, since in self._resting.items():
            if since > now:  # the clock was set back: count again from here
                self._resting[offset] = now
            return offset if now - since >= self._quarantine_s else None
        return None

    def _remember(self, row: Row) -> None:
        self._apply(row)
        self._journal.owe(row)

    def _apply(self, row: Row) -> None:
        """Bring one journal row about. Raises ValueError for one that contradicts those before it."""
        match row:
            case Told():
                slot = self._take(row.offset, row.name)
                slot.bubbles.add(row.bubble)
                self._told.setdefault(row.bubble, set()).add(row.offset)
                self._resting.pop(row.offset, None)
            case Rest():
                if self._take(row.offset, row.name).bubbles:
                    raise ValueError(f"offset {row.offset} does not rest")
                self._resting[row.offset] = row.at
            case Gone():
                self._forget(row.bubble, row.at)
            case Boot():
                self._boot = row.boot_id
                for bubble in tuple(self._told):
                    self._forget(bubble, row.at)

    def _take(self, offset: int, name: str) -> _Slot:
        if not FIRST_OFFSET <= offset < POOL_SIZE:
            raise ValueError(f"offset {offset} is outside the pool")
        slot = self._slots.get(offset)
        if slot is not None and slot.name == name:
            return slot
        if name in self._offsets or (slot is not None and slot.bubbles):
            raise ValueError(f"'{name}' and offset {offset} are already taken")
        if slot is not None:
            del self._offsets[slot.name]
        self._slots[offset] = slot = _Slot(name)
        self._offsets[name] = offset
        self._fresh = max(self._fresh, offset + 1)
        return slot

    def _forget(self, bubble: str, at: float) -> None:
        for offset in sorted(self._told.pop(bubble, ())):
            bubbles = self._slots[offset].bubbles
            bubbles.discard(bubble)
            if not bubbles:
                self._resting[offset] = at

    def _rows(self) -> list[Row]:
        """The state as the shortest journal: what rests, oldest first, then who was told what."""
        rows: list[Row] = [Boot(self._boot, 0.0)]
        rows += [Rest(offset, self._slots[offset].name, at) for offset, at in self._resting.items()]
        rows += [
            Told(offset, slot.name, bubble)
            for offset, slot in self._slots.items()
            for bubble in sorted(slot.bubbles)
        ]
        return rows

    def _compact(self) -> None:
        with suppress(OSError):  # a full disk: the old journal is whole and stays in use
            self._journal.compact(self._rows())


def _is_canonical(name: str) -> bool:
    try:
        return parse_name(name) == name
    except ValueError:
        return False


def _refusal(fault: NameFault, text: str, cure: str = "") -> Refusal:
    return Refusal(Because(Origin.GATE, fault, text), cure)
