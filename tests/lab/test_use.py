"""Real programs in a bubble: they work by name through the tunnel, and the wire shows nothing else."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass

import pytest

from lab.conftest import AS_ROOT, AS_USER, NewGate, Watch
from lab.gate import Gate, python
from lab.kernel import LIMIT_S
from lab.servers import digest
from lab.world import INTRANET, PUBLIC, PUBLIC6, RESOLVER
from proxy.namespaces import OWN_V4

INTRANET_NAME = "intranet.corp.example"
GIB = 1024


@dataclass(frozen=True, slots=True)
class Client:
    """A client and what it says when it has worked. `{ca}` is the file of the site's authority."""

    id: str
    command: tuple[str, ...]
    says: str


def _python(*arguments: str) -> tuple[str, ...]:
    return tuple(python("clients", *arguments))


CLIENTS = (
    Client("curl, http", ("curl", "-sS", "-m", "60", f"http://{INTRANET_NAME}/"), "the intranet"),
    Client(
        "curl, https",
        ("curl", "-sS", "-m", "60", "--cacert", "{ca}", f"https://{INTRANET_NAME}/"),
        "the intranet",
    ),
    Client(
        "curl, IPv6 in the zone", ("curl", "-6sS", "-m", "60", f"http://{INTRANET_NAME}/"), "the intranet"
    ),
    Client("curl, to an IPv6 site", ("curl", "-sS", "-m", "60", "http://six.corp.example/"), "the intranet"),
    Client("urllib, http", _python("urllib", f"http://{INTRANET_NAME}/"), "the intranet"),
    Client("urllib, https", _python("urllib", f"https://{INTRANET_NAME}/", "{ca}"), "the intranet"),
    Client("http.client, an upload", _python("http.client", INTRANET_NAME, "80"), "same"),
    Client(
        "a server that speaks first",
        _python("banner", "git.corp.example", "22"),
        "SSH-2.0-lab / you said SSH-2.0-client",
    ),
    Client("a half-closed connection", _python("half-closed", INTRANET_NAME, "7000"), "whole"),
)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)
def test_clients(gate: Gate, watch: Watch, client: Client) -> None:
    """Each client works by name, and only the connection to the gateway is seen."""
    ca = str(gate.host.world.directory / "site-ca.crt")
    done = gate.run(*(word.replace("{ca}", ca) for word in client.command))
    assert (done.code, done.out.strip(), done.err) == (0, client.says, "")
    watch.only_the_gateway()


def test_git_over_https(gate: Gate, watch: Watch) -> None:
    """git clones from the corporate server, pushes nothing elsewhere."""
    ca = gate.host.world.directory / "site-ca.crt"
    clone = f"git -c http.sslCAInfo={ca} clone -q https://git.corp.example/git/project.git ~/clone"
    done = gate.run("sh", "-ec", f"rm -rf ~/clone; {clone}; git -C ~/clone log --format=%s")
    assert (done.code, done.out) == (0, "first\n"), done.err
    watch.only_the_gateway()


@AS_USER
def test_a_gibibyte(gate: Gate, watch: Watch) -> None:
    """A long download by name arrives whole; of two million packets none goes astray."""
    done = gate.run("sh", "-c", f"curl -sS http://{INTRANET_NAME}/big/{GIB} | sha256sum", limit_s=400)
    assert (done.code, done.out.split()[0], done.err) == (0, digest(GIB), "")
    watch.only_the_gateway()
    end = gate.record("end", lambda row: row["bytes_down"] > GIB << 20)
    assert end["name"] == INTRANET_NAME and end["why"] == "finished by both ends"


# -- what `run` passes through -----------------------------------------------------------------------


def test_exit_code(gate: Gate) -> None:
    """The program's exit code is the command's, and a program that is not there says so."""
    assert gate.run("sh", "-c", "exit 42").code == 42
    assert gate.run("sh", "-c", "kill -TERM $$").code == 128 + signal.SIGTERM
    assert gate.run("/no/such/program").code not in (0, 42)


def test_signals(gate: Gate) -> None:
    """A signal to `zonegate run` reaches the program itself."""
    trap = "trap 'echo caught; exit 7' TERM; echo begun; while :; do sleep 0.05; done"
    bubble = gate.bubble("sh", "-c", trap)
    bubble.says("begun")
    bubble.process.send_signal(signal.SIGTERM)
    bubble.says("caught")
    assert bubble.process.wait(LIMIT_S) == 7


# -- names -------------------------------------------------------------------------------------------


def test_names_are_synthetic(gate: Gate, watch: Watch) -> None:
    """Every name, also a public or unknown one, gets a synthetic address, and nobody is asked."""
    for name in (INTRANET_NAME, "www.example.org", "no-such-name.invalid.example"):
        done = gate.run("getent", "ahostsv4", name)
        assert done.code == 0 and done.out.startswith("198.1"), done
    assert gate.run("dig", "+short", "HTTPS", INTRANET_NAME).out == ""
    watch.only_the_gateway()


