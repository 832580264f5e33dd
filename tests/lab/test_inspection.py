"""Inspection, from a bubble through inspector and tunnel to the intranet; an inspector that is lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from lab import kernel
from lab.conftest import AS_ROOT, WITHOUT, NewGate, Watch
from lab.gate import LAB_RULES, PROGRAMS, Gate, Settings, python, remove
from lab.kernel import Place
from lab.world import INTRANET, Host, World
from proxy import certificates

NAME = "intranet.corp.example"
GUARDS = """
  - {id: no-delete, match: {to: intranet, method: DELETE}, at_most: block, because: "nothing is deleted"}
  - {id: small-uploads, match: {path: /small, transfer: upload, size: ">1MiB"}, at_most: block}
  - {id: no-delete-by-rpc, match: {path: /lab.Echo/Delete}, at_most: block}
"""
GRPC_PORT = 7003
RULES = f"{LAB_RULES}  - {{id: rpc, match: {{to: intranet, port: {GRPC_PORT}}}, verdict: tunnel}}\n"
SCANNED = "six.corp.example"
SCANS = f"    scanned: {{to: {SCANNED}, scan: {{block: [card-numbers]}}}}\n"
OPEN, RUNNERS, SOCKS = 3139, 3140, 1089
LISTEN = f"""
  open: {{kind: http, address: "127.0.0.1:{OPEN}", zone: corporate, auth: none}}
  socks: {{kind: socks5, address: "127.0.0.1:{SOCKS}", zone: corporate, auth: none}}
  runners: {{kind: http, address: "127.0.0.1:{RUNNERS}", zone: corporate, auth: {{certificates: ca.crt}},
    certificate: proxy.crt, key: proxy.key}}
"""
PEOPLE = "".join(f"  {name}: {{zones: [corporate]}}\n" for name in ("anonymous", "device1"))
PACKAGES = Path(grpc.__file__).parents[1]


@pytest.fixture(scope="module")
def gate(host: Host) -> Iterator[Gate]:
    """One daemon for all of them; some end its inspector, none ends it."""
    listen, people = (LISTEN, PEOPLE) if host.uid == 0 else ("", "")
    settings = Settings(
        inspects=True,
        guards=GUARDS,
        rules=RULES,
        destinations=SCANS,
        listen=listen,
        people=people,
        without=WITHOUT,
    )
    made = Gate(host, "inspecting", settings)
    proxy = certificates.issue_server(host.world.names.authority, ["127.0.0.1"], now=datetime.now(UTC))
    certificates.write_issued(proxy, made.directory, "proxy")
    try:
        yield made.start().attested()
    finally:
        remove(made)


def counted(gate: Gate) -> tuple[int, int]:
    """How many requests were admitted and refused, as status says."""
    beside = [worker["inspector"] for worker in gate.status()["workers"] if worker["inspector"]]
    return sum(one["admitted"] for one in beside), sum(one["refused"] for one in beside)


def curl(gate: Gate, *arguments: str, stdin: bytes = b"") -> str:
    """What curl says in a bubble."""
    done = gate.run("curl", "-sS", "-m", "60", "-i", *arguments, stdin=stdin)
    return done.out + done.err


def inspector(gate: Gate) -> int:
    return gate.child("inspector")


def test_requests(gate: Gate, watch: Watch) -> None:
    """HTTP/2, HTTP/1.1 and plain HTTP; what is refused is a page, is on record, and reaches nobody."""
    before = counted(gate)
    good = curl(gate, f"https://{NAME}/")
    assert good.startswith("HTTP/2 200") and good.endswith("the intranet\n"), good + gate.said()
    for more in (["--http1.1", f"https://{NAME}/"], [f"http://{NAME}/"]):
        good = curl(gate, *more)
        assert good.startswith("HTTP/1.1 200") and good.endswith("the intranet\n"), good
    refused = curl(gate, "-X", "DELETE", f"https://{NAME}/page")
    assert refused.startswith("HTTP/2 403") and "nothing is deleted" in refused, refused
    (reference,) = re.findall(r"\[([0-9a-f]{6}-[0-9]+\.[0-9]+)\]", refused)
    row = gate.record("verdict", lambda row: row["flow"] == reference)
    assert (row["verdict"], row["because"]["id"], row["request"]) == ("block", "no-delete", "DELETE /page")
    after = (before[0] + 3, before[1] + 1)
    kernel.until("status counts them", lambda: counted(gate) == after)
    explained = gate.call("explain", "--to", f"https://{NAME}/").out
    assert "inspection" in explained and "no-delete" in explained, explained
    watch.only_the_gateway()


@AS_ROOT
def test_uploads(gate: Gate) -> None:
    """Within the bound whole; beyond it the page, whether the length was declared or not."""
    good = curl(gate, "-T", "-", f"https://{NAME}/small", "-X", "POST", stdin=b"x" * (1 << 20))
    assert "200" in good.partition("\n")[0], good
    for more in (["--data-binary", "@-"], ["-T", "-", "-X", "POST"]):
        refused = curl(gate, *more, f"https://{NAME}/small", "--http1.1", stdin=b"x" * (2 << 20))
        assert "403 Forbidden" in refused and "small-uploads" in refused, refused


UPLOAD_MIB = int(os.environ.get("LAB_UPLOAD_MIB", "64"))


@AS_ROOT
def test_a_large_upload_is_kept_nowhere(gate: Gate, version: str = "--http2") -> None:
    """Whatever its size, an inspector holds little of it; LAB_UPLOAD_MIB makes it larger."""
    curl(gate, version, f"https://{NAME}/")
    before = most_memory(inspector(gate))
    size, limit_s = f"head -c {UPLOAD_MIB}M /dev/zero", 300 + UPLOAD_MIB
    send = f"curl -sS -m {limit_s} {version} -X POST -T - https://{NAME}/upload"
    done = gate.run("sh", "-c", f"{size} | {send}", limit_s=limit_s + 20)
    digest = hashlib.sha256()
    for _ in range(UPLOAD_MIB):
        digest.update(bytes(1 << 20))
    assert done.out == digest.hexdigest(), done
    grown = most_memory(inspector(gate)) - before
    print(f"{UPLOAD_MIB} MiB {version}: the inspector grew by {grown >> 20} MiB")
    assert grown < 32 << 20


def most_memory(pid: int) -> int:
    """The most bytes that a process ever had in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+([0-9]+) kB", text)[0]) * 1024


