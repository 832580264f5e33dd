"""The authority of a site: what it issues, renews, revokes and lists, as files."""

from __future__ import annotations

import stat
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from proxy import certificates
from proxy.authority import REVOKED, Authority, AuthorityError, Kind, State
from proxy.gateway.judge import Client
from proxy.gateway.revoked import Revocations, parse_revocations

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """With a gateway and a laptop."""
    made = Authority.create(tmp_path, "tunnels", NOW)
    made.issue("gateway", Kind.GATEWAY, NOW, hosts=["gw.corp.example", "192.0.2.7"])
    made.issue("laptop", Kind.CLIENT, NOW)
    return made


def states(authority: Authority, now: datetime = NOW) -> dict[str, list[State]]:
    found: dict[str, list[State]] = {}
    for one in authority.records(now):
        found.setdefault(one.name, []).append(one.state)
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_for_each_machine_with_what_it_needs(authority: Authority, tmp_path: Path) -> None:
    assert {path.name for path in (tmp_path / "laptop").iterdir()} == {"laptop.crt", "laptop.key", "ca.crt"}
    assert {path.name for path in (tmp_path / "gateway").iterdir()} == {
        "gateway.crt", "gateway.key", "ca.crt", REVOKED,
    }  # fmt: skip
    assert mode(tmp_path / "laptop") == mode(tmp_path / "authority") == 0o700
    assert mode(tmp_path / "laptop/laptop.key") == mode(tmp_path / "authority/ca.key") == 0o600
    assert states(authority) == {"gateway": [State.VALID], "laptop": [State.VALID]}


def test_nothing_that_exists_is_replaced(authority: Authority, tmp_path: Path) -> None:
    before = (tmp_path / "laptop/laptop.key").read_bytes()
    with pytest.raises(AuthorityError, match="cert renew laptop"):
        authority.issue("laptop", Kind.CLIENT, NOW)
    authority.revoke("laptop", NOW)
    with pytest.raises(AuthorityError, match="exists; move it away"):
        authority.issue("laptop", Kind.CLIENT, NOW)
    with pytest.raises(FileExistsError):
        Authority.create(tmp_path, "again", NOW)
    assert (tmp_path / "laptop/laptop.key").read_bytes() == before


@dataclass(frozen=True, slots=True)
class Wrong:
    sentence: str
    name: str
    said: str
    kind: Kind = Kind.CLIENT
    hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Wrong("a name that leads elsewhere", "../x", "cannot be a name"),
        Wrong("an option", "-x", "cannot be a name"),
        Wrong("the authority's own folder", "authority", "cannot be a name"),
        Wrong("an empty name", "", "cannot be a name"),
        Wrong("a client with a host", "b", "carries no host", hosts=("b.example",)),
        Wrong("a gateway whose name is no host", "1.2.3", "--host", Kind.GATEWAY),
        Wrong("a host that is none", "gw", "--host", Kind.GATEWAY, ("0x7f.1",)),
    ],
    ids=str,
)
def test_refused_and_nothing_is_left(authority: Authority, tmp_path: Path, case: Wrong) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AuthorityError, match=case.said):
        authority.issue(case.name, case.kind, NOW, hosts=case.hosts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["gateway", "laptop"])