@AS_ROOT
def test_a_name_is_asked_as_it_is(gate: Gate, new_gate: NewGate) -> None:
    """D5: no suffix is put behind a name, by glibc or dig, and nobody is asked but the gate."""
    for one, red in (new_gate("one-resolver"), True), (gate, False):
        found = one.run("getent", "ahostsv4", "printer").out
        asked = one.run("dig", "+search", "printer").out
        assert ("lan.example" in found, "lan.example" in asked) == (red, red), found + asked
        assert f"SERVER: {RESOLVER if red else OWN_V4}#53" in asked, asked


@pytest.mark.parametrize("resolver", [RESOLVER, "2001:4860:4860::8888", "10.200.1.1"])
def test_a_resolver_of_ones_own_choice(gate: Gate, watch: Watch, resolver: str) -> None:
    """A question to any resolver is answered by the gate, over UDP and TCP."""
    for transport in ("+notcp", "+tcp"):
        done = gate.run("dig", transport, "+short", "+time=60", "+tries=1", f"@{resolver}", "www.example.org")
        assert done.out.startswith("198.1"), done
    watch.only_the_gateway()


# -- refusals ----------------------------------------------------------------------------------------


def test_a_blocked_site_is_readable(gate: Gate, watch: Watch) -> None:
    """The rule that blocks is named in the answer and in the record."""
    done = gate.run("curl", "-sS", "-m", "60", "-i", "http://paste.pastehub.example/")
    assert "403 Forbidden" in done.out and "no-public-sharing" in done.out, done
    record = gate.record("verdict", lambda row: row["name"] == "paste.pastehub.example")
    assert (record["verdict"], record["because"]["id"]) == ("block", "no-public-sharing")
    page = gate.run("curl", "-sS", "-m", "60", "-H", "Accept: text/html", "http://www.example.org/").out
    assert page.startswith("<!doctype html>") and "www.example.org" in page
    tls = gate.run("curl", "-sS", "-m", "60", "https://paste.pastehub.example/")
    assert tls.code == 35 and "alert" in tls.err, tls
    watch.only_the_gateway()


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC6, INTRANET, "169.254.169.254"])
def test_a_literal_is_refused_at_once(gate: Gate, watch: Watch, address: str) -> None:
    """A literal address is in no rule: HTTP reads why, other TCP is reset."""
    host = f"[{address}]" if ":" in address else address
    done = gate.run("curl", "-sS", "-m", "60", f"http://{host}/")
    assert f"zonegate: {host}:80 is" in done.out or f"zonegate: {address}" in done.out, done
    reset = gate.python("clients", "refused", address, "9999").out.strip()
    assert reset in ("ConnectionResetError at once", "ConnectionRefusedError at once")
    watch.only_the_gateway()


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC6, "10.200.1.1"])
def test_datagrams_are_refused_at_once(gate: Gate, watch: Watch, address: str) -> None:
    """UDP that is not DNS goes nowhere, and the program hears it at once."""
    said = gate.python("clients", "refused-datagram", address, "4433").out.strip()
    assert said.endswith("at once") and not said.startswith("answered"), said
    watch.only_the_gateway()


def test_ping_is_refused_at_once(gate: Gate, watch: Watch) -> None:
    """No echo leaves, and none is answered in the destination's name."""
    for address in (PUBLIC, PUBLIC6):
        assert gate.python("canary", "ping", address).out.strip() != "answered"
    watch.only_the_gateway()


# -- what is said and written ------------------------------------------------------------------------


def test_status(gate: Gate) -> None:
    """`status --json` tells of the tunnel, the peer, workers, bubbles; exit code 0 when all is well."""
    bubble = gate.bubble("cat")
    bubble.tell("hello")
    bubble.says("hello")
    done = gate.call("status", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["enforcement"] == "structural" and found["trouble"] == []
    tunnel = found["tunnels"]["hq"]
    assert (tunnel["state"], tunnel["attested"], tunnel["gateway"]) == ("attested", True, "10.200.2.2:8443")
    assert tunnel["peer"] == gate.host.world.names.server.pin and 0 <= tunnel["proof_age_s"] < 3
    (listed,) = found["bubbles"]
    assert listed["zone"] == "corporate" and listed["enforcement"] == "structural"
    assert {worker["zone"] for worker in found["workers"]} == {"corporate"}
    assert "attested" in gate.call("status").out
    bubble.end()


def test_records(gate: Gate) -> None:
    """A flow has a verdict record before its end record, each with every field that the design names."""
    before = gate.flows()
    gate.run("curl", "-sS", "-m", "60", f"http://{INTRANET_NAME}/records")
    end = gate.record("end", lambda row: row["flow"] not in before)
    flow = end["flow"]
    both = [row for row in gate.records() if row.get("flow") == flow]
    assert [row["record"] for row in both] == ["verdict", "end"]
    peer = gate.host.world.names.server.pin
    for row in both:
        assert (row["zone"], row["port"], row["protocol"]) == ("corporate", 80, "http")
        assert (row["verdict"], row["tunnel"], row["peer"]) == ("tunnel", "hq", peer)
        assert row["because"]["id"] == "catalogue" and row["enforcement"] == "structural"
        assert 0 <= row["proof_age_s"] < 3 and row["policy"] == gate.status()["policy"]["hash"]
    assert end["bytes_up"] > 0 and end["bytes_down"] > 0 and end["duration_s"] >= 0
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (gate.state / "audit").glob("*.jsonl"))
