"""What the demonstration tells: each step does something real in a bubble and holds it against what a
person should see."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from proxy.demo.corporate import NAME
from proxy.demo.machines import PROGRAM_LIMIT_S, Machines

PAGE = "You reached it through the tunnel."
CUT_LIMIT_S = 3.0  # the design's bound for a tunnel that falls silent

_FETCH = f"""\
import urllib.request
with urllib.request.urlopen("http://{NAME}/", timeout=10) as answer:
    print(answer.status, answer.read().decode())
"""
_ASK = """\
import socket, struct
name = b"".join(bytes([len(label)]) + label for label in b"www.canary.example".split(b".")) + b"\\0"
query = struct.pack("!6H", 4242, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(5)
    sock.sendto(query, ("192.0.2.53", 53))
    reply, sender = sock.recvfrom(4096)
    print("as if from " + sender[0] + ": " + socket.inet_ntoa(reply[-4:]))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(5)
    sock.connect(("192.0.2.53", 123))
    sock.send(b"x")
    try:
        sock.recv(1)
    except OSError as error:
        print(error.strerror)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to see: what is done, what should be seen, what was seen, and whether that is it."""

    title: str
    expected: str
    seen: str
    good: bool


def tell(machines: Machines) -> Iterator[Step]:
    """Every step in order; each is done when it is asked for."""
    for step in (_proved, _page, _python, _blocked, _literal, _names):
        yield step(machines)
    yield from _cut(machines)
    yield _back(machines)


def _proved(machines: Machines) -> Step:
    tunnel = machines.tunnel()
    pin = machines.site.pin
    return Step(
        f"the tunnel ({tunnel['kind']})",
        f"attested, and its peer's key is the pinned one, {_short(pin)}",
        f"{tunnel['state']}, {_short(tunnel['peer'])}, proved {tunnel['proof_age_s']} s ago",
        bool(tunnel["attested"]) and tunnel["peer"] == pin,
    )


def _page(machines: Machines) -> Step:
    done = machines.bubble("curl", "-sS", "-m", "10", f"http://{NAME}/")
    return _through_tunnel(machines, f"curl http://{NAME}/", done.stdout + done.stderr)


def _python(machines: Machines) -> Step:
    done = machines.bubble("/usr/bin/python3", "-c", _FETCH)
    return _through_tunnel(machines, f"Python urllib http://{NAME}/", done.stdout + done.stderr)


def _through_tunnel(machines: Machines, title: str, output: str) -> Step:
    record = _last(machines, lambda row: row["record"] == "verdict" and row["verdict"] == "tunnel")
    page = "the intranet page" if PAGE in output else _one_line(output)
    return Step(
        title,
        f"the intranet page, through tunnel hq to peer {_short(machines.site.pin)}",
        f"{page}, through tunnel {record.get('tunnel')} to peer {_short(str(record.get('peer')))}",
        PAGE in output and record.get("tunnel") == "hq" and record.get("peer") == machines.site.pin,
    )


def _blocked(machines: Machines) -> Step:
    done = machines.bubble("curl", "-sS", "-m", "10", "http://www.pastehub.example/")
    return Step(
        "curl http://www.pastehub.example/",
        "blocked by guard no-public-sharing",
        _one_line(done.stdout + done.stderr),
        "blocked by guard no-public-sharing" in done.stdout,
    )


def _literal(machines: Machines) -> Step:
    done = machines.bubble("curl", "-sS", "-m", "10", "http://203.0.113.9/")
    return Step(
        "curl http://203.0.113.9/, a literal address",
        "blocked: no rule grants it, and there is no other way",
        _one_line(done.stdout + done.stderr),
        "203.0.113.9:80 is blocked by default" in done.stdout,
    )


def _names(machines: Machines) -> Step:
    done = machines.bubble("/usr/bin/python3", "-c", _ASK)
    lines = done.stdout.splitlines()
    answered = re.match(r"as if from 192\.0\.2\.53: 198\.1[89]\.", done.stdout) is not None
    return Step(
        "a DNS question to 192.0.2.53, and UDP to its port 123",
        "answered by the gate with an address of its own (198.18.0.0/15); the rest refused at once",
        f"{lines[0]}; UDP to 123: {lines[1]}" if len(lines) == 2 else _one_line(done.stdout + done.stderr),
        answered and len(lines) == 2,
    )


def _cut(machines: Machines) -> Iterator[Step]:
    """The gateway falls silent while something is being downloaded."""
    download = machines.start_bubble(["curl", "-sS", "--no-buffer", f"http://{NAME}/stream"])
    try:
        assert download.stdout is not None
        fd = download.stdout.fileno()
        got = len(os.read(fd, 65536))
        machines.cut()
        began = time.monotonic()
        while chunk := os.read(fd, 65536):
            got += len(chunk)
        seconds = time.monotonic() - began
        code = download.wait(PROGRAM_LIMIT_S)
    finally:
        download.kill()
        download.wait()
    yield Step(
        "the gateway falls silent during a download",
        f"the download is cut within {CUT_LIMIT_S:g} s",
        f"cut after {seconds:.1f} s and {got // 1024} KiB; curl ends with {code}",
        code != 0 and got > 0 and seconds <= CUT_LIMIT_S + 0.5,
    )
    done = machines.bubble("curl", "-sS", "-m", "10", f"http://{NAME}/")
    yield Step(
        f"curl http://{NAME}/ without the tunnel",
        "blocked by guard proof-or-nothing, and why",
        _one_line(done.stdout + done.stderr),
        "blocked by guard proof-or-nothing" in done.stdout and "not proved" in done.stdout,
    )


def _back(machines: Machines) -> Step:
    machines.mend()
    seconds = machines.until(lambda: bool(machines.tunnel()["attested"]), "the tunnel is back")
    done = machines.bubble("curl", "-sS", "-m", "10", f"http://{NAME}/")
    page = "the intranet page" if PAGE in done.stdout else _one_line(done.stdout + done.stderr)
    return Step(
        "the gateway answers again",
        "attested without help, and the same request is good again",
        f"attested after {seconds:.1f} s; {page}",
        PAGE in done.stdout,
    )


def _last(machines: Machines, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    rows = [row for row in machines.audit() if wanted(row)]
    return rows[-1] if rows else {}


def _short(pin: str) -> str:
    return pin[:19] + "…" if len(pin) > 20 else pin


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "nothing"
