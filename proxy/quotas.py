"""How much of each quota is used: remembered before a byte of it may go, and right across workers.

Bytes are handed out in portions, and what was handed out counts as used, whoever dies with it: so the sum of
what goes is never more than the quota. A portion is for the period in which it was handed out. Lives in the
supervisor; touches one file, which is synced before a portion is given. Knows no flow and no socket.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from proxy.lines import LineFile, whole_lines
from proxy.policy.model import Quota

FILE = "quotas.jsonl"
LEAST_PORTION, MOST_PORTION = 64 << 10, 64 << 20
_LONG_ROWS = 4096


class QuotasUnusable(Exception):
    """The file cannot be opened or believed; one line with the cure."""


@dataclass(frozen=True, slots=True)
class Key:
    """One account: of a destination's quota, a user's or a zone's."""

    destination: str
    transfer: str
    per: str
    every: str
    who: str

    @classmethod
    def of(cls, quota: Quota, user: str, zone: str) -> Key:
        """The account that a flow of a user in a zone draws on."""
        who = user if quota.per == "user" else zone
        return cls(quota.destination, quota.transfer, quota.per, quota.every, who)


@dataclass(frozen=True, slots=True)
class Portion:
    """Bytes that may go until the period ends; 0 where the quota is used up, and opens again then."""

    granted: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """One account as `status` tells it: `used` is what was handed out in its period."""

    key: Key
    used: int
    limit: int
    opens: datetime


@dataclass(slots=True)
class _Account:
    start: datetime
    used: int


def period(every: str, at: datetime, timezone: ZoneInfo) -> tuple[datetime, datetime]:
    """The period in which an instant lies: its first instant and the first of the next, in UTC.

    Days begin at local midnight, weeks on Mondays. Where summer time changes, a day has 23 or 25 hours;
    an hour is sixty minutes, whatever the clocks show.
    """
    if every == "hour":
        start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return start, start + timedelta(hours=1)
    day = at.astimezone(timezone).date()
    match every:
        case "day":
            first, after = day, day + timedelta(days=1)
        case "week":
            first = day - timedelta(days=day.weekday())
            after = first + timedelta(days=7)
        case "month":
            first = day.replace(day=1)
            after = (first + timedelta(days=32)).replace(day=1)
        case _:
            raise ValueError(f'"{every}" is no period')
    return _midnight(first, timezone), _midnight(after, timezone)


def _midnight(day: date, timezone: ZoneInfo) -> datetime:
    """The first instant of a local day; where midnight is skipped, the first that there is."""
    return datetime.combine(day, time(), timezone).astimezone(UTC)


class Ledger:
    """The accounts in a file, which nobody else may have open. Raises QuotasUnusable."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._path, self._clock = path, clock
        self._accounts: dict[Key, _Account] = {}
        fd = _open_locked(path)
        try:
            lines, size = whole_lines(path.read_bytes())
            for number, line in enumerate(lines, 1):
                self._replay(line, number)
        except BaseException:
            os.close(fd)
            raise
        self._lines, self._rows = LineFile(fd, size), len(lines)

    def _replay(self, line: bytes, number: int) -> None:
        try:
            destination, transfer, per, every, who, start, used = json.loads(line)
            key = Key(*map(_text, (destination, transfer, per, every, who)))
            began = datetime.fromisoformat(_text(start))
            if type(used) is not int or used < 0 or began.tzinfo is None:
                raise ValueError
        except (ValueError, TypeError, RecursionError) as error:
            cure = "remove it, and every quota begins anew"
            raise QuotasUnusable(
                f"{self._path}:{number}: this row of the quotas cannot be read; {cure}"
            ) from error
        self._accounts[key] = _Account(began, used)

    def take(self, key: Key, limit: int, timezone: ZoneInfo, wanted: int) -> Portion:
        """A portion, at least what is wanted if there is as much. Raises OSError, and then gives nothing."""
        start, end = self._period(key, timezone)
        account = self._accounts.get(key)
        used = account.used if account is not None and account.start >= start else 0
        left = max(0, limit - used)
        granted = min(left, max(wanted, LEAST_PORTION, min(left // 16, MOST_PORTION)))
        if granted:
            self._write(key, start, used + granted)
            self._accounts[key] = _Account(start, used + granted)
        return Portion(granted, end)

    def _period(self, key: Key, timezone: ZoneInfo) -> tuple[datetime, datetime]:
        """The present period, or the last that was seen: a clock that goes back refills nothing."""
        start, end = period(key.every, self._clock(), timezone)
        account = self._accounts.get(key)
        if account is not None and account.start > start:
            return account.start, period(key.every, account.start, timezone)[1]
        return start, end

    def usage(self, key: Key, limit: int, timezone: ZoneInfo) -> Usage:
        """How much of an account is used now."""
        start, end = self._period(key, timezone)
        account = self._accounts.get(key)
        used = account.used if account is not None and account.start >= start else 0
        return Usage(key, used, limit, end)

    def accounts(self) -> Iterator[Key]:
        """Every account that was ever drawn on."""
        return iter(tuple(self._accounts))

    def close(self) -> None:
        """Close and unlock the file."""
        self._lines.close()

    # -- the file ----------------------------------------------------------------------------------

    def _write(self, key: Key, start: datetime, used: int) -> None:
        self._lines.append(_row(key, start, used))
        self._lines.sync()
        self._rows += 1
        if self._rows > _LONG_ROWS + 2 * len(self._accounts):
            self._compact(key, start, used)

    def _compact(self, key: Key, start: datetime, used: int) -> None:
        """Put the present rows in place of the history."""
        self._rows = 0  # also when it fails: not again at once
        rows = {**self._accounts, key: _Account(start, used)}
        fresh = self._path.with_suffix(".new")
        fd = _open_locked(fresh, os.O_TRUNC)
        try:
            file = LineFile(fd)
            file.append(b"".join(_row(k, account.start, account.used) for k, account in rows.items()))
            file.sync()
            fresh.rename(self._path)
        except BaseException:
            os.close(fd)
            raise
        self._lines.close()
        self._lines, self._rows = file, len(rows)


def _row(key: Key, start: datetime, used: int) -> bytes:
    cells = [key.destination, key.transfer, key.per, key.every, key.who, start.isoformat(), used]
    return json.dumps(cells, separators=(",", ":")).encode() + b"\n"


def _text(cell: object) -> str:
    if not isinstance(cell, str):
        raise ValueError("not a text")
    return cell


def _open_locked(path: Path, more: int = 0) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | more
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise QuotasUnusable(f"cannot open the quotas '{path}': {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise QuotasUnusable(f"the quotas '{path}' are in use; stop the other gate first") from error
    return fd
