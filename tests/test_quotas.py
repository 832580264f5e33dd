"""Quotas: what is handed out is never more than the quota, whoever asks, dies, restarts or sets the clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import quotas
from proxy.flow import Transfer
from proxy.messages.worker import AskQuota, QuotaAnswer, WantSegment
from proxy.policy import load
from proxy.policy.model import Quota
from proxy.purse import READ_BYTES, Got, Purses, pocket_of
from proxy.quota_service import answer, status
from proxy.quotas import Key, Ledger, QuotasUnusable, period

BERLIN, LISBON = ZoneInfo("Europe/Berlin"), ZoneInfo("Atlantic/Azores")
NOW = datetime(2026, 3, 4, 10, 30, tzinfo=UTC)
KEY = Key("bulk", "upload", "user", "day", "ann")
MIB = 1 << 20
POLICY = load(
    b"""
policy: 1
name: q
timezone: Europe/Berlin
define:
  zones: [corporate]
  destinations:
    bulk: {to: bulk.example, quota: {upload: 1MiB, per: user, every: day}}
    shared: {to: shared.example, quota: {download: 3MiB, per: zone, every: hour}}
rules: [{id: all, match: {}, verdict: tunnel}]
""",
    "q.yaml",
)
UPLOAD = Quota("bulk", Transfer.UPLOAD, MIB, "user", "day")


def at(text: str, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


# -- periods -----------------------------------------------------------------------------------------

PERIODS = [
    ("a day", "day", at("2026-03-04 10:30"), at("2026-03-04"), at("2026-03-05")),
    ("the last second of a day", "day", at("2026-03-04 23:59:59"), at("2026-03-04"), at("2026-03-05")),
    ("a day of 23 hours", "day", at("2026-03-29 12:00"), at("2026-03-29"), at("2026-03-30")),
    ("a day of 25 hours", "day", at("2026-10-25 12:00"), at("2026-10-25"), at("2026-10-26")),
    ("a week", "week", at("2026-03-04 10:30"), at("2026-03-02"), at("2026-03-09")),
    ("a Monday", "week", at("2026-03-02 00:00"), at("2026-03-02"), at("2026-03-09")),
    ("a week with a change", "week", at("2026-03-29 23:00"), at("2026-03-23"), at("2026-03-30")),
    ("a month", "month", at("2026-02-28 23:00"), at("2026-02-01"), at("2026-03-01")),
    ("a December", "month", at("2026-12-31 23:30"), at("2026-12-01"), at("2027-01-01")),
    ("an hour", "hour", NOW, NOW.replace(minute=0), NOW.replace(hour=11, minute=0)),
]  # fmt: skip


@pytest.mark.parametrize("row", PERIODS, ids=[row[0] for row in PERIODS])
def test_a_period_is_of_the_policys_time_zone(row: tuple[str, str, datetime, datetime, datetime]) -> None:
    _, every, when, start, end = row
    assert period(every, when, BERLIN) == (start, end)


def test_a_day_where_summer_time_changes_has_23_or_25_hours() -> None:
    for text, hours in (("2026-03-29 12:00", 23), ("2026-10-25 12:00", 25)):
        start, end = period("day", at(text), BERLIN)
        assert end - start == timedelta(hours=hours)


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "Atlantic/Azores", "America/New_York", "Africa/Cairo", "UTC"]
)
@pytest.mark.parametrize("every", ["hour", "day", "week", "month"])
def test_periods_follow_each_other_without_a_gap(zone: str, every: str) -> None:
    """Also where midnight is skipped (the Azores) or comes twice."""
    timezone = ZoneInfo(zone)
    when = datetime(2026, 1, 1, tzinfo=UTC)
    start, end = period(every, when, timezone)
    while when < datetime(2026, 12, 1, tzinfo=UTC):
        assert start <= when < end
        assert period(every, end, timezone)[0] == end, (every, end)
        assert period(every, end - timedelta(seconds=1), timezone) == (start, end)
        when = end
        start, end = period(every, when, timezone)
        if every == "hour":
            when += timedelta(hours=37)
            start, end = period(every, when, timezone)


# -- the ledger --------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> list[datetime]:
    return [NOW]


@pytest.fixture
def make(tmp_path: Path, clock: list[datetime]) -> Callable[[], Ledger]:
    return lambda: Ledger(tmp_path / quotas.FILE, lambda: clock[0])


def test_portions_add_up_to_the_quota_and_then_nothing(make: Callable[[], Ledger]) -> None:
    ledger, total = make(), 0
    while (portion := ledger.take(KEY, 3 * MIB, BERLIN, 1)).granted:
        total += portion.granted
    assert total == 3 * MIB and portion.until == at("2026-03-05")


def test_what_was_handed_out_is_remembered(make: Callable[[], Ledger]) -> None:
    ledger = make()
    first = ledger.take(KEY, MIB, BERLIN, 1).granted
    ledger.close()
    ledger = make()
    assert ledger.usage(KEY, MIB, BERLIN).used == first
    total = first
    while granted := ledger.take(KEY, MIB, BERLIN, 1).granted:
        total += granted
        ledger.close()
        ledger = make()
    assert total == MIB
    ledger.close()


def test_the_next_period_opens_it_again_and_a_clock_that_goes_back_does_not(
    make: Callable[[], Ledger], clock: list[datetime]
) -> None:
    ledger = make()
    assert ledger.take(KEY, MIB, BERLIN, MIB).granted == MIB
    clock[0] += timedelta(days=1)
    assert ledger.take(KEY, MIB, BERLIN, MIB).granted == MIB
    for back in (timedelta(days=1), timedelta(days=30), timedelta(minutes=5)):
        clock[0] = NOW + timedelta(days=1) - back
        portion = ledger.take(KEY, MIB, BERLIN, 1)
        assert portion.granted == 0 and portion.until == at("2026-03-06")
    ledger.close()


def test_accounts_are_apart(make: Callable[[], Ledger]) -> None:
    ledger = make()
    others = [Key("bulk", "upload", "user", "day", "bob"), Key("bulk", "download", "user", "day", "ann")]
    for key in (KEY, *others):
        assert ledger.take(key, MIB, BERLIN, MIB).granted == MIB
    ledger.close()


def test_a_smaller_quota_counts_at_once(make: Callable[[], Ledger]) -> None:
    ledger = make()
    ledger.take(KEY, MIB, BERLIN, MIB // 2)
    assert ledger.take(KEY, MIB // 4, BERLIN, 1).granted == 0
    ledger.close()


def test_a_line_that_was_cut_short_was_never_answered(make: Callable[[], Ledger], tmp_path: Path) -> None:
    ledger = make()
    granted = ledger.take(KEY, MIB, BERLIN, 1).granted
    ledger.close()
    with (tmp_path / quotas.FILE).open("ab") as file:
        file.write(b'["bulk","upload"')
    ledger = make()
    assert ledger.usage(KEY, MIB, BERLIN).used == granted
    ledger.take(KEY, MIB, BERLIN, 1)
    ledger.close()
    make().close()


@pytest.mark.parametrize(
    "row",
    [b"nonsense\n", b"[]\n", b"{}\n", b'["a","b","c","d","e","2026-01-01",1]\n', b"[" * 5000 + b"\n"]
    + [b'["a","b","c","d","e","2026-01-01T00:00:00+00:00",%s]\n' % used for used in (b"-1", b'"1"', b"true")],
)
def test_a_file_that_cannot_be_believed_is_refused(
    make: Callable[[], Ledger], tmp_path: Path, row: bytes
) -> None:
    (tmp_path / quotas.FILE).write_bytes(row)
    with pytest.raises(QuotasUnusable, match="begins anew"):
        make()


def test_two_gates_do_not_share_a_file(make: Callable[[], Ledger]) -> None:
    ledger = make()
    with pytest.raises(QuotasUnusable, match="in use"):
        make()
    ledger.close()


def test_a_disk_that_is_full_gives_nothing(
    make: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make()

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger._lines, "sync", full)
    said = answer(
        ledger, POLICY, "corporate", "ann", AskQuota(1, "mallory", "bulk", "upload", "user", "day", 1)
    )
    assert isinstance(said, QuotaAnswer) and said.granted == 0 and "No space left" in said.refused
    ledger.close()


def test_history_is_forgotten_and_what_counts_is_not(
    make: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quotas, "_LONG_ROWS", 10)
    monkeypatch.setattr(quotas, "LEAST_PORTION", 1)
    monkeypatch.setattr(quotas, "MOST_PORTION", 1)
    ledger = make()
    for _ in range(50):
        ledger.take(KEY, MIB, BERLIN, 1)
    ledger.close()
    assert len((tmp_path / quotas.FILE).read_bytes().splitlines()) < 20
    ledger = make()
    assert ledger.usage(KEY, MIB, BERLIN).used == 50
    with pytest.raises(QuotasUnusable, match="in use"):
        make()
    ledger.close()


# -- the service -------------------------------------------------------------------------------------


def test_the_policy_says_what_the_quota_is_and_the_post_whose(make: Callable[[], Ledger]) -> None:
    ledger = make()
    asked = AskQuota(7, "mallory", "bulk", "upload", "user", "day", 10 * MIB)
    said = answer(ledger, POLICY, "corporate", "ann", asked)
    assert said == QuotaAnswer(7, MIB, int(at("2026-03-05").timestamp()), "")
    assert answer(ledger, POLICY, "corporate", "ann", asked) == QuotaAnswer(
        7, 0, int(at("2026-03-05").timestamp()), "used up"
    )
    bobs = answer(ledger, POLICY, "corporate", "bob", asked)
    assert bobs is not None and bobs.granted == MIB
    shared = AskQuota(8, "mallory", "shared", "download", "zone", "hour", 2 * MIB)
    portions = [answer(ledger, POLICY, "corporate", who, shared) for who in ("ann", "bob", "ann")]
    assert [one.granted for one in portions if one] == [2 * MIB, MIB, 0]
    carls = answer(ledger, POLICY, "corporate", None, replace(asked, user="carl"))
    assert carls is not None and carls.granted == MIB
    assert ledger.usage(replace(KEY, who="carl"), MIB, BERLIN).used == MIB
    assert ledger.usage(replace(KEY, who="mallory"), MIB, BERLIN).used == 0
    none = answer(
        ledger, POLICY, "corporate", "ann", AskQuota(9, "mallory", "bulk", "upload", "zone", "day", 1)
    )
    assert none is not None and none.granted == 0 and "no such quota" in none.refused
    assert answer(ledger, POLICY, "corporate", "ann", WantSegment()) is None
    negative = answer(
        ledger, POLICY, "corporate", "dora", AskQuota(9, "mallory", "bulk", "upload", "user", "day", -5)
    )
    assert negative is not None and 0 < negative.granted <= MIB
    ledger.close()


def test_status_tells_users_their_own(make: Callable[[], Ledger]) -> None:
    ledger = make()
    for who in ("ann", "bob"):
        answer(ledger, POLICY, "corporate", who, AskQuota(1, "mallory", "bulk", "upload", "user", "day", MIB))
    answer(
        ledger, POLICY, "corporate", "ann", AskQuota(1, "mallory", "shared", "download", "zone", "hour", 1)
    )
    assert [row["who"] for row in status(ledger, POLICY, None)] == ["ann", "bob", "corporate"]
    anns = status(ledger, POLICY, "ann")
    assert [row["who"] for row in anns] == ["ann", "corporate"]
    assert (anns[0]["used_bytes"], anns[0]["limit_bytes"]) == (MIB, MIB)
    assert anns[0]["until"] == "2026-03-05T00:00+01:00"
    ledger.close()


# -- purses ------------------------------------------------------------------------------------------


def run(main: object) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await main  # type: ignore[misc]  # a coroutine

    asyncio.run(limited())


class Daemon:
    """A ledger as workers reach it, a little late."""

    def __init__(self, ledger: Ledger, limit: int) -> None:
        self.ledger, self.limit, self.silent = ledger, limit, False
        self.asked = 0

    async def ask(self, quota: Quota, wanted: int) -> Got:
        self.asked += 1
        await asyncio.sleep(0 if not self.silent else 60)
        portion = self.ledger.take(Key.of(quota, "ann", "corporate"), self.limit, BERLIN, wanted)
        return Got(portion.granted, int(portion.until.timestamp()), "" if portion.granted else "used up")


@settings(max_examples=25, deadline=None)
@given(limit=st.integers(0, 8 * MIB), seed=st.integers(0, 999), dies=st.booleans())
def test_workers_together_never_carry_more_than_the_quota(
    tmp_path_factory: pytest.TempPathFactory, limit: int, seed: int, dies: bool
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("q") / quotas.FILE, lambda: NOW)
    daemon = Daemon(ledger, limit)
    rng = random.Random(seed)
    carried = [0]

    async def flow(purses: Purses, more: int) -> None:
        pocket = purses.pocket([UPLOAD], BERLIN)
        while more > 0:
            piece = rng.randint(1, 256 * 1024)
            allowed = await pocket.allow(Transfer.UPLOAD, piece)
            carried[0] += allowed
            more -= piece
            if allowed < piece:
                assert "used up" in str(pocket.refusal(Transfer.UPLOAD))
                break
            await asyncio.sleep(0)
        pocket.close()

    async def main() -> None:
        workers = [Purses(daemon.ask, lambda: NOW) for _ in range(3)]
        if dies:
            await flow(Purses(daemon.ask, lambda: NOW), 64 * 1024)  # and is never heard of again
        await asyncio.gather(*(flow(worker, 2 * MIB) for worker in workers for _ in range(2)))

    run(main())
    assert carried[0] <= limit
    if not dies and limit <= 8 * MIB:
        # what is left in the pockets of others is all that may have been denied
        assert carried[0] >= min(limit, 12 * MIB) - 3 * (READ_BYTES + 8 * MIB // 16)
    ledger.close()


def test_one_worker_alone_carries_all_of_it_to_the_byte(make: Callable[[], Ledger]) -> None:
    async def main() -> None:
        ledger = make()
        purses = Purses(Daemon(ledger, 3 * MIB + 7).ask, lambda: NOW)
        total = 0
        while True:  # one flow after the other, each with a pocket of its own
            pocket = purses.pocket([UPLOAD], BERLIN)
            allowed = await pocket.allow(Transfer.UPLOAD, 99_999)
            pocket.close()
            total += allowed
            if allowed < 99_999:
                break
        assert total == 3 * MIB + 7
        refusal = await purses.pocket([UPLOAD], BERLIN).opening()
        assert refusal is not None and refusal.cure == "it opens again 2026-03-05 00:00 CET"
        ledger.close()

    run(main())


def test_what_is_left_of_a_period_is_not_the_next_ones(
    make: Callable[[], Ledger], clock: list[datetime]
) -> None:
    async def main() -> None:
        ledger = make()
        purses = Purses(Daemon(ledger, MIB).ask, lambda: clock[0])
        pocket = purses.pocket([UPLOAD], BERLIN)
        assert await pocket.allow(Transfer.UPLOAD, 1000) == 1000
        clock[0] += timedelta(days=1)
        total = 0
        while allowed := await pocket.allow(Transfer.UPLOAD, 5000):
            total += allowed
        assert total == MIB
        ledger.close()

    run(main())


def test_a_daemon_that_does_not_answer_lets_nothing_go(
    make: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.purse.ASK_LIMIT_S", 0.05)

    async def main() -> None:
        ledger = make()
        daemon = Daemon(ledger, MIB)
        daemon.silent = True
        refusal = await Purses(daemon.ask, lambda: NOW).pocket([UPLOAD], BERLIN).opening()
        assert refusal is not None and "does not answer" in str(refusal)
        ledger.close()

    run(main())


def test_a_flow_that_draws_on_several_goes_as_far_as_the_least(make: Callable[[], Ledger]) -> None:
    async def main() -> None:
        ledger = make()
        small = Quota("small", Transfer.UPLOAD, 100, "user", "hour")

        async def ask(quota: Quota, wanted: int) -> Got:
            return await Daemon(ledger, quota.limit_bytes).ask(quota, wanted)

        pocket = Purses(ask, lambda: NOW).pocket([UPLOAD, small], BERLIN)
        assert await pocket.allow(Transfer.UPLOAD, 1000) == 100
        assert "small" in str(pocket.refusal(Transfer.UPLOAD))
        assert await pocket.allow(Transfer.DOWNLOAD, 1000) == 1000
        ledger.close()

    run(main())


def test_where_nobody_keeps_quotas_nothing_that_has_one_goes() -> None:
    from proxy.policy.facts import make_situation

    there = make_situation(POLICY.model, {"host": ("bulk.example",)}).flow
    elsewhere = make_situation(POLICY.model, {"host": ("other.example",)}).flow
    assert pocket_of(None, POLICY, elsewhere) is None

    async def main() -> None:
        pocket = pocket_of(None, POLICY, there)
        assert pocket is not None
        refusal = await pocket.opening()
        assert refusal is not None and "nobody keeps it" in str(refusal)

    run(main())


def test_flows_that_are_idle_keep_nothing_from_others(make: Callable[[], Ledger]) -> None:
    async def main() -> None:
        ledger = make()
        purses = Purses(Daemon(ledger, MIB).ask, lambda: NOW)
        pockets = [purses.pocket([UPLOAD], BERLIN) for _ in range(100)]
        for pocket in pockets:
            assert await pocket.opening() is None
        assert await pockets[7].allow(Transfer.UPLOAD, MIB) == MIB
        assert ledger.usage(KEY, MIB, BERLIN).used == MIB
        ledger.close()

    run(main())


def test_who_cannot_wait_takes_what_was_filled(make: Callable[[], Ledger]) -> None:
    async def main() -> None:
        ledger = make()
        purses = Purses(Daemon(ledger, 64 * MIB).ask, lambda: NOW)
        pockets = [purses.pocket([UPLOAD], BERLIN) for _ in range(20)]
        for pocket in pockets:
            await pocket.fill(Transfer.UPLOAD)
        for pocket in pockets:  # each has read before any of them is asked again
            assert pocket.take(Transfer.UPLOAD, READ_BYTES) == READ_BYTES
            pocket.close()
        ledger.close()

    run(main())


def test_a_closed_pocket_is_closed_once() -> None:
    purses = Purses(Daemon(None, 0).ask, lambda: NOW)  # type: ignore[arg-type]  # never asked
    pocket = purses.pocket([UPLOAD], BERLIN)
    pocket.close()
    pocket.close()
    assert purses.of(UPLOAD).pockets == 0