def test_a_renewal_keeps_names_use_and_key_and_needs_no_private_key(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    certificate, key = tmp_path / name / f"{name}.crt", tmp_path / name / f"{name}.key"
    before = certificates.read_issued(certificate, key)
    private = key.read_bytes()
    key.unlink()
    made = authority.renew(name, NOW + 10 * DAY)
    key.write_bytes(private)
    after = certificates.read_issued(certificate, key)
    assert (after.pin, made.pin) == (before.pin, before.pin)
    assert after.certificate.subject == before.certificate.subject
    assert made.until > before.certificate.not_valid_after_utc
    assert states(authority, NOW + 10 * DAY)[name] == [State.VALID, State.REPLACED]
    assert _sans(after) == _sans(before)
    assert not list(tmp_path.glob("*/.*"))


def _sans(issued: certificates.Issued) -> list[str]:
    """Names and uses."""
    kinds = (x509.SubjectAlternativeName, x509.ExtendedKeyUsage)
    return [str(one.value) for one in issued.certificate.extensions if isinstance(one.value, kinds)]


def test_a_renewal_with_a_new_key_has_a_new_pin(authority: Authority, tmp_path: Path) -> None:
    before = authority.records(NOW)[0]
    made = authority.renew("gateway", NOW, new_key=True)
    read = certificates.read_issued(tmp_path / "gateway/gateway.crt", tmp_path / "gateway/gateway.key")
    assert read.pin == made.pin != before.pin
    assert mode(tmp_path / "gateway/gateway.key") == 0o600


def test_what_cannot_be_renewed(authority: Authority) -> None:
    with pytest.raises(AuthorityError, match="cert issue desktop"):
        authority.renew("desktop", NOW)
    authority.revoke("laptop", NOW)
    with pytest.raises(AuthorityError, match="it anew"):
        authority.renew("laptop", NOW)


def test_revoking_a_name_ends_all_of_its_certificates_at_every_gateway(
    authority: Authority, tmp_path: Path
) -> None:
    authority.renew("laptop", NOW + DAY, new_key=True)
    authority.issue("two.example", Kind.GATEWAY, NOW)
    written_by_hand = tmp_path / "gateway" / REVOKED
    written_by_hand.write_text("serial=4A1F")  # without an end of line, as editors leave it
    ended = authority.revoke("laptop", NOW + DAY)
    assert len({one.fingerprint for one in ended}) == 2
    assert states(authority, NOW + DAY)["laptop"] == [State.REVOKED, State.REVOKED]
    for folder, others in (("authority", 0), ("gateway", 1), ("two.example", 0)):
        listed = parse_revocations((tmp_path / folder / REVOKED).read_bytes())
        assert len(listed) == 2 + others
        assert {one.fingerprint.removeprefix("sha256:") for one in ended} <= listed
    with pytest.raises(AuthorityError, match="still counts"):
        authority.revoke("laptop", NOW + DAY)


def test_a_gateway_that_is_made_later_knows_who_was_revoked_before(
    authority: Authority, tmp_path: Path
) -> None:
    (ended,) = authority.revoke("laptop", NOW)
    authority.issue("later.example", Kind.GATEWAY, NOW)
    revocations = Revocations(tmp_path / "later.example" / REVOKED, lambda: 0.0)
    assert revocations.lists(Client("laptop", ended.fingerprint, ""))


def test_one_certificate_by_its_serial_number(authority: Authority) -> None:
    before = next(one for one in authority.records(NOW) if one.name == "laptop")
    authority.renew("laptop", NOW + DAY, new_key=True)
    authority.revoke(before.serial.lower(), NOW + DAY)
    assert states(authority, NOW + DAY)["laptop"] == [State.VALID, State.REVOKED]


def test_the_list_for_other_gateways_is_one_that_openssl_checks(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    (tmp_path / "site").mkdir()
    made = Authority.create(tmp_path / "site", "tunnels", now)
    for name in ("stays", "goes"):
        made.issue(name, Kind.CLIENT, now)
    made.revoke("goes", now)
    (tmp_path / "crl.pem").write_bytes(made.revocation_list(now))
    ca = tmp_path / "site/authority/ca.crt"
    for name, said in (("stays", ": OK"), ("goes", "certificate revoked")):
        leaf = tmp_path / f"site/{name}/{name}.crt"
        command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CRLfile", str(tmp_path / "crl.pem")]
        done = subprocess.run(
            [*command, "-CAfile", str(ca), str(leaf)], capture_output=True, text=True, check=False
        )
        assert said in done.stdout + done.stderr


def test_gateways_are_ended_at_the_gates(authority: Authority) -> None:
    with pytest.raises(AuthorityError, match="pin out of"):
        authority.revoke("gateway", NOW)
    with pytest.raises(AuthorityError, match="nothing was issued"):
        authority.revoke("nobody", NOW)


@pytest.mark.parametrize(
    ("days", "state"),
    [(0, State.VALID), (366, State.VALID), (368, State.SOON), (397, State.EXPIRED)],
)
def test_thirty_days_ahead(authority: Authority, days: int, state: State) -> None:
    assert states(authority, NOW + days * DAY)["laptop"] == [state]


def test_nothing_outlives_the_authority(authority: Authority, tmp_path: Path) -> None:
    late = NOW + 3640 * DAY
    made = authority.issue("last", Kind.CLIENT, late)
    assert made.until <= authority.certificate().not_valid_after_utc
    with pytest.raises(AuthorityError, match="itself has expired"):
        authority.issue("beyond", Kind.CLIENT, NOW + 3651 * DAY)
    assert not (tmp_path / "beyond").exists()


def test_listing_needs_no_key_and_issuing_says_that_it_does(authority: Authority, tmp_path: Path) -> None:
    key = tmp_path / "authority/ca.key"
    key.chmod(0o640)
    with pytest.raises(AuthorityError, match="chmod 600"):
        authority.issue("b", Kind.CLIENT, NOW)
    key.unlink()
    assert len(authority.records(NOW)) == 2
    authority.revoke("laptop", NOW)
    with pytest.raises(AuthorityError, match="is needed here"):
        authority.issue("b", Kind.CLIENT, NOW)
    assert not (tmp_path / "b").exists()


def test_elsewhere_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="--site"):
        Authority(tmp_path)
