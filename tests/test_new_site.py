"""`zonegate init` and `zonegate cert`: what they make is whole, ours alone, and replaces nothing."""

from __future__ import annotations

import json
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy import new_site
from proxy.cli import zonegate
from proxy.config import Tunnel
from proxy.gateway.service import load, tls
from proxy.site import load_site


def call(*words: str) -> Result:
    return CliRunner().invoke(zonegate, [str(word) for word in words])


@pytest.fixture
def corp(tmp_path: Path) -> Path:
    """A site for both ends on one machine."""
    made = call("init", str(tmp_path / "corp"))
    assert made.exit_code == 0, made.output
    return tmp_path / "corp"


def test_both_ends_take_their_files(corp: Path) -> None:
    loaded = load_site(corp / "laptop/zonegate.yaml")
    assert list(loaded.site.tunnels) == ["hq"]
    config = load(corp / "gateway/gateway.yaml")
    tls(config)
    assert config.revoked is not None


def test_everything_is_ours_alone(corp: Path) -> None:
    for path in (corp, *corp.rglob("*")):
        found = stat.S_IMODE(path.stat().st_mode)
        assert found == (0o700 if path.is_dir() else 0o644 if path.suffix == ".crt" else 0o600), path


def test_its_keys_are_kept_out_of_git_and_its_policy_is_not(corp: Path) -> None:
    subprocess.run(["git", "init", "-q", corp], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-o", "--exclude-standard"], cwd=corp, capture_output=True, check=True
    )
    kept = set(listed.stdout.decode().split())
    assert "laptop/corporate.policy.yaml" in kept
    assert not [path for path in kept if path.endswith(".key") or path.startswith("authority/")]


def test_a_directory_that_holds_anything_is_left_as_it_is(corp: Path) -> None:
    before = {path: path.read_bytes() for path in corp.rglob("*") if path.is_file()}
    again = call("init", str(corp))
    assert (again.exit_code, "is not empty" in again.output) == (2, True)
    assert {path: path.read_bytes() for path in corp.rglob("*") if path.is_file()} == before
    assert call("init", str(corp / "laptop/zonegate.yaml")).exit_code == 2


def test_the_policy_passes_its_tests_and_claims(corp: Path) -> None:
    assert call("check", str(corp / "laptop/corporate.policy.yaml")).exit_code == 0
    done = call("test", str(corp / "laptop"))
    assert (done.exit_code, "100%" in done.output) == (0, True)


def test_a_gateway_elsewhere(tmp_path: Path) -> None:
    made = call("init", str(tmp_path / "corp"), "--gateway", "gw.acme.example:9443")
    assert made.exit_code == 0, made.output
    tunnel = load_site(tmp_path / "corp/laptop/zonegate.yaml").site.tunnels["hq"]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.host, tunnel.port, tunnel.server_name) == ("gw.acme.example", 9443, "gw.acme.example")
    config = load(tmp_path / "corp/gateway/gateway.yaml")
    assert [str(one.address) for one in config.listen] == ["0.0.0.0"]
    shipped = (new_site.POLICIES / "corporate.policy.yaml").read_bytes()
    assert (tmp_path / "corp/laptop/corporate.policy.yaml").read_bytes() == shipped


@pytest.mark.parametrize("gateway", ["gw", "gw:0", "gw:99999", "0x7f.1:8443", ":8443", "a b:1", 'a"b:1'])
def test_a_gateway_that_is_none_makes_nothing(tmp_path: Path, gateway: str) -> None:
    made = call("init", str(tmp_path / "corp"), "--gateway", gateway)
    assert made.exit_code == 2, made.output
    assert list(tmp_path.iterdir()) == []


def test_the_life_of_a_certificate(corp: Path) -> None:
    site = ("--site", str(corp))
    assert "made" in call("cert", "issue", "two", *site, "--days", "40").output
    assert call("cert", "list", *site).exit_code == 0
    assert call("cert", "issue", "three", *site, "--days", "20").exit_code == 0
    listed = call("cert", "list", *site)
    assert (listed.exit_code, "expires soon" in listed.output) == (1, True)
    assert call("cert", "renew", "three", *site).exit_code == 0
    assert call("cert", "list", *site).exit_code == 0
    assert call("cert", "revoke", "two", *site).exit_code == 0
    rows = json.loads(call("cert", "list", "--json", *site).output)
    assert [f"{row['name']} {row['state']}" for row in rows] == [
        "gateway valid", "laptop valid", "three valid", "three replaced", "two revoked",
    ]  # fmt: skip
    assert rows[4]["fingerprint"] in (corp / "gateway/revoked.txt").read_text()


def test_a_check_says_ahead_of_time_what_expires(corp: Path) -> None:
    config = str(corp / "laptop/zonegate.yaml")
    assert call("up", "--check", "-c", config).output == "zonegate: nothing is wrong with these files\n"
    assert call("cert", "renew", "laptop", "--days", "20", "--site", str(corp)).exit_code == 0
    done = call("up", "--check", "-c", config)
    assert (done.exit_code, 'the certificate "laptop" of tunnel hq expires in' in done.output) == (0, True)


def test_what_cannot_be_is_one_line(corp: Path, tmp_path: Path) -> None:
    for words in (("issue", "../x"), ("renew", "nobody"), ("revoke", "nobody"), ("revoke", "gateway")):
        done = call("cert", *words, "--site", str(corp))
        assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert call("cert", "list", "--site", str(tmp_path)).exit_code == 2


def test_an_expired_one_is_told(corp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override] # the command's only use of it
            return datetime.now(UTC) + timedelta(days=500)

    monkeypatch.setattr("proxy.cli.cert.datetime", Later)
    done = call("cert", "list", "--site", str(corp))
    assert (done.exit_code, done.output.count("expired")) == (1, 2)
