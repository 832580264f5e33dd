"""Explicit listeners in the site file, in their files, bound, and as `status` tells of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import free_port

from proxy import ipc, listeners, passwords
from proxy.certificates import issue_server, make_authority, write_issued
from proxy.cli.passwd import command as passwd
from proxy.config import Listener, ListenerKind, read_site
from proxy.demo.site import make_site
from proxy.policy import Problems
from proxy.site import Loaded, SiteError, load_site

SITE = """
zonegate: 1
policy: p.yaml
zones: {{corporate: {{tunnels: [hq]}}}}
tunnels: {{hq: {{kind: mtls, gateway: "gw:1", ca: ca, pins: ["sha256:{pin}="], certificate: c, key: k}}}}
people: {{"*": {{zones: [corporate]}}}}
listen:
  {listen}
"""


def read(listen: str) -> dict[str, Listener]:
    return dict(
        read_site(SITE.format(pin="A" * 43, listen=listen).encode(), Path("/s/zonegate.yaml")).listeners
    )


def test_what_is_said_and_what_is_left_out() -> None:
    found = read(
        "web: {kind: http, zone: corporate, auth: {passwords: people.passwd}}\n"
        "  socks: {kind: socks5, zone: corporate, auth: none}\n"
        '  tls: {kind: http, address: "[::]:3130", zone: corporate, auth: {certificates: ca.crt},'
        " certificate: p.crt, key: p.key}"
    )
    home, at = ip_address("127.0.0.1"), Path("/s")
    none = (None, None, None)
    assert found == {
        "web": Listener("web", ListenerKind.HTTP, home, 3128, "corporate", at / "people.passwd", *none),
        "socks": Listener("socks", ListenerKind.SOCKS5, home, 1080, "corporate", None, *none),
        "tls": Listener(
            "tls", ListenerKind.HTTP, ip_address("::"), 3130, "corporate",
            None, at / "ca.crt", at / "p.crt", at / "p.key",
        ),
    }  # fmt: skip
    assert [one.auth for one in found.values()] == ["passwords", "none", "certificates"]
    assert found["tls"].shown == "[::]:3130"


@dataclass(frozen=True, slots=True)
class Wrong:
    sentence: str
    listen: str
    says: str

    def __str__(self) -> str:
        return self.sentence


OPEN = "kind: http, zone: corporate, auth: none"
WRONG = [
    Wrong(
        "no login beyond loopback",
        'a: {kind: http, zone: corporate, auth: none, address: "0.0.0.0:1"}',
        "asks nobody who it is",
    ),
    Wrong(
        "no login on a wildcard",
        'a: {kind: http, zone: corporate, auth: none, address: "[::]:1"}',
        "asks nobody who it is",
    ),
    Wrong(
        "a name for an address",
        'a: {kind: http, zone: corporate, auth: none, address: "localhost:1"}',
        "write an address of this machine",
    ),
    Wrong(
        "an address without a port",
        'a: {kind: http, zone: corporate, auth: none, address: "127.0.0.1"}',
        "needs a host and a port",
    ),
    Wrong(
        "a short form",
        'a: {kind: http, zone: corporate, auth: none, address: "127.1:1"}',
        "is not an address",
    ),
    Wrong("another zone", "a: {kind: http, zone: lab, auth: none}", 'cannot be "lab"'),
    Wrong("another kind", "a: {kind: socks4, zone: corporate, auth: none}", 'cannot be "socks4"'),
    Wrong("no auth", "a: {kind: http, zone: corporate}", 'has no "auth"'),
    Wrong("another auth", "a: {kind: http, zone: corporate, auth: any}", 'cannot be "any"'),
    Wrong("an unknown key", "a: {kind: http, zone: corporate, auth: none, user: x}", 'unknown key "user"'),
    Wrong("one address twice", f"a: {{{OPEN}}}\n  b: {{{OPEN}}}", '"a" and "b" have one address'),
    Wrong(
        "a key that nobody needs", "a: {kind: http, zone: corporate, auth: none, key: k}", "speaks TLS where"
    ),
    Wrong(
        "both logins",
        "a: {kind: http, zone: corporate, auth: {passwords: p, certificates: c}}",
        "has two ways",
    ),
    Wrong(
        "SOCKS with certificates",
        "a: {kind: socks5, zone: corporate, auth: {certificates: c}, certificate: c, key: k}",
        "which SOCKS cannot ask for",
    ),
    Wrong(
        "certificates without one of its own",
        "a: {kind: http, zone: corporate, auth: {certificates: c}}",
        "speaks TLS where",
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_is_wrong_is_said(case: Wrong) -> None:
    with pytest.raises(Problems, match=case.says):
        read(case.listen)


# -- with their files --------------------------------------------------------------------------------

type MakeSite = Callable[[str, str], Path]


@pytest.fixture
def site(tmp_path: Path) -> MakeSite:
    """A whole site with listeners and further people."""

    file = make_site(tmp_path, tmp_path / "run", 1).gate
    text = file.read_text()

    def make(listen: str, people: str) -> Path:
        file.write_text(f"{text}{people}listen:\n  {listen}\n")
        return file

    return make


ALICE = "  alice: {zones: [corporate]}\n"
WEB = 'web: {kind: http, address: "127.0.0.1:%d", zone: corporate, auth: {passwords: people.passwd}}'


def logins(directory: Path, text: str = "", mode: int = 0o600) -> None:
    file = directory / "people.passwd"
    file.write_text(text or passwords.line("alice", b"x") + "\n")
    file.chmod(mode)


def refused(file: Path) -> str:
    with pytest.raises(SiteError) as error:
        load_site(file)
    return str(error.value)


def test_a_file_of_passwords_is_a_secret_with_logins_that_may_enter(site: MakeSite, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(site(WEB % 1, ALICE))
    logins(tmp_path, mode=0o640)
    assert "can be read by others" in refused(site(WEB % 1, ALICE))
    logins(tmp_path, "alice:x\n")
    assert "line 1 is no entry" in refused(site(WEB % 1, ALICE))
    logins(tmp_path, "# nobody\n")
    assert "has no login" in refused(site(WEB % 1, ALICE))
    logins(tmp_path)
    assert '"alice" of listener "web" may not enter zone "corporate"' in refused(site(WEB % 1, ""))
    assert '"anonymous" of listener' in refused(site("web: {kind: http, zone: corporate, auth: none}", ALICE))
    assert load_site(site(WEB % 1, ALICE)).listeners["web"].passwords.reveal().startswith(b"alice:")


def test_certificates_of_a_listener_fit_together(site: MakeSite, tmp_path: Path) -> None:
    tls = "web: {kind: http, zone: corporate, auth: {certificates: ca.crt}, certificate: p.crt, key: p.key}"
    authority = make_authority("x", now=datetime.now(UTC))
    write_issued(issue_server(authority, ["127.0.0.1"], now=datetime.now(UTC)), tmp_path, "p")
    assert load_site(site(tls, "")).listeners["web"].certificate.startswith(b"-----BEGIN CERT")
    good = (tmp_path / "p.key").read_text()
    (tmp_path / "p.key").write_text((tmp_path / "laptop.key").read_text())
    assert "is not the key of" in refused(site(tls, ""))
    (tmp_path / "p.key").write_text("nothing")
    assert "no private key" in refused(site(tls, ""))
    (tmp_path / "p.key").write_text(good)
    (tmp_path / "p.crt").write_text("nothing")
    assert "finds no certificate there" in refused(site(tls, ""))


def loaded(site: MakeSite, tmp_path: Path, port: int) -> Loaded:
    logins(tmp_path)
    return load_site(site(WEB % port, ALICE))


def test_a_listener_is_bound_and_handed_over_with_its_logins(site: MakeSite, tmp_path: Path) -> None:
    port = free_port()
    (ear,) = listeners.open_ears(loaded(site, tmp_path, port))
    message, fds = ear.message()
    try:
        assert (message.name, message.kind, message.auth) == ("web", "http", "passwords")
        assert len(fds) == 2 and fds[0] == ear.sock.fileno()
        assert b"alice:scrypt:" in Path(f"/proc/self/fd/{fds[1]}").read_bytes()
        assert "scrypt" not in repr(ear) and "scrypt" not in repr(message)
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = ear.sock.accept()
            with accepted:
                kept = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                assert [accepted.getsockopt(socket.IPPROTO_TCP, option) for option in kept] == [60, 10, 3]
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        again = loaded(site, tmp_path, port)
        assert listeners.open_ears(again, (ear,)) != (ear,), "a salt of its own for each entry"
        assert listeners.open_ears(replace(again, listeners={"web": ear.files}), (ear,)) == (ear,)
    finally:
        ipc.close_all(fds[1:])
        listeners.close_all([ear])


def test_an_address_that_is_taken_is_said_and_nothing_stays_bound(site: MakeSite, tmp_path: Path) -> None:
    one, other = free_port(), free_port()
    two = f"{WEB % one}\n  worse: {{kind: socks5, address: '127.0.0.1:{other}', zone: corporate, auth: none}}"
    logins(tmp_path)
    both = load_site(site(two.replace("'", '"'), ALICE + ALICE.replace("alice", "anonymous")))
    with socket.create_server(("127.0.0.1", other)):
        with pytest.raises(SiteError, match='listener "worse" cannot listen on'):
            listeners.open_ears(both)
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", one)) != 0


def test_status_tells_what_such_clients_can_do() -> None:
    found = read(
        "web: {kind: http, zone: corporate, auth: {passwords: p}}\n"
        "  socks: {kind: socks5, zone: corporate, auth: none}"
    )
    far = replace(found["web"], name="far", address=ip_address("192.0.2.1"))
    words = {one["name"]: one["words"] for one in listeners.status({**found, "far": far})}
    assert words == {
        "web": "its clients can go around the gate",
        "socks": "its clients can go around the gate; every program of this machine may use it, unasked",
        "far": "its clients can go around the gate; its passwords cross the network readable",
    }


# -- zonegate passwd ---------------------------------------------------------------------------------


def call(file: Path, *arguments: str, says: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(passwd, [*arguments[:-1], str(file), arguments[-1]], input=says)
    return done.exit_code, done.output


def test_passwd_makes_changes_and_removes_logins(tmp_path: Path) -> None:
    file = tmp_path / "people.passwd"
    assert call(file, "alice", says="secret\n")[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert call(file, "bob", says="other\n")[0] == 0
    first = passwords.read(file.read_bytes())
    assert set(first) == {"alice", "bob"} and first["alice"].matches(b"secret")
    assert call(file, "alice", says="changed\n")[0] == 0
    assert passwords.read(file.read_bytes())["alice"].matches(b"changed")
    assert call(file, "--delete", "bob")[0] == 0
    assert set(passwords.read(file.read_bytes())) == {"alice"}
    assert [path.name for path in tmp_path.iterdir()] == ["people.passwd"]


def test_passwd_refuses_in_words_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "people.passwd"
    file.write_text("alice:plain\n")
    for arguments, says, words in (
        (("alice",), "x\n", "line 1 is no entry"),
        (("--delete", "bob"), "", "line 1 is no entry"),
    ):
        code, out = call(file, *arguments, says=says)
        assert code == 2 and words in out and file.read_text() == "alice:plain\n"
    file.unlink()
    for arguments, says, words in (
        (("@staff",), "x\n", "is no login"),
        (("alice",), "\n", "a password has 1 to 255 bytes"),
        (("--delete", "bob"), "", '"bob" is not in'),
    ):
        code, out = call(file, *arguments, says=says)
        assert code == 2 and words in out and not file.exists()
    assert call(tmp_path / "none" / "f", "alice", says="x\n")[0] == 2
