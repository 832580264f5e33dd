"""When certificates expire and what is said of it: 30 days ahead, of both ends, and of garbage nothing."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from proxy import expiry
from proxy.certificates import issue_client, issue_server, make_authority

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AUTHORITY = make_authority("site", now=NOW)


@pytest.mark.parametrize(
    ("days", "said"),
    [(31, ""), (30, "expires in 30 days, on 2026-03-31"), (1, "expires in 1 day, on"), (0, "has expired on")],
)
def test_of_both_ends(days: int, said: str) -> None:
    own = issue_client(AUTHORITY, "laptop", now=NOW - timedelta(days=10), days=10 + days)
    gateway = issue_server(AUTHORITY, ["gw.example"], now=NOW - timedelta(days=10), days=10 + days)
    shown = base64.b64encode(gateway.der).decode()
    found = expiry.warnings("hq", own.pem.encode(), shown, NOW)
    assert len(found) == (2 if said else 0)
    for line, whose in zip(
        found, ('certificate "laptop" of tunnel hq', "gateway of tunnel hq"), strict=False
    ):
        assert said in line and whose in line and line.endswith("; renew it")


@pytest.mark.parametrize(
    "garbage", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x"]
)
def test_of_garbage_nothing_is_said(garbage: bytes) -> None:
    assert expiry.of_pem(garbage) is None
    assert expiry.of_base64(garbage.decode()) is None
    assert expiry.warnings("hq", garbage, "not base64!", NOW) == []


def test_a_name_cannot_write_to_a_terminal() -> None:
    found = expiry.of_pem(issue_client(AUTHORITY, "\x1b[31m", now=NOW).pem.encode())
    assert found is not None and found.name == ""
