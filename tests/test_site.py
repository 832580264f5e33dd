"""What a daemon reads at its start, and everything for which it does not start."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy import site
from proxy.certificates import Issued, issue_client, issue_server, make_authority, write_issued
from proxy.site import Secret, SiteError, TunnelFiles, load_site

SITE = """\
zonegate: 1
policy: zone.policy.yaml
zones:
  corporate: {tunnels: [hq]}
tunnels:
  hq:
    kind: mtls
    gateway: gw.example:8443
    ca: ca.crt
    pins: ["sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
    certificate: laptop.crt
    key: laptop.key
people:
  "*": {zones: [corporate]}
"""
POLICY = """\
policy: 1
name: site
define:
  zones: [corporate, lab]
  groups: [engineering]
guards:
  - {id: guard, match: {zone: corporate}, at_most: tunnel}
rules:
  - {id: any, match: {zone: corporate, to: [a.example]}, verdict: tunnel}
"""
NEEDS_ADDRESSES = "  - {id: private, match: {to: [10.0.0.0/8]}, at_most: block}\nrules:"

COUNTED = (
    "define:\n  destinations:\n    bulk: {to: [10.0.0.0/8], quota: {upload: 1MiB, per: user, every: day}}\n"
)
SCANNED = "define:\n  destinations:\n    bulk: {to: [b.example, 10.0.0.0/8], scan: [iban]}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The site file of a directory in which nothing is wrong."""
    for name, text in {"zonegate.yaml": SITE, "zone.policy.yaml": POLICY}.items():
        (tmp_path / name).write_text(text)
    now = datetime.now(UTC)
    authority = make_authority("site", now=now)
    (tmp_path / "ca.crt").write_text(authority.pem)
    write_issued(issue_client(authority, "laptop", now=now), tmp_path, "laptop")
    return tmp_path / "zonegate.yaml"


def certificate(make: Callable[[Issued, datetime], Issued]) -> Callable[[Path], object]:
    """Another pair of certificate and key in place of the good one."""

    def change(directory: Path) -> None:
        now = datetime.now(UTC)
        for name in ("laptop.crt", "laptop.key"):
            (directory / name).unlink()
        write_issued(make(make_authority("site", now=now), now), directory, "laptop")

    return change


def of_another_pair(directory: Path) -> None:
    now = datetime.now(UTC)
    other = issue_client(make_authority("site", now=now), "laptop", now=now)
    (directory / "laptop.key").write_bytes(other.key_pem)


def test_what_is_read(file: Path) -> None:
    found = load_site(file)
    assert found.policy_text == POLICY.encode()
    assert found.policy.zones == ("corporate", "lab")
    assert list(found.site.tunnels) == ["hq"]
    hq = found.files["hq"]
    assert isinstance(hq, TunnelFiles)
    read = (hq.ca, hq.certificate, hq.key.reveal())
    assert read == tuple((file.parent / name).read_bytes() for name in ("ca.crt", "laptop.crt", "laptop.key"))


def test_a_secret_is_not_shown(file: Path) -> None:
    found = load_site(file)
    hq = found.files["hq"]
    assert isinstance(hq, TunnelFiles)
    shown = f"{found} {found.files!r} {hq.key!s} {[hq.key]}"
    secret = (file.parent / "laptop.key").read_text().splitlines()[1]
    assert secret not in shown and "PRIVATE KEY" not in shown
    with pytest.raises(AttributeError):
        Secret(b"x").more = 1  # type: ignore[attr-defined]  # that is what is tried


# -- refused -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wrong:
    """`change` makes something wrong in the directory; `words` must all be said."""

    sentence: str
    change: Callable[[Path], object]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.sentence


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        text = (directory / name).read_text()
        assert old in text
        (directory / name).write_text(text.replace(old, new))

    return change


def mode(bits: int) -> Callable[[Path], object]:
    return lambda directory: (directory / "laptop.key").chmod(bits)


def replace_by(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


def remove(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def link(path: Path) -> None:
    """A link to a key that others can read."""
    other = path.with_name("elsewhere")
    other.write_text("the secret")
    other.chmod(0o644)
    path.symlink_to(other)


def of_another_user(directory: Path) -> None:
    os.chown(directory / "laptop.key", 65534, 65534)


YAML, RULES, KEY = "zonegate.yaml", "zone.policy.yaml", "laptop.key"
CURE = "chmod 600"
WRONG = [
    Wrong("a key that its group can read", mode(0o640), ("laptop.key", "can be read by others", CURE)),
    Wrong("a key that everybody can read", mode(0o604), ("laptop.key", "can be read by others", CURE)),
    Wrong("a key that its group can write", mode(0o620), ("laptop.key", CURE)),
    Wrong("a link to such a key", replace_by(KEY, link), ("laptop.key", "can be read by others")),
    Wrong("a key of another user", of_another_user, ("laptop.key", "belongs to another user")),
    Wrong("a key that is not there", remove(KEY), (KEY, 'key of tunnel "hq"', "No such")),
    Wrong("a key that is a pipe", replace_by(KEY, os.mkfifo), ("laptop.key", "not a regular file")),
    Wrong("a policy that is a pipe", replace_by(RULES, os.mkfifo), (RULES, "not a regular file")),
    Wrong("a policy that is a directory", replace_by(RULES, Path.mkdir), (RULES, "directory")),
    Wrong("a certificate that is not there", remove("laptop.crt"), ("certificate of tunnel",)),
    Wrong("a ca that is not there", remove("ca.crt"), ('ca of tunnel "hq"',)),
    Wrong(
        "a certificate that is none",
        lambda place: (place / "laptop.crt").write_text("none"),
        ("laptop.crt", "holds no certificate", "BEGIN CERTIFICATE"),
    ),
    Wrong("a ca that is none", lambda at: (at / "ca.crt").write_text("none"), ("ca.crt", "ca of tunnel")),
    Wrong(
        "a key that is none",
        lambda place: (place / KEY).write_text("none"),
        (KEY, "no private key in PEM without a password"),
    ),
    Wrong("the key of another pair", of_another_pair, (KEY, "is not the key of", "laptop.crt")),
    Wrong(
        "a certificate that has expired",
        certificate(lambda ca, now: issue_client(ca, "laptop", now=now - timedelta(days=500))),
        ("laptop.crt", "is valid from", "issue a new one"),
    ),
    Wrong(
        "a server's certificate",
        certificate(lambda ca, now: issue_server(ca, ["laptop.example"], now=now)),
        ("laptop.crt", "is not for clients", "clientAuth"),
    ),
    Wrong(
        "a group that the policy does not know",
        edit(YAML, '"*": {zones: [corporate]}', '"*": {zones: [corporate], groups: [enginering]}'),
        ('group "enginering" of "*"', 'did you mean "engineering"?'),
    ),
    Wrong(
        "nobody who may enter, by root",
        edit(YAML, 'people:\n  "*": {zones: [corporate]}\n', ""),
        ("nobody may enter any zone", "people"),
    ),
    Wrong("a site file that is not there", remove(YAML), (YAML, "cannot be read")),
    Wrong("an unknown key, with its place", edit(YAML, "kind:", "kynd:"), ("zonegate.yaml:7:5", "kynd")),
    Wrong("a fault in the policy, with its place", edit(RULES, "to:", "too:"), (f"{RULES}:9:", "too")),
    Wrong(
        "a zone that the policy does not know",
        edit(RULES, "zones: [corporate, lab]", "zones: [lab, other]\n#"),
        ("corporate",),
    ),
    Wrong(
        "a policy that needs addresses behind a gateway that judges them alone",
        edit(RULES, "rules:", NEEDS_ADDRESSES),
        ("blocks addresses", 'tunnel "hq"', "judges_addresses: true"),
    ),
    Wrong(
        "a quota for networks that names would escape",
        edit(RULES, "define:\n", COUNTED),
        (f"{RULES}:5:", '"bulk" has networks', 'zone "corporate"', 'tunnel "hq"', "list every name"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_daemon_does_not_start_with(file: Path, case: Wrong) -> None:
    case.change(file.parent)
    with pytest.raises(SiteError) as refused:
        load_site(file)
    for words in case.words:
        assert words in str(refused.value)
    assert "PRIVATE KEY" not in str(refused.value)


def test_a_zone_that_only_the_site_knows_is_named_with_those_there_are(file: Path) -> None:
    edit(YAML, "  corporate: {tunnels: [hq]}", "  corporate: {tunnels: [hq]}\n  garden: {tunnels: [hq]}")(
        file.parent
    )
    with pytest.raises(SiteError, match=r'zone "garden" is not in policy .*, which has corporate, lab'):
        load_site(file)


def test_a_gateway_that_is_trusted_with_addresses_may_have_such_a_policy(file: Path) -> None:
    edit(RULES, "rules:", NEEDS_ADDRESSES)(file.parent)
    edit(YAML, "    kind: mtls\n", "    kind: mtls\n    judges_addresses: true\n")(file.parent)
    assert load_site(file).policy.needs_addresses("corporate")


def test_a_gateway_that_is_trusted_with_addresses_does_not_scan_them(file: Path) -> None:
    edit(RULES, "define:\n", SCANNED)(file.parent)
    edit(YAML, "    kind: mtls\n", "    kind: mtls\n    judges_addresses: true\n")(file.parent)
    with pytest.raises(SiteError, match=r'"bulk" has networks, and a scan.* tunnel "hq" resolves it'):
        load_site(file)
    edit(RULES, "[b.example, 10", "[a.example, b.example, 10")(file.parent)
    assert load_site(file), "every name that may go is one of its own"


def test_every_problem_of_the_files_is_said_at_once(file: Path) -> None:
    edit(YAML, "  corporate: {tunnels: [hq]}", "  corporate: {tunnels: [hq]}\n  garden: {tunnels: [hq]}")(
        file.parent
    )
    mode(0o644)(file.parent)
    with pytest.raises(SiteError) as refused:
        load_site(file)
    assert len(str(refused.value).splitlines()) == 2


def test_a_file_without_end_is_not_read_to_its_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "MAX_FILE_BYTES", 1 << 20)
    (file.parent / "ca.crt").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(SiteError, match="is longer than 1 MiB"):
        load_site(file)


def test_a_key_that_is_exchanged_after_it_was_opened_is_judged_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode of a name says nothing of the file that was read."""
    key = file.parent / KEY
    key.chmod(0o644)
    opened = os.open

    def exchanged(path: str | Path, *arguments: int) -> int:
        fd = opened(path, *arguments)
        if Path(path) == key:
            key.rename(key.with_name("old"))
            key.write_text("another")
            key.chmod(0o600)
        return fd

    monkeypatch.setattr(os, "open", exchanged)
    with pytest.raises(SiteError, match="can be read by others"):
        load_site(file)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_users_daemon_is_that_users_where_nobody_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(YAML, 'people:\n  "*": {zones: [corporate]}\n', "")(file.parent)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(os, "fstat", lambda fd: _of(4321, _FSTAT(fd)))
    found = load_site(file).site
    assert found.may_enter("corporate", 4321, "somebody", ()) == ()
    assert found.may_enter("corporate", 4322, "another", ()) is None


_FSTAT = os.fstat


def _of(uid: int, found: os.stat_result) -> os.stat_result:
    values = list(found)
    values[stat.ST_UID] = uid
    return os.stat_result(values)
