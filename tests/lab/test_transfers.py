"""What is sent through a real inspector: trusted in the bubble, scanned, bounded; and what is never seen."""

from __future__ import annotations

import signal

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, NewGate, Watch
from lab.gate import Gate

NAME, PINNED = "intranet.corp.example", "git.corp.example"
CARD = b"4111 1111 1111 1111"
IBAN = b"DE89 3704 0044 0532 0130 00"
DESTINATIONS = f"""
    watched:
      to: {NAME}
      scan: {{block: [card-numbers], report: [iban]}}
      quota: {{upload: 3MiB, per: user, every: month}}
    pinned: {{to: {PINNED}, opaque: true}}
"""


@pytest.fixture
def gate(new_gate: NewGate) -> Gate:
    return new_gate(inspects=True, destinations=DESTINATIONS.lstrip("\n")).attested()


def curl(gate: Gate, *arguments: str, stdin: bytes = b"") -> str:
    """What curl says in a bubble, with nothing told of any authority."""
    done = gate.run("curl", "-sS", "-m", "60", "-i", *arguments, stdin=stdin)
    return done.out + done.err


def upload(gate: Gate, data: bytes, *more: str) -> str:
    return curl(gate, "--data-binary", "@-", "-H", "Expect:", *more, f"https://{NAME}/upload", stdin=data)


@AS_ROOT
def test_programs_need_nothing_to_trust_what_is_inspected(gate: Gate, watch: Watch) -> None:
    url = f"https://{NAME}/"
    assert curl(gate, url).endswith("the intranet\n")
    python = f"import urllib.request as r; print(r.urlopen('{url}').read().decode())"
    assert "the intranet" in gate.run("/usr/bin/python3", "-I", "-c", python).out
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-dev-shm-usage"
    seen = gate.run("chromium", *options.split(), "--dump-dom", url)
    assert "the intranet" in seen.out, seen
    watch.only_the_gateway()


@AS_ROOT
def test_what_holds_a_pattern_does_not_go_and_is_written_down_nowhere(gate: Gate) -> None:
    for more in ([], ["--http1.1"], ["--http1.1", "-H", "Transfer-Encoding: chunked"]):
        refused = upload(gate, b"x" * 300_000 + b" " + CARD + b" " + b"y" * 1000, *more)
        assert " 403" in refused.partition("\n")[0] and "card-numbers" in refused, refused
    let_go = upload(gate, b"to " + IBAN + b" please")
    assert " 200" in let_go.partition("\n")[0], let_go
    gate.record("end", lambda row: "found and let go: iban" in row["why"])
    gate.record("verdict", lambda row: row["because"]["id"] == "scan")
    for file in gate.state.rglob("*"):
        text = file.read_bytes() if file.is_file() else b""
        assert CARD not in text and CARD.replace(b" ", b"") not in text and IBAN not in text, file


@AS_ROOT
def test_a_quota_counts_bodies_and_outlives_the_inspector(gate: Gate) -> None:
    assert " 200" in upload(gate, b"x" * (2 << 20)).partition("\n")[0]
    refused = upload(gate, b"x" * (2 << 20), "--http1.1")
    assert " 403" in refused.partition("\n")[0] and "quota of watched" in refused, refused
    kernel.signal_all([gate.child("inspector")], signal.SIGKILL)

    def refused_again() -> str:
        said = upload(gate, b"x")
        return said if "quota" in said else ""

    again = kernel.until("another one serves", refused_again)
    assert "opens again" in again
    (told,) = gate.status()["quotas"]
    assert told["used_bytes"] == told["limit_bytes"] == 3 << 20


@AS_ROOT
def test_what_is_opaque_shows_its_own_certificate(gate: Gate) -> None:
    """A program that knows its server's authority, and no other, works there; not where it is inspected."""
    told = gate.directory / "told"
    told.mkdir(mode=0o755)
    (told / "ca.crt").write_bytes((gate.directory / "site-ca.crt").read_bytes())
    for name, works in ((PINNED, True), (NAME, False)):
        command = ("curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", "--cacert")
        done = gate.run(*command, str(told / "ca.crt"), f"https://{name}/", share=[told])
        assert (done.out not in ("", "000")) is works, (name, done)
