"""Real programs that are told of the gate: they work by name through the tunnel, and nothing else is seen.

They could go around it: the control of this file is one that was told nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab import kernel
from lab.conftest import WITHOUT
from lab.gate import LAB_RULES, Gate, Settings, remove
from lab.kernel import Done, Place
from lab.ssh_server import SSH_LOGIN, SSH_NAME, SshServer, ssh
from lab.world import World
from proxy import certificates, passwords

NAME = "intranet.corp.example"
WEB, OPEN, SOCKS, FREE, RUNNERS = 3128, 3129, 1080, 1081, 3130
LOGIN = "alice:correct%20horse"
BY_SOCKS = f"socks5h://{LOGIN}@127.0.0.1:{SOCKS}"
PROXY, ASKING_NOBODY = f"http://{LOGIN}@127.0.0.1:{WEB}", f"http://127.0.0.1:{OPEN}"
LISTEN = f"""
  web: {{kind: http, address: "127.0.0.1:{WEB}", zone: corporate, auth: {{passwords: people.passwd}}}}
  open: {{kind: http, address: "127.0.0.1:{OPEN}", zone: corporate, auth: none}}
  six: {{kind: http, address: "[::1]:{WEB}", zone: corporate, auth: none}}
  socks: {{kind: socks5, address: "127.0.0.1:{SOCKS}", zone: corporate, auth: {{passwords: people.passwd}}}}
  free: {{kind: socks5, address: "127.0.0.1:{FREE}", zone: corporate, auth: none}}
  runners: {{kind: http, address: "127.0.0.1:{RUNNERS}", zone: corporate, auth: {{certificates: ca.crt}},
    certificate: proxy.crt, key: proxy.key}}
"""
RULES = (
    LAB_RULES
    + """
  - id: lab-ssh
    match: {zone: corporate, to: intranet, protocol: ssh, port: 22}
    verdict: tunnel
"""
)
TOOLS = "curl wget git npm nc.openbsd ssh chromium apt-get"
FILES = f"http://{NAME}/files"
DEBIAN_PYTHON = "/usr/bin/python3"
REQUESTS = "import requests, sys; print(requests.get(sys.argv[1], proxies={'http': sys.argv[2], 'https': \
sys.argv[2]}, verify=sys.argv[3]).text.strip())"
HTTPX = "import httpx, sys; print(httpx.Client(proxies=sys.argv[2], verify=sys.argv[3]).get(sys.argv[1])\
.text.strip())"


@pytest.fixture(scope="module")
def gate(world: World, sshd: SshServer) -> Iterator[Gate]:
    """A daemon with listeners of every kind, and files for the clients."""
    kernel.need(*TOOLS.split())
    host = world.host("root")
    people = "".join(f"  {name}: {{zones: [corporate]}}\n" for name in ("alice", "anonymous", "device1"))
    settings = Settings(without=WITHOUT, people=people, listen=LISTEN, rules=RULES, secrets=sshd.secrets)
    made = Gate(host, "explicit", settings)
    file = made.directory / "people.passwd"
    file.write_text(passwords.line("alice", b"correct horse") + "\n")
    file.chmod(0o600)
    proxy = certificates.issue_server(host.world.names.authority, ["127.0.0.1"], now=datetime.now(UTC))
    certificates.write_issued(proxy, made.directory, "proxy")
    _files(world.directory / "files")
    try:
        yield made.start().attested()
    finally:
        remove(made)
        shutil.rmtree(world.directory / "files")


def _files(directory: Path) -> None:
    """A repository of each kind, with one package called hello."""
    simple, npm, apt = directory / "simple/hello", directory / "npm", directory / "apt"
    for path in (simple, npm, apt):
        path.mkdir(parents=True)
    wheel = "hello-1.0-py3-none-any.whl"
    with zipfile.ZipFile(simple / wheel, "w") as archive:
        archive.writestr("hello-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
        archive.writestr("hello-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("hello-1.0.dist-info/RECORD", "")
    (simple / "index.html").write_text(f'<!doctype html><a href="{wheel}">{wheel}</a>')
    versions = {
        "1.0.0": {"name": "hello", "version": "1.0.0", "dist": {"tarball": f"http://{NAME}/none.tgz"}}
    }
    about = {"name": "hello", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
    (npm / "hello").write_text(json.dumps(about))
    (apt / "Packages").write_text("Package: hello\nVersion: 1.0\nArchitecture: all\nFilename: ./none.deb\n\n")


def run(gate: Gate, *command: str, limit_s: float = kernel.LIMIT_S) -> Done:
    """A program of the device, in no bubble; {…} are filled in."""
    words = {
        "ca": gate.host.world.directory / "site-ca.crt",
        "here": gate.directory,
        "tmp": gate.host.home,
    }
    place = gate.host.place
    environment = {**place.environment, "PATH": os.environ["PATH"], "NO_UPDATE_NOTIFIER": "1"}
    there = Place(place.network, place.mounts, place.uid, environment)
    filled = [word.format(**words) if "{" in word else word for word in command]
    return kernel.run(there, filled, limit_s=limit_s)


@dataclass(frozen=True, slots=True)
class Client:
    """A client and what it says when it has worked."""

    id: str
    command: tuple[str, ...]
    says: str


def _debian(program: str, *arguments: str) -> tuple[str, ...]:
    return (DEBIAN_PYTHON, "-c", program.replace("{", "{{").replace("}", "}}"), *arguments)


def _apt(proxy: str) -> tuple[str, ...]:
    return ("sh", "-ec", f"""
