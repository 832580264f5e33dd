"""What is written down of a flow, and by whom: the verdict before anything is dialled, the end after it.

Decides nothing about a flow, but without a written verdict there is none: AuditUnwritable means block.
Touches one append-only descriptor, handed in by the supervisor. Runs in the sealed worker; it never
knows directories, rotation or the chain over sealed segments (`segments`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from proxy.flow import Because, IPAddress, Origin, Protocol, Verdict
from proxy.lines import LineFile

# ASCII alone: nothing that some reader takes for the end of a line (U+2028), or a terminal for a command.
_json = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_MAX_TEXT = 1024  # characters of one field: names may be junk, and a record is one write


class AuditUnwritable(Exception):
    """A record could not be written; the text says why. The flow must not be let through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRecord:
    """A flow was judged. `name` is None for a literal address, `address` None while the name's is not known
    here; `tunnel`, `peer` (a fingerprint) and `proof_age_s` are None where no tunnel was concerned.
    `request` is method and path where a request was inspected, None for a flow that was not."""

    at: datetime
    flow: str
    zone: str
    user: str
    bubble: str
    name: str | None
    address: IPAddress | None
    port: int
    protocol: Protocol
    verdict: Verdict
    because: Because
    policy: str
    tunnel: str | None
    peer: str | None
    proof_age_s: float | None
    enforcement: str
    request: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRecord:
    """A flow ended. `of` is its verdict with what became known since (its address, for instance)."""

    at: datetime
    of: VerdictRecord
    bytes_up: int
    bytes_down: int
    duration_s: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRecord:
    """So many records could not be written since then; the flows of lost verdicts were blocked."""

    at: datetime
    since: datetime
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRecord:
    """The first line of a segment. `previous` is the head of the chain when it was opened."""

    at: datetime
    zone: str
    worker: str
    sequence: int
    previous: str


type Record = VerdictRecord | EndRecord | GapRecord | HeaderRecord


def encode(record: Record) -> bytes:
    """One line of ASCII JSON, with its end. Raises ValueError for a number that JSON has not."""
    match record:
        case VerdictRecord():
            shown = {"record": "verdict", "at": rfc3339(record.at), **_facts(record)}
        case EndRecord():
            shown = {
                "record": "end",
                "at": rfc3339(record.at),
                "judged_at": rfc3339(record.of.at),
                **_facts(record.of),
                "bytes_up": record.bytes_up,
                "bytes_down": record.bytes_down,
                "duration_s": record.duration_s,
                "why": _clip(record.why),
            }
        case GapRecord():
            at, since = rfc3339(record.at), rfc3339(record.since)
            shown = {"record": "gap", "at": at, "since": since, "lost": record.lost}
        case HeaderRecord():
            shown = {
                "record": "segment",
                "at": rfc3339(record.at),
                "zone": record.zone,
                "worker": record.worker,
                "sequence": record.sequence,
                "previous": record.previous,
            }
    return _json.encode(shown).encode("ascii") + b"\n"


def decode(line: bytes) -> Record:
    """The record of a line; raises ValueError for what `encode` does not write."""
    try:
        shown = json.loads(line)
        at = datetime.fromisoformat(shown["at"])
        match shown["record"]:
            case "verdict":
                return _verdict(at, shown)
            case "end":
                return EndRecord(
                    at=at,
                    of=_verdict(datetime.fromisoformat(shown["judged_at"]), shown),
                    bytes_up=int(shown["bytes_up"]),
                    bytes_down=int(shown["bytes_down"]),
                    duration_s=float(shown["duration_s"]),
                    why=str(shown["why"]),
                )
            case "gap":
                since = datetime.fromisoformat(shown["since"])
                return GapRecord(at=at, since=since, lost=int(shown["lost"]))
            case "segment":
                text = {key: str(shown[key]) for key in ("zone", "worker", "previous")}
                return HeaderRecord(at=at, sequence=int(shown["sequence"]), **text)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not an audit record") from error
    raise ValueError("not an audit record")