PAGE = """<!doctype html><title>not yet</title><body><script>
const parts = [...Array(30).keys()].map(n => fetch(`part${n}.json`).then(answer => answer.json()));
const chat = new Promise(done => {
  const socket = new WebSocket("wss://" + location.host + "/chat");
  socket.onopen = () => socket.send("hello");
  socket.onmessage = message => { socket.close(); done(message.data); };
  socket.onerror = () => done("no WebSocket");
});
const sent = fetch("/small", {method: "POST", body: new Uint8Array(2 << 20)})
  .then(answer => answer.text().then(text => answer.status + "/" + text.includes("small-uploads")));
const secret = "x".repeat(2 << 20) + " 4111111111111111 " + "x".repeat(2 << 20);
const halfway = fetch("/upload", {method: "POST", body: secret})
  .then(answer => answer.text().then(text => answer.status + "/" + text.includes("it holds card-numbers")));
const shown = new Promise(done => {
  document.body.innerHTML = `<iframe name="there"></iframe>
    <form method="post" action="/upload" target="there" enctype="multipart/form-data">
    <textarea name="words"></textarea></form>`;
  const [form, frame] = [document.forms[0], document.querySelector("iframe")];
  form.elements.words.value = secret;
  frame.onload = () => {
    const text = frame.contentDocument.body.innerText;
    if (text.includes("card-numbers")) done("page");
  };
  form.submit();
});
Promise.all([Promise.all(parts), chat, sent, halfway, shown])
  .then(([all, ...others]) => fetch("/report/" + [all.length, ...others].join("/")));
</script>"""


@AS_ROOT
def test_a_browser(gate: Gate) -> None:
    """A page of thirty parts, a WebSocket, an upload that is refused by its head, and two that are blocked in
    their middle, of which one is a form: the browser shows the page."""
    place = gate.host.world.directory / "files/page"
    place.mkdir(parents=True, exist_ok=True)
    (place / "index.html").write_text(PAGE)
    for number in range(30):
        (place / f"part{number}.json").write_text(str(number))
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-dev-shm-usage"
    browser = gate.bubble("chromium", *options.split(), f"https://{SCANNED}/files/page/")
    try:
        reported = "GET /report/30/hello/403/true/403/true/page"
        kernel.until("the page is whole", lambda: reported in str(gate.records()))
        halfway = gate.record("end", lambda row: row["request"] == "POST /upload" and "scan" in row["why"])
        assert 1 << 20 < halfway["bytes_up"] < 4 << 20, halfway
    finally:
        browser.end()