cd {{tmp}}; rm -rf apt; mkdir -p apt/lists/partial apt/cache/partial
echo 'deb [trusted=yes] {FILES}/apt ./' > apt/sources
o="-o Dir::Etc::sourcelist=$PWD/apt/sources -o Dir::Etc::sourceparts=/dev/null -o Dir::State=$PWD/apt
-o Dir::State::lists=$PWD/apt/lists -o Dir::Cache=$PWD/apt/cache -o APT::Sandbox::User=root
-o Acquire::Languages=none -o Acquire::http::Proxy={proxy}"
apt-get -qq $o --allow-insecure-repositories update 2>&1
apt-cache $o show hello | grep Version""")  # fmt: skip


def _chromium(proxy: str) -> tuple[str, ...]:
    return (
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--user-data-dir={tmp}/chromium", f"--proxy-server={proxy}", "--dump-dom", HTTP,
    )  # fmt: skip


CURL, HTTP, HTTPS = ("curl", "-sS", "-m", "60"), f"http://{NAME}/", f"https://{NAME}/"
GIT = "https://git.corp.example/git/project.git"
CLIENTS = (
    Client("curl, http", (*CURL, "-x", PROXY, HTTP), "the intranet"),
    Client("curl, https", (*CURL, "--cacert", "{ca}", "-x", PROXY, HTTPS), "the intranet"),
    Client("curl, two requests", (*CURL, "-x", PROXY, HTTP, HTTP), "the intranet\nthe intranet"),
    Client("curl, to an IPv6 site", (*CURL, "-x", PROXY, "http://six.corp.example/"), "the intranet"),
    Client("curl, by IPv6", (*CURL, "-x", f"http://[::1]:{WEB}", HTTP), "the intranet"),
    Client("curl, SOCKS", (*CURL, "-x", BY_SOCKS, HTTP), "the intranet"),
    Client("curl, SOCKS, https", (*CURL, "--cacert", "{ca}", "-x", BY_SOCKS, HTTPS), "the intranet"),
    Client(
        "curl, a client certificate",
        (*CURL, "--proxy-cacert", "{here}/ca.crt", "--proxy-cert", "{here}/device1.crt",
         "--proxy-key", "{here}/device1.key", "-x", f"https://127.0.0.1:{RUNNERS}", HTTP),
        "the intranet",
    ),
    Client("wget, http", ("wget", "-qO-", "-e", f"http_proxy={PROXY}", HTTP), "the intranet"),
    Client(
        "wget, https",
        ("wget", "-qO-", "--ca-certificate={ca}", "-e", f"https_proxy={PROXY}", HTTPS),
        "the intranet",
    ),
    Client(
        "git",
        ("git", "-c", "http.sslCAInfo={ca}", "-c", f"http.proxy={PROXY}", "ls-remote", "--symref", GIT),
        "ref: refs/heads/main\tHEAD",
    ),
    Client(
        "git, SOCKS",
        ("git", "-c", "http.sslCAInfo={ca}", "-c", f"http.proxy={BY_SOCKS}", "ls-remote", "--symref", GIT),
        "ref: refs/heads/main\tHEAD",
    ),
    Client(
        "pip",
        (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "-d", "{tmp}/pip",
         "--disable-pip-version-check", "--isolated", "--proxy", PROXY, "--trusted-host", NAME, "-i",
         f"{FILES}/simple/", "hello"),
        "",
    ),
    Client(
        "npm",
        ("npm", "view", "hello", "version", "--registry", f"{FILES}/npm/", "--proxy", PROXY, "--cache",
         "{tmp}/npm"),
        "1.0.0",
    ),
    Client("apt", _apt(PROXY), "Version: 1.0"),
    Client("apt, SOCKS", _apt(BY_SOCKS), "Version: 1.0"),
    Client("requests, http", _debian(REQUESTS, HTTP, PROXY, "{ca}"), "the intranet"),
    Client("requests, https", _debian(REQUESTS, HTTPS, PROXY, "{ca}"), "the intranet"),
    Client("httpx, http", _debian(HTTPX, HTTP, PROXY, "{ca}"), "the intranet"),
    Client("httpx, https", _debian(HTTPX, HTTPS, PROXY, "{ca}"), "the intranet"),
    Client("requests, SOCKS", _debian(REQUESTS, HTTPS, BY_SOCKS, "{ca}"), "the intranet"),
    Client("Chromium", _chromium(ASKING_NOBODY), "the intranet"),
    Client("Chromium, SOCKS", _chromium(f"socks5://127.0.0.1:{FREE}"), "the intranet"),
)  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)
def test_clients(gate: Gate, world: World, client: Client) -> None:
    """Each client works by name, and nothing leaves the device but the connection to the gateway."""
    done = run(gate, *client.command)
    assert client.says in done.out and (done.code == 0), done
    assert not (seen := world.wire.seen()), f"left the device: {[str(frame) for frame in seen[:10]]}"


@pytest.mark.parametrize(("kind", "port"), [("connect", OPEN), ("5", FREE)], ids=["http", "SOCKS"])
def test_ssh(gate: Gate, world: World, kind: str, port: int) -> None:
    """ssh by a ProxyCommand: it enters by its key, and runs a command there."""
    way = f"ProxyCommand=nc.openbsd -X {kind} -x 127.0.0.1:{port} %h %p"
    done = run(gate, *ssh(gate.directory, way), f"{SSH_LOGIN}@{SSH_NAME}", "echo entered")
    assert (done.code, done.out) == (0, "entered\n"), done
    end = gate.record("end", lambda row: row["name"] == SSH_NAME)
    assert (end["protocol"], end["verdict"], end["enforcement"]) == ("ssh", "tunnel", "cooperative")
    assert not world.wire.seen()


def test_who_is_told_nothing_goes_around(gate: Gate, world: World) -> None:
    """The control: such a client has the machine's network, and `status` says so of every listener."""
    done = run(gate, *CURL, "--connect-timeout", "2", HTTP)
    assert world.wire.seen(), f"a control must be red: {done}"
    world.wire.forget()
    found = gate.status()
    assert {one["enforcement"] for one in found["listeners"]} == {"cooperative"}
    assert all("can go around the gate" in one["words"] for one in found["listeners"])
    assert "its clients can go around the gate" in gate.call("status").out


