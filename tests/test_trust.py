"""Programs in a bubble trust what the inspection CA signs where their zone is inspected, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bubbles import PYTHON, Ground
from cryptography.hazmat.primitives import serialization

from proxy import inspection_ca, trust
from proxy.inspection_ca import Authority
from proxy.leaves import Leaves
from proxy.policy.inspected import Scope

NOW = datetime.now(UTC)
# In the bubble: a TLS server on its loopback, and each client; what each of them said of it.
TRY = r"""
import http.server, json, ssl, subprocess, sys, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<p>inspected</p>")
    def log_message(self, *_):
        pass
site, clients = sys.argv[1], json.loads(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(site + "/chain.pem", site + "/leaf.key")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Page)
server.handle_error = lambda *_: None
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=server.serve_forever, daemon=True).start()
found = {}
for name, command in clients.items():
    done = subprocess.run(command, capture_output=True, timeout=60)
    found[name] = b"inspected" in done.stdout
print(json.dumps(found))
"""
URL = "https://localhost:8443/"
ASK_PYTHON = f"import urllib.request as r; print(r.urlopen('{URL}').read())"
ASK_NODE = f"require('https').get('{URL}', r => r.pipe(process.stdout)).on('error', () => process.exit(1))"
CLIENTS = {
    "curl": ["curl", "-sS", "--noproxy", "*", URL],
    "python": [PYTHON, "-I", "-c", ASK_PYTHON],
    "node": ["node", "-e", ASK_NODE],
    "chromium": [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-dev-shm-usage", "--dump-dom", URL,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return inspection_ca.create(tmp_path_factory.mktemp("ca") / "inspection", "acme", NOW)


@pytest.fixture
def site(authority: Authority, tmp_path: Path) -> Path:
    """A server's certificate as an inspector would make it."""
    directory = tmp_path / "site"
    directory.mkdir()
    leaf = Leaves(authority.intermediate(Scope(("localhost",), ()), NOW), lambda: NOW).leaf("localhost")
    (directory / "chain.pem").write_bytes(leaf.pem())
    key = leaf.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "leaf.key").write_bytes(key)
    return directory


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    there = Ground(tmp_path)
    try:
        yield there
    finally:
        there.close()


def asked(ground: Ground, site: Path) -> dict[str, bool]:
    told = ground.run(PYTHON, "-I", "-c", TRY, str(site), json.dumps(CLIENTS), share=[str(site)])
    assert told[0] == 0, told
    found: dict[str, bool] = json.loads(told[1])
    return found


def test_programs_trust_it_in_a_zone_that_inspects_and_nowhere_else(
    ground: Ground, site: Path, authority: Authority
) -> None:
    daemon = ground.daemon()
    assert asked(ground, site) == dict.fromkeys(CLIENTS, False)
    daemon.close()
    ground.daemon(roots=authority.bundle(NOW).decode())
    assert asked(ground, site) == dict.fromkeys(CLIENTS, True)


def test_no_key_enters_a_bubble_and_what_the_machine_says_stays(ground: Ground, authority: Authority) -> None:
    ground.daemon(roots=authority.bundle(NOW).decode())
    look = (
        "import os, pathlib\n"
        "print(os.environ['SSL_CERT_FILE'])\n"
        "print(pathlib.Path('/run/zonegate/inspection.crt').read_text())\n"
        "print(pathlib.Path('/etc/ssl/certs/ca-certificates.crt').read_text())\n"
        "print(sorted(os.listdir('/etc/chromium')))\n"
        "try: open('/etc/chromium/policies/managed/other.json', 'w')\n"
        "except OSError as error: print('cannot:', error.strerror)\n"
    )
    told = ground.python(look)
    assert "PRIVATE KEY" not in told and told.startswith(str(trust.BUNDLE))
    assert Path("/etc/ssl/certs/ca-certificates.crt").read_text().strip()[-60:] in told
    kept = {*(path.name for path in Path("/etc/chromium").iterdir()), "policies"}
    assert str(sorted(kept)) in told and "cannot: Read-only file system" in told


@pytest.mark.parametrize(
    "text",
    [b"", b"words", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\nmore", b"\xff"],
)
def test_what_is_no_certificate_is_not_trusted(text: bytes, authority: Authority, ground: Ground) -> None:
    assert trust.is_roots(authority.bundle(NOW)) and not trust.is_roots(text)
    assert not trust.is_roots(authority.bundle(NOW) + authority.root.key_pem)


def test_a_daemon_that_gives_a_key_gets_no_program(ground: Ground, authority: Authority) -> None:
    ground.daemon(roots=authority.root.key_pem.decode())
    status, out, err = ground.run("echo", "started")
    assert status == 125 and "started" not in out and "no certificate" in err


def test_policies_of_firefox_are_kept_and_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firefox = tmp_path / "firefox"
    (firefox / "distribution").mkdir(parents=True)
    theirs = {"policies": {"DisableTelemetry": True, "Certificates": {"Install": ["corp.crt"]}}}
    (firefox / "distribution/policies.json").write_text(json.dumps(theirs))
    monkeypatch.setattr(trust, "_FIREFOX", ((str(firefox), "distribution"),))
    found = {path: content for path, content in trust.files(b"roots") if "firefox" in str(path)}
    (content,) = found.values()
    assert json.loads(content) == {
        "policies": {"DisableTelemetry": True, "Certificates": {"Install": ["corp.crt", str(trust.ROOTS)]}}
    }
    (firefox / "distribution/policies.json").write_text("[1")
    again = dict(trust.files(b"roots"))[firefox / "distribution/policies.json"]
    assert json.loads(again) == {"policies": {"Certificates": {"Install": [str(trust.ROOTS)]}}}
