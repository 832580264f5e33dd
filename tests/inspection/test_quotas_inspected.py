"""Quotas of inspected requests: their bodies count, to the byte, and a refusal says when it opens again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from inspected import Origin, inspected, whole_requests
from loopback import Site, runner

from proxy.policy import load
from proxy.policy.model import Quota
from proxy.purse import Accounts, Got

POLICY = b"""
policy: 1
name: quotas
define:
  zones: [corporate]
  destinations:
    site: {to: site.example, quota: {upload: 1GiB, download: 1GiB, per: user, every: day}}
guards: [{id: no-delete, match: {method: DELETE}, at_most: block}]
rules: [{id: site, match: {to: site}, verdict: tunnel}]
"""
TOMORROW = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def accounts(**left: int) -> Accounts:
    """So many bytes in each direction, and no more today."""

    async def ask(user: str, quota: Quota, wanted: int) -> Got:
        granted = min(left[quota.transfer], wanted)
        left[quota.transfer] -= granted
        return Got(granted, TOMORROW, "" if granted else "used up")

    return Accounts(ask, lambda: datetime.now(UTC))


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_an_upload_ends_at_the_byte(site: Site, tmp_path: Path, tls: bool) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=tls, policy=POLICY) as world:
            world.accounts = accounts(upload=300_000, download=1 << 20)
            up = world.request("POST", "/up", "Content-Length: 200000", body=b"u" * 200_000)
            reader, writer = await world.open()
            writer.write(up)
            assert b"200 OK" in await world.read(reader, b"fine\n")
            writer.write(up)
            heard = await world.read(reader)
            writer.close()
            assert b"403 Forbidden" in heard and b"upload quota of site" in heard
            assert b"opens again 2100-01-01 00:00 UTC" in heard
            assert origin.everything.count(b"u" * 50_000) and origin.everything.count(b"u") <= 300_100
            await world.ended()
            assert sum(end.bytes_up for end in world.ends()) == 300_000
            heard = await world.say(up)
            assert b"403 Forbidden" in heard and b"quota" in heard
            assert len(origin.heard) == 1

    runner("asyncio")(main())


def test_a_download_ends_at_the_byte(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests(b"d" * 200_000))
        async with inspected(site, tmp_path, origin, tls=True, policy=POLICY) as world:
            world.accounts = accounts(upload=1 << 20, download=100_000)
            heard = await world.say(world.request())
            assert heard.count(b"d") <= 100_010
            await world.ended()
            assert sum(end.bytes_down for end in world.ends()) == 100_000

    runner("asyncio")(main())


def test_where_nobody_keeps_them_nothing_goes(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, policy=POLICY) as world:
            heard = await world.say(world.request())
            assert heard.startswith(b"HTTP/1.1 403") and not origin.heard
            assert world.verdicts() == [("block", "quota", "GET /")]

    runner("asyncio")(main())


def test_a_connection_from_before_a_quota_does_not_escape_it(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, policy=POLICY.replace(b"upload: 1GiB, ", b"")) as world:
            world.accounts = accounts(upload=0, download=1 << 20)
            reader, writer = await world.open()
            world.gate.policy = load(POLICY, "p.yaml")
            writer.write(world.request("POST", "/up", "Content-Length: 3", body=b"abc"))
            heard = await world.read(reader, b"</html>")
            assert b"403 Forbidden" in heard and b"quota" in heard and not origin.everything
            writer.close()
            await world.ended()

    runner("asyncio")(main())
