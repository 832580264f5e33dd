"""Time: which windows are open at an instant, and when that next changes.

Windows are parts of the local week. An instant is brought to local time before it is compared, so the
changes of summer time need no rule of their own: an hour that is skipped opens nothing, and an hour that
comes twice is in the window twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from proxy.policy.model import Window
from proxy.policy.values import DAY

_HORIZON_DAYS = 16  # where summer time skips the hour of a window, that week has none


def local_minute(at: datetime, timezone: ZoneInfo) -> tuple[int, date]:
    """The minute of the local week and the local date. Raises ValueError for a time without a zone."""
    if at.tzinfo is None:
        raise ValueError("the time of a flow has no time zone; give it one")
    local = at.astimezone(timezone)
    return local.weekday() * DAY + local.hour * 60 + local.minute, local.date()


def is_open(window: Window, minute: int) -> bool:
    """Whether a minute of the local week lies in a window."""
    return any(span.start <= minute < span.end for span in window.spans)


def next_edge(
    windows: Iterable[Window], expiries: Iterable[date], timezone: ZoneInfo, at: datetime
) -> datetime | None:
    """The first instant after `at` at which a window opens or closes or something expires; None if never."""
    windows, last_days = tuple(windows), sorted(set(expiries))

    def state(when: datetime) -> tuple[object, ...]:
        minute, day = local_minute(when, timezone)
        return (*(is_open(w, minute) for w in windows), *(day > last for last in last_days))

    candidates = {_utc(datetime.combine(day + timedelta(days=1), time()), timezone, 0) for day in last_days}
    if windows:
        candidates |= _window_candidates(windows, timezone, at)
    now = state(at)
    return next((when for when in sorted(candidates) if when > at and state(when) != now), None)


def _utc(local: datetime, timezone: ZoneInfo, fold: int) -> datetime:
    return local.replace(tzinfo=timezone, fold=fold).astimezone(UTC)


def _window_candidates(windows: tuple[Window, ...], timezone: ZoneInfo, at: datetime) -> set[datetime]:
    """Every instant within the horizon at which the clock could reach or leave a window."""
    edges = {edge % DAY for window in windows for span in window.spans for edge in (span.start, span.end)}
    first = at.astimezone(timezone).date() - timedelta(days=1)
    found = set()
    for days in range(_HORIZON_DAYS + 1):
        midnight = datetime.combine(first + timedelta(days=days), time())
        for minute in edges:
            found |= {_utc(midnight + timedelta(minutes=minute), timezone, fold) for fold in (0, 1)}
    return found | set(_clock_changes(timezone, at))


def _clock_changes(timezone: ZoneInfo, at: datetime) -> Iterable[datetime]:
    """The instants within the horizon at which the offset from UTC changes."""

    def offset(when: datetime) -> timedelta | None:
        return when.astimezone(timezone).utcoffset()

    start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    for hours in range(_HORIZON_DAYS * 24):
        low, high = start + timedelta(hours=hours), start + timedelta(hours=hours + 1)
        if offset(low) == offset(high):
            continue
        while high - low > timedelta(minutes=1):
            middle = low + (high - low) // 2
            middle = middle.replace(second=0, microsecond=0)
            low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
        yield high
