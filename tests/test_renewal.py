"""New certificates in the files of a tunnel: what is half there changes nothing, what is whole is taken."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loopback import Site

from proxy import renewal
from proxy.certificates import Issued, issue_client, issue_server
from proxy.config import Tunnel
from proxy.renewal import Renewal, follow
from proxy.site import Secret, TunnelFiles, tunnel_files


def now() -> datetime:
    """A moment in which whatever was issued before is valid."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def tunnel(site: Site, tmp_path: Path) -> Tunnel:
    """A tunnel whose files hold the first certificate."""
    found = Tunnel(
        "hq", "127.0.0.1", 1, "gate.example", tmp_path / "ca", ("sha256:p",), tmp_path / "crt",
        tmp_path / "key", False,
    )  # fmt: skip
    found.ca.write_text(site.authority.pem)
    found.key.touch(mode=0o600)
    put(found, site.client)
    return found


def put(tunnel: Tunnel, issued: Issued) -> None:
    tunnel.certificate.write_text(issued.pem)
    tunnel.key.write_bytes(issued.key_pem)


def client(site: Site, **more: Any) -> Issued:
    return issue_client(site.authority, "laptop", **{"now": now(), **more})


def test_untouched_files_are_nothing_new(tunnel: Tunnel) -> None:
    looked = Renewal(tunnel)
    in_use = tunnel_files(tunnel)
    assert looked.wanted(in_use, now()) is None
    tunnel.certificate.write_text(tunnel.certificate.read_text())
    assert (looked.wanted(in_use, now()), looked.trouble) == (None, "")


def test_a_whole_new_pair_is_wanted_until_it_is_in_use(site: Site, tunnel: Tunnel) -> None:
    looked = Renewal(tunnel)
    in_use = tunnel_files(tunnel)
    put(tunnel, client(site))
    wanted = looked.wanted(in_use, now())
    assert wanted is not None and wanted is looked.wanted(in_use, now())
    assert looked.wanted(wanted, now()) is None


def test_what_is_changed_between_the_start_and_the_first_look_is_seen(site: Site, tunnel: Tunnel) -> None:
    in_use = tunnel_files(tunnel)
    put(tunnel, client(site))
    assert Renewal(tunnel).wanted(in_use, now()) is not None


@dataclass(frozen=True, slots=True)
class Half:
    """Files in a state in which a daemon must not take them."""

    sentence: str
    said: str
    how: str

    def __str__(self) -> str:
        return self.sentence


HALVES = [
    Half("the key alone is new", "is not the key of", "key"),
    Half("the certificate alone is new", "is not the key of", "certificate"),
    Half("a half-written certificate", "holds no certificate", "torn"),
    Half("an empty certificate", "holds no certificate", "empty"),
    Half("the key is gone", "cannot be read", "gone"),
    Half("a key that others read", "chmod 600", "mode"),
    Half("a certificate that has expired", "valid from", "old"),
    Half("a certificate of tomorrow", "valid from", "early"),
    Half("a server's certificate", "is not for clients", "server"),
    Half("an authority that is none", "holds no certificate", "ca"),
]


@pytest.mark.parametrize("case", HALVES, ids=str)
def test_what_is_not_whole_and_valid_changes_nothing(site: Site, tunnel: Tunnel, case: Half) -> None:
    looked, in_use, new = Renewal(tunnel), tunnel_files(tunnel), client(site)
    assert looked.wanted(in_use, now()) is None
    match case.how:
        case "key":
            tunnel.key.write_bytes(new.key_pem)
        case "certificate":
            tunnel.certificate.write_text(new.pem)
        case "torn" | "empty":
            put(tunnel, new)
            tunnel.certificate.write_text(new.pem[:200] if case.how == "torn" else "")
        case "gone":
            tunnel.key.unlink()
        case "mode":
            put(tunnel, new)
            tunnel.key.chmod(0o640)
        case "old":
            put(tunnel, client(site, now=now() - timedelta(days=9), days=3))
        case "early":
            put(tunnel, client(site, now=now() + timedelta(days=1)))
        case "server":
            put(tunnel, issue_server(site.authority, ["gate.example"], now=now()))
        case "ca":
            tunnel.ca.write_text("-----BEGIN CERTIFICATE-----\n")
    assert looked.wanted(in_use, now()) is None
    assert case.said in looked.trouble
    tunnel.ca.write_text(site.authority.pem)
    tunnel.key.touch(mode=0o600)
    tunnel.key.chmod(0o600)
    put(tunnel, new)
    assert (looked.wanted(in_use, now()) is not None, looked.trouble) == (True, "")


class FakeKeeper:
    """Takes what `answers` lets it; the rest it refuses with those words."""

    def __init__(self, files: TunnelFiles, answers: list[str]) -> None:
        self.files, self.shown, self.answers = files, "", answers
        self.certificate = files.certificate
        self.tries = 0

    async def renew(self, files: TunnelFiles) -> str:
        self.tries += 1
        words = self.answers.pop(0)
        if not words:
            self.files = files
        return words


def test_it_is_tried_again_until_the_gateway_takes_it(
    site: Site, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LOOK_S", 0.001)
    monkeypatch.setattr(renewal, "AGAIN_S", 0.02)
    said: list[str] = []
    told: list[object] = []
    keeper = FakeKeeper(tunnel_files(tunnel), ["it refused", "it refused", ""])

    async def main() -> None:
        following = asyncio.create_task(follow(tunnel, keeper, told.append, said.append))  # type: ignore[arg-type] # a fake
        async with asyncio.timeout(90):
            put(tunnel, client(site))
            while not told:
                await asyncio.sleep(0.001)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(main())
    assert (keeper.tries, told) == (3, [keeper])
    assert [line for line in said if "the key" not in line and "cannot be read" not in line] == [
        "tunnel hq keeps the certificate that it has: it refused",
        "tunnel hq has its new certificate in use",
    ]


def test_it_says_ahead_of_time_what_will_expire(site: Site, tunnel: Tunnel) -> None:
    said: list[str] = []
    soon = client(site, days=12)
    files = replace(tunnel_files(tunnel), certificate=soon.pem.encode(), key=Secret(soon.key_pem))

    async def main() -> None:
        keeper = FakeKeeper(files, [])
        following = asyncio.create_task(follow(tunnel, keeper, lambda _: None, said.append))  # type: ignore[arg-type] # a fake
        await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(main())
    assert len(said) == 1 and 'the certificate "laptop" of tunnel hq expires in 1' in said[0]
