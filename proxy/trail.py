"""The records of all segments as one trail: read as they grow, filtered, put into order, told in a line.

Reads files and changes none. What the chain over them proves is `chain`'s to say.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from proxy.addresses import parse_host
from proxy.audit import EndRecord, GapRecord, HeaderRecord, Record, VerdictRecord, decode
from proxy.chain import MAX_LINE_BYTES, segments_in, sequence_of
from proxy.flow import Verdict

NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Found:
    """One line of a segment: its text, and the record; None where it is none."""

    segment: str
    text: str
    record: Record | None
    at: datetime


class Following:
    """The segments of a directory. Each call gives the whole lines that came since the last one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, int] = {}

    def new(self) -> Iterator[Found]:
        """In the order of their times; raises OSError where the directory cannot be read."""
        present = segments_in(self._directory)
        self._read = {name: size for name, size in self._read.items() if name in present}
        segments = (self._lines(name) for name in sorted(present, key=sequence_of))
        return heapq.merge(*segments, key=lambda found: found.at)

    def latest(self, count: int) -> list[Found]:
        """The latest so many records, in order; the headers of segments are not counted.

        A segment that was written to last before the oldest of these is not read.
        """
        best: list[Found] = []
        stats = {name: (self._directory / name).stat() for name in segments_in(self._directory)}
        for name, stat in sorted(stats.items(), key=lambda row: row[1].st_mtime, reverse=True):
            if not count or (len(best) == count and stat.st_mtime < best[0].at.timestamp()):
                self._read[name] = stat.st_size
                continue
            records = (one for one in self._lines(name) if not isinstance(one.record, HeaderRecord))
            best = sorted([*best, *deque(records, count)], key=lambda found: found.at)[-count:]
        return best

    def _lines(self, name: str) -> Iterator[Found]:
        """A last line without its end was never acknowledged, or is being written."""
        try:
            file = (self._directory / name).open("rb")
        except FileNotFoundError:
            return  # pruned meanwhile
        at = self._read.get(name, 0)
        before = NEVER
        with file:
            file.seek(at)
            while line := file.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                    break
                at += len(line)
                self._read[name] = at
                found = _found(name, line, before)
                before = found.at
                yield found


def _found(segment: str, line: bytes, before: datetime) -> Found:
    """A line that is no record stands where it was found: at the time of the one before it."""
    text = line.decode("ascii", "replace").rstrip("\n")
    try:
        record = decode(line)
    except ValueError:
        return Found(segment, text, None, before)
    return Found(segment, text, record, record.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which records are wanted; what is empty admits all."""

    zone: str = ""
    user: str = ""
    flow: str = ""
    to: str = ""
    verdict: Verdict | None = None
    rule: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def of(
        cls,
        *,
        zone: str = "",
        user: str = "",
        flow: str = "",
        to: str = "",
        verdict: str = "",
        rule: str = "",
        since: str = "",
        until: str = "",
    ) -> Filters:
        """From a command's options; ValueError with the cure."""
        return cls(
            zone=zone,
            user=user,
            flow=flow,
            to=_host(to) if to else "",
            verdict=Verdict[verdict.upper()] if verdict else None,
            rule=rule,
            since=_time(since) if since else None,
            until=_time(until) if until else None,
        )

    def admits(self, found: Found) -> bool:
        """Whether a record is wanted. What is about no flow is, unless something of a flow is asked for."""
        record = found.record
        of = record.of if isinstance(record, EndRecord) else record
        if record is None or not isinstance(of, VerdictRecord):
            return self == Filters()
        return (
            self.zone in ("", of.zone)
            and self.user in ("", of.user)
            and self.flow in ("", of.flow)
            and self.verdict in (None, of.verdict)
            and self.rule in ("", of.because.id)
            and (self.since is None or record.at >= self.since)
            and (self.until is None or record.at < self.until)
            and self._is_to(of)
        )

    def _is_to(self, of: VerdictRecord) -> bool:
        host = of.name or str(of.address)
        if self.to.startswith("*."):
            return of.name is not None and host.endswith(self.to[1:])
        return self.to in ("", host)


def _host(text: str) -> str:
    star = "*." if text.startswith("*.") else ""
    return f"{star}{parse_host(text.removeprefix(star))}"


def _time(text: str) -> datetime:
    """Local where it says no zone."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f'"{text[:80]}" is no time; write 2026-01-05 or 2026-01-05T10:00') from error


# -- in words ----------------------------------------------------------------------------------------


def time_of(found: Found) -> str:
    """The local time of a record; "" of what is none."""
    return _local(found.at) if found.record is not None else ""


def line(found: Found) -> str:
    """For people; times are local. What it shows of names goes to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in "  ".join(_parts(found)))


def _parts(found: Found) -> Iterator[str]:
    record = found.record
    if record is None:
        yield f"{found.segment}: a line that is no record: {found.text[:200]}"
        return
    yield _local(record.at)
    match record:
        case VerdictRecord():
            yield record.verdict.name.lower()
            yield from _flow(record)
            yield f"by {record.because}" + (f" through {record.tunnel}" if record.tunnel else "")
        case EndRecord():
            carried = f"{record.bytes_up} bytes up, {record.bytes_down} down in {record.duration_s:g} s"
            yield "end"
            yield from _flow(record.of)
            yield f"{carried}; {record.why}"
        case GapRecord():
            yield f"gap: {record.lost} records since {_local(record.since)} were lost"
        case HeaderRecord():
            yield f"segment {found.segment} begins"


def _flow(record: VerdictRecord) -> Iterator[str]:
    address = record.address
    host = record.name or (f"[{address}]" if address and address.version == 6 else address)
    yield f"{record.flow}  {record.user}@{record.zone}"
    yield f"{host}:{record.port} {record.protocol}" if host else f"{record.protocol}, before it said where to"


def _local(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
