"""Time: windows in local time, through both changes of summer time, and their next edges."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
import random_policies as random

from proxy.policy.model import Window
from proxy.policy.source import Where
from proxy.policy.values import merge_spans, parse_window
from proxy.policy.windows import is_open, local_minute, next_edge

BERLIN = ZoneInfo("Europe/Berlin")


def window(*texts: str) -> Window:
    return Window("w", merge_spans([span for text in texts for span in parse_window(text)]), Where("f", 1, 1))


def opens(found: Window, local: str, fold: int = 0, timezone: ZoneInfo = BERLIN) -> bool:
    at = datetime.fromisoformat(local).replace(tzinfo=timezone, fold=fold).astimezone(UTC)
    return is_open(found, local_minute(at, timezone)[0])


@pytest.mark.parametrize(
    ("text", "local", "is_in"),
    [
        ("mon-fri 07:00-19:00", "2026-01-05 07:00", True),
        ("mon-fri 07:00-19:00", "2026-01-05 06:59", False),
        ("mon-fri 07:00-19:00", "2026-01-09 18:59", True),
        ("mon-fri 07:00-19:00", "2026-01-09 19:00", False),
        ("mon-fri 07:00-19:00", "2026-01-10 12:00", False),
        ("fri-mon 00:00-24:00", "2026-01-11 23:59", True),
        ("fri-mon 00:00-24:00", "2026-01-06 00:00", False),
        ("sun 22:00-06:00", "2026-01-12 05:59", True),
        ("sun 22:00-06:00", "2026-01-11 05:59", False),
        ("daily 22:00-06:00", "2026-03-29 01:59", True),
        ("daily 03:00-04:00", "2026-03-29 03:00", True),
        ("sat,sun 10:00-24:00", "2026-01-10 23:59", True),
    ],
)
def test_a_window_is_open_from_its_first_to_before_its_last_minute(
    text: str, local: str, is_in: bool
) -> None:
    assert opens(window(text), local) is is_in


def test_an_hour_that_is_skipped_opens_nothing_and_one_that_comes_twice_is_in_twice() -> None:
    """02:00-03:00 does not exist in Berlin on 2026-03-29 and comes twice on 2026-10-25."""
    night = window("sun 02:00-03:00")
    start = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)
    spring = [is_open(night, local_minute(start + timedelta(minutes=m), BERLIN)[0]) for m in range(180)]
    assert not any(spring)
    assert opens(night, "2026-10-25 02:30", fold=0) and opens(night, "2026-10-25 02:30", fold=1)


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
)
@pytest.mark.parametrize("seed", range(4))
def test_the_next_edge_is_the_first_minute_at_which_anything_changes(zone: str, seed: int) -> None:
    rng, timezone = Random(f"{zone}{seed}"), ZoneInfo(zone)
    texts = rng.sample(["mon-fri 07:00-19:00", "daily 22:00-06:00", "sun 01:30-02:30", "sat 00:00-24:00"], 2)
    windows, last_days = [window(text) for text in texts], [date(2026, 3, 29)]
    at = datetime(2026, 3, 26, tzinfo=UTC) + timedelta(minutes=rng.randrange(6 * 1440))

    def state(when: datetime) -> tuple[object, ...]:
        minute, day = local_minute(when, timezone)
        return (*(is_open(found, minute) for found in windows), *(day > last for last in last_days))

    wanted = at + timedelta(minutes=1)
    while state(wanted) == state(at):
        wanted += timedelta(minutes=1)
    assert next_edge(windows, last_days, timezone, at) == wanted


def test_an_edge_behind_a_week_whose_hour_is_skipped_is_found() -> None:
    at = datetime(2026, 3, 22, 12, tzinfo=UTC)
    assert next_edge([window("sun 02:00-03:00")], [], BERLIN, at) == datetime(2026, 4, 5, tzinfo=UTC)


def test_there_is_no_edge_where_nothing_ever_changes() -> None:
    assert next_edge([window("daily 00:00-24:00")], [], BERLIN, datetime(2026, 1, 1, tzinfo=UTC)) is None
    assert next_edge([], [date(2020, 1, 1)], BERLIN, datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_a_policy_says_the_same_edge_whichever_instant_it_was_asked_for_before() -> None:
    """It remembers its last answer: forward, backward and at the edge itself it is that of a fresh look."""
    rules = [{"id": "a", "match": {"to": "code"}, "verdict": "tunnel", "expires": "2026-03-29"}]
    policy = random.load({"policy": 1, "name": "p", "define": random.DEFINE, "rules": rules})
    model, rng = policy.model, Random("edges")
    at = datetime(2026, 3, 20, tzinfo=UTC)
    for _ in range(60):
        wanted = next_edge(model.windows, [date(2026, 3, 29)], model.timezone, at)
        assert policy.next_edge(at) == wanted
        assert wanted is not None
        steps = [timedelta(minutes=rng.randrange(1, 300)), timedelta(minutes=-rng.randrange(1, 3000))]
        at = rng.choice([wanted, wanted - timedelta(minutes=1), *(at + step for step in steps)])


def test_that_nothing_ever_changes_is_looked_at_again_after_a_day() -> None:
    always = {**random.DEFINE, "windows": {"office": "daily 00:00-24:00"}}
    rules = [{"id": "a", "match": {"to": "code"}, "verdict": "tunnel", "expires": "2026-01-01"}]
    policy = random.load({"policy": 1, "name": "p", "define": always, "rules": rules})
    at = datetime(2026, 3, 20, tzinfo=UTC)
    assert [policy.next_edge(at + timedelta(hours=hours)) for hours in (0, 1, 25)] == [None] * 3
    assert policy.next_edge(datetime(2025, 12, 1, tzinfo=UTC)) is not None


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        local_minute(datetime(2026, 1, 1), BERLIN)  # noqa: DTZ001  # that is the point