def _facts(record: VerdictRecord) -> dict[str, Any]:
    because = record.because
    return {
        "flow": _clip(record.flow),
        "zone": _clip(record.zone),
        "user": _clip(record.user),
        "bubble": _clip(record.bubble),
        "name": _clip(record.name),
        "address": None if record.address is None else str(record.address),
        "port": record.port,
        "protocol": record.protocol.value,
        "verdict": record.verdict.name.lower(),
        "because": {
            "origin": because.origin.value,
            "id": _clip(because.id),
            "text": _clip(because.text),
            "where": _clip(because.where),
        },
        "policy": _clip(record.policy),
        "tunnel": _clip(record.tunnel),
        "peer": _clip(record.peer),
        "proof_age_s": record.proof_age_s,
        "enforcement": _clip(record.enforcement),
        "request": _clip(record.request),
    }


def _verdict(at: datetime, shown: Mapping[str, Any]) -> VerdictRecord:
    because = shown["because"]
    address, age = shown["address"], shown["proof_age_s"]
    return VerdictRecord(
        at=at,
        address=None if address is None else ip_address(address),
        port=int(shown["port"]),
        protocol=Protocol(shown["protocol"]),
        verdict=Verdict[str(shown["verdict"]).upper()],
        because=Because(
            Origin(because["origin"]), str(because["id"]), str(because["text"]), str(because["where"])
        ),
        proof_age_s=None if age is None else float(age),
        name=_optional(shown["name"]),
        tunnel=_optional(shown["tunnel"]),
        peer=_optional(shown["peer"]),
        request=_optional(shown.get("request")),  # older segments have none
        **{key: str(shown[key]) for key in ("flow", "zone", "user", "bubble", "policy", "enforcement")},
    )


def _optional(text: object) -> str | None:
    return None if text is None else str(text)


def rfc3339(at: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clip[T: (str, str | None)](text: T) -> T:
    return text if text is None or len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… {len(text)} characters"


class Segment:
    """One worker's open segment. `trouble` is empty, or says why new flows are being denied.

    After a write has failed every verdict tries again, and the first that succeeds ends the trouble; a
    gap record before it says how many were lost. `is_full` asks the owner for the next segment.
    """

    def __init__(self, fd: int, *, max_bytes: int) -> None:
        self._lines, self._max_bytes = LineFile(fd), max_bytes
        self._lost, self._lost_since = 0, datetime.min.replace(tzinfo=UTC)
        self._barred = ""
        self.trouble = ""

    @property
    def is_full(self) -> bool:
        """Whether the next segment should be asked for. This one can still be written to."""
        return self._lines.size_bytes >= self._max_bytes

    def verdict(self, record: VerdictRecord) -> None:
        """Write it, before anything is dialled; raises AuditUnwritable."""
        if self._barred:
            self._lose(record.at, self._barred)
            raise AuditUnwritable(self._barred)
        self._write(record)

    def end(self, record: EndRecord) -> None:
        """Write it; raises AuditUnwritable, and then the next verdict has to end the trouble."""
        self._write(record)

    def replace(self, fd: int) -> None:
        """Go on in the next segment; the old descriptor is closed and may be sealed."""
        following = LineFile(fd)
        self._lines.close()
        self._lines, self._barred, self.trouble = following, "", ""

    def bar(self, reason: str) -> None:
        """There is no next segment: deny new flows until there is."""
        self._barred = self.trouble = reason

    def close(self) -> None:
        """Close the descriptor."""
        self._lines.close()

    def _write(self, record: VerdictRecord | EndRecord) -> None:
        try:
            line = encode(record)
            if self._lost:
                gap = GapRecord(at=record.at, since=self._lost_since, lost=self._lost)
                line = encode(gap) + line  # in one write: a gap that is told has ended
            self._lines.append(line)
        except (OSError, ValueError) as error:
            reason = f"the audit record cannot be written: {getattr(error, 'strerror', None) or error}"
            self._lose(record.at, reason)
            raise AuditUnwritable(reason) from error
        self._lost, self.trouble = 0, self._barred

    def _lose(self, at: datetime, reason: str) -> None:
        if not self._lost:
            self._lost_since = at
        self._lost += 1
        self.trouble = reason


@dataclass(slots=True)
class Tally:
    """For a personal zone, in place of a Segment: counts, and neither name nor address is kept."""

    flows: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    bytes_up: int = 0
    bytes_down: int = 0
    is_full: bool = False
    trouble: str = ""

    def verdict(self, record: VerdictRecord) -> None:
        """Count it."""
        self.flows[record.verdict] += 1

    def end(self, record: EndRecord) -> None:
        """Count its bytes."""
        self.bytes_up += record.bytes_up
        self.bytes_down += record.bytes_down