@AS_ROOT
def test_httpx(gate: Gate) -> None:
    program = f"""
import httpx
with httpx.Client(base_url="https://{NAME}", timeout=60) as client:
    print(client.get("/").text.strip(), client.post("/small", content=b"x" * (2 << 20)).status_code)
    print(client.delete("/").status_code, client.get("/").text.strip())
"""
    done = gate.run("/usr/bin/python3", "-c", program)
    assert done.out.split("\n")[:2] == ["the intranet 403", "403 the intranet"], done


@AS_ROOT
def test_git_over_https(gate: Gate) -> None:
    script = (
        "rm -rf ~/p && git clone -q https://git.corp.example/git/project.git ~/p"
        " && cd ~/p && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m inspected"
        " && git push -q origin HEAD:refs/heads/inspected && git ls-remote origin"
    )
    done = gate.run("sh", "-c", script)
    assert "refs/heads/inspected" in done.out, done
    assert (
        gate.record("verdict", lambda row: "git-receive-pack" in (row["request"] or ""))["verdict"]
        == "tunnel"
    )


@pytest.fixture
def rpc_log(world: World) -> Iterator[Path]:
    """A server of gRPC in the intranet: what it was called for."""
    log, here = world.directory / "grpc.log", world.directory
    words = [f"{INTRANET}:{GRPC_PORT}", str(here / "site.crt"), str(here / "site.key"), str(log)]
    command = [sys.executable, str(PROGRAMS / "grpc_echo.py"), str(PACKAGES), "serve", *words]
    process = kernel.start(Place(world.corp), command)
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        yield log
    finally:
        kernel.end(process)
        log.unlink(missing_ok=True)


@AS_ROOT
def test_grpc(gate: Gate, rpc_log: Path) -> None:
    """Calls of all four kinds, their trailers and errors, many at once; and one that may not be made."""
    program = python("grpc_echo", str(PACKAGES), "ask", f"{NAME}:{GRPC_PORT}")
    done = gate.run(*program, limit_s=400, share=[PACKAGES])
    assert json.loads(done.out or "{}") == {
        "unary": 1 << 20,
        "trailers": {"x-said": "hello", "x-blob-bin": "b'\\x00\\xff'"},
        "missing": "NOT_FOUND",
        "served": 100,
        "sent": "a,b,c",
        "both": ["heard one", "heard two", "heard three"],
        "delete": "PERMISSION_DENIED",
        "beside": True,
    }, (done, gate.said()[-2000:])
    called = rpc_log.read_text().split()
    assert called.count("/lab.Echo/unary_unary") == 22 and "/lab.Echo/Delete" not in called


@AS_ROOT
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_inspector_that_is_lost(gate: Gate, how: signal.Signals) -> None:
    """Its flows are cut, and the next one has another inspector."""
    bubble = gate.bubble(*python("clients", "hold", NAME, "80"))
    bubble.says("flowing")
    first = inspector(gate)
    kernel.signal_all([first], how)
    assert "ConnectionResetError" in bubble.says("after")
    good = kernel.until("another one serves", lambda: curl(gate, f"https://{NAME}/").endswith("intranet\n"))
    assert good and inspector(gate) != first


@AS_ROOT
def test_an_inspector_that_needs_too_much_memory(new_gate: NewGate) -> None:
    """Hostile requests fill it: it ends and its flows with it, others live on, and another one comes."""
    gate = new_gate("little-memory", inspects=True, guards=GUARDS).attested()
    assert curl(gate, f"https://{NAME}/").endswith("the intranet\n")
    first = inspector(gate)
    done = gate.python("bombs", NAME, "80", limit_s=120)
    assert done.out.startswith("beside hello\nended 80") and done.out.endswith("beside hello\n"), done
    kernel.until("it has ended", lambda: not kernel.is_alive(first), 60)
    good = kernel.until(
        "another one serves", lambda: curl(gate, f"https://{NAME}/").endswith("intranet\n"), 60
    )
    assert good and inspector(gate) != first
    rows = [row for row in gate.records() if row["record"] == "verdict" and row["request"] == "DELETE /bomb"]
    assert rows and {row["verdict"] for row in rows} == {"block"}