def test_records_say_cooperative_and_who_it_was(gate: Gate) -> None:
    before = gate.flows()
    run(gate, *CURL, "-x", PROXY, f"http://{NAME}/records")
    end = gate.record("end", lambda row: row["user"] == "alice" and row["flow"] not in before)
    assert end["name"] == NAME
    assert (end["enforcement"], end["bubble"], end["because"]["id"]) == (
        "cooperative", "web@127.0.0.1", "catalogue",
    )  # fmt: skip


def test_refusals_are_read_by_people_and_programs(gate: Gate, world: World) -> None:
    """The rule, the reason and the reference, as page, JSON, line and code; nothing is dialled."""
    where = "http://paste.pastehub.example/"
    line = run(gate, *CURL, "-i", "-x", PROXY, where).out
    assert "403 Forbidden" in line and "guard no-public-sharing" in line
    page = run(gate, *CURL, "-H", "Accept: text/html", "-x", PROXY, where).out
    assert page.startswith("<!doctype html>") and "no-public-sharing" in page
    facts = json.loads(run(gate, *CURL, "-H", "Accept: application/json", "-x", PROXY, where).out)
    assert facts["decided_by"]["id"] == "no-public-sharing"
    record = gate.record("verdict", lambda row: row["flow"] == facts["reference"])
    assert record["because"]["id"] == "no-public-sharing"
    connect = run(gate, *CURL, "-x", PROXY, "https://paste.pastehub.example/")
    assert connect.code == 56 and "403" in connect.err
    wrong = run(gate, *CURL, "-i", "-x", PROXY.replace("horse", "mouse"), HTTP).out
    assert "407 Proxy Authentication Required" in wrong and 'Basic realm="zonegate"' in wrong
    socks = run(gate, *CURL, "-x", f"socks5h://{LOGIN}@127.0.0.1:{SOCKS}", where)
    assert socks.code == 97 and "(2)" in socks.err, socks
    assert not world.wire.seen()


OWN = ("127.0.0.1", "169.254.169.254", "100.64.0.1", "198.18.0.1", "[::1]", "[::ffff:169.254.169.254]",
       "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "10.200.1.2", "0.0.0.0")  # fmt: skip


def test_addresses_of_ones_own(gate: Gate, world: World) -> None:
    """I10: the gate, its ports, loopback and metadata addresses are no destination, by HTTP and by SOCKS."""
    before = len(world.gateway.heard())
    for address in OWN:
        for port in (80, WEB):
            assert (
                "403 Forbidden"
                in run(gate, *CURL, "-i", "-x", ASKING_NOBODY, f"http://{address}:{port}/").out
            )
    socks = run(gate, *CURL, "-x", f"socks5h://{LOGIN}@127.0.0.1:{SOCKS}", "http://127.0.0.1:3128/")
    assert socks.code == 97 and "(2)" in socks.err, socks
    assert "connect" not in world.gateway.heard()[before:]


def test_a_changed_password_is_taken_by_a_reload(gate: Gate) -> None:
    """`zonegate passwd` and `zonegate reload`: the old password is out, and the new one in."""
    file = str(gate.directory / "people.passwd")
    try:
        done = kernel.run(gate.host.place, gate.command("passwd", file, "alice"), stdin=b"other\n")
        assert done.code == 0 and (gate.directory / "people.passwd").stat().st_mode & 0o777 == 0o600, done
        done = gate.call("reload")
        assert done.code == 0 and "who may log in changed" in done.out, done
        assert "407" in run(gate, *CURL, "-i", "-x", PROXY, HTTP).out
        new = PROXY.replace("correct%20horse", "other")
        assert run(gate, *CURL, "-x", new, HTTP).out.strip() == "the intranet"
    finally:
        kernel.run(gate.host.place, gate.command("passwd", file, "alice"), stdin=b"correct horse\n")
        gate.call("reload")


def listed(gate: Gate) -> list[tuple[str, str]]:
    """Whose flows are open, and where they came in."""
    return [(row["user"], row["bubble"]) for row in json.loads(gate.call("flows", "--json").out)]


def test_such_flows_are_listed_and_locked_like_others(gate: Gate) -> None:
    """L5: an open download is in `flows`, is cut by `lock`, and nothing new is let in until `unlock`."""
    place = gate.host.place
    drip = kernel.start(place, ["curl", "-sS", "-o", "/dev/null", "-x", PROXY, f"http://{NAME}/drip"])
    try:
        kernel.until("it alone is listed", lambda: listed(gate) == [("alice", "web@127.0.0.1")])
        assert gate.call("lock", "--reason", "a drill").code == 0
        assert drip.wait(kernel.LIMIT_S) != 0
        assert "a drill" in run(gate, *CURL, "-x", PROXY, HTTP).out
    finally:
        gate.call("unlock")
        kernel.end(drip)
    assert run(gate, *CURL, "-x", PROXY, HTTP).out.strip() == "the intranet"