@AS_ROOT
def test_a_lost_tunnel_cuts_what_is_inspected(gate: Gate) -> None:
    bubble = gate.bubble(*python("clients", "hold", NAME, "80"))
    bubble.says("flowing")
    world = gate.host.world
    world.gateway.send(signal.SIGSTOP)
    try:
        assert "ConnectionResetError" in bubble.says("after")
    finally:
        world.gateway.send(signal.SIGCONT)
    gate.attested()
    assert curl(gate, f"https://{NAME}/").endswith("the intranet\n")


@AS_ROOT
def test_by_hand(gate: Gate) -> None:
    """Inspected flows are listed, killed and locked out as others are."""
    bubble = gate.bubble(*python("clients", "hold", NAME, "80"))
    bubble.says("flowing")
    assert NAME in gate.call("flows").out
    gate.call("kill", "--to", NAME)
    assert "ConnectionResetError" in bubble.says("after")
    bubble = gate.bubble(*python("clients", "hold", NAME, "80"))
    bubble.says("flowing")
    gate.call("lock", "--reason", "a try")
    try:
        assert "ConnectionResetError" in bubble.says("after")
        assert "the intranet" not in curl(gate, f"http://{NAME}/")
    finally:
        gate.call("unlock")
    assert curl(gate, f"https://{NAME}/").endswith("the intranet\n")


@AS_ROOT
def test_an_inspector_is_sealed(gate: Gate) -> None:
    """It sees no network, no file of the host, and has a bound on its memory."""
    curl(gate, f"https://{NAME}/")
    pid = inspector(gate)
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max address space +1073741824 ", limits), limits
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status and "CapEff:\t0000000000000000" in status
    assert not Path(f"/proc/{pid}/root/etc").exists() and not Path(f"/proc/{pid}/root/run").exists()
    assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert Path(f"/proc/{pid}/net/dev").read_text().count(":") == 1


# The last ones: from here on the gate has a second inspector, of the worker that serves its listeners.
BY_LISTENER = {
    "CONNECT": (f"http://127.0.0.1:{OPEN}", "https"),
    "an absolute form": (f"http://127.0.0.1:{OPEN}", "http"),
    "SOCKS": (f"socks5h://127.0.0.1:{SOCKS}", "https"),
    "CONNECT within TLS": (f"https://127.0.0.1:{RUNNERS}", "https"),
    "an absolute form within TLS": (f"https://127.0.0.1:{RUNNERS}", "http"),
}


@AS_ROOT
@pytest.mark.parametrize("way", BY_LISTENER)
def test_programs_outside_that_use_a_listener(gate: Gate, way: str) -> None:
    """They are inspected as those in bubbles are, also where they speak TLS to the listener itself."""
    proxy, scheme = BY_LISTENER[way]
    here = gate.directory
    words = ["--cacert", f"{here}/inspection/root-1.crt", "-x", proxy, "--proxy-cacert", f"{here}/ca.crt"]
    words += ["--proxy-cert", f"{here}/device1.crt", "--proxy-key", f"{here}/device1.key"]

    def ask(*more: str, stdin: bytes = b"") -> str:
        done = kernel.run(gate.host.place, ["curl", "-sS", "-m", "60", *words, *more], stdin=stdin)
        return done.out + done.err

    assert ask(f"{scheme}://{NAME}/") == "the intranet\n"
    refused = ask("-X", "DELETE", f"{scheme}://{NAME}/page")
    assert "nothing is deleted" in refused, refused
    row = gate.record(
        "verdict", lambda row: row["request"] == "DELETE /page" and "@127.0.0.1" in row["bubble"]
    )
    assert (row["verdict"], row["enforcement"]) == ("block", "cooperative")
    digest = hashlib.sha256(b"x" * (3 << 20)).hexdigest()
    sent = ask("--data-binary", "@-", f"{scheme}://{NAME}/upload", stdin=b"x" * (3 << 20))
    assert sent == digest, sent
    refused = ask("--data-binary", "@-", f"{scheme}://{NAME}/small", stdin=b"x" * (3 << 20))
    assert "small-uploads" in refused, refused
