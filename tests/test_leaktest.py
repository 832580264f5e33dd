"""The leak test's own parts: signs, the table of attempts, the judgement, and what its exit code says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from lab import kernel
from lab.kernel import REPOSITORY
from lab.world import USER
from rich.console import Console

from proxy import syscalls
from proxy.cli.leaktest import code_of, command, show, verdict_of
from proxy.leaktest import attempts as table
from proxy.leaktest.attempts import Attempt, Control, Scope
from proxy.leaktest.calls import PROBES
from proxy.leaktest.capture import ARP, IPV4, IPV6, Sign, Signs
from proxy.leaktest.ground import Ground, unix_listeners
from proxy.leaktest.judge import Judged, Try, Verdict, judge
from proxy.leaktest.places import LeaktestError
from proxy.leaktest.probes import client_hello, heard, question
from proxy.leaktest.trial import Found

GROUND = Ground(
    nonce="0badcafe",
    devices=("eth0",),
    addresses=("192.0.2.2", "fd00::2"),
    routers=("192.0.2.1",),
    resolvers=("10.255.255.53", "1.1.1.1"),
    gateways=(("192.0.2.7", 8443),),
    listening=(("127.0.0.1", 4000), ("192.0.2.2", 4001)),
    unix_made=("@zonegate-leaktest-x", "/tmp/zonegate-leaktest-y/canary"),
    unix_found=("/run/dbus/system_bus_socket",),
    vsock_port=99,
    inherited=700,
    network="net:[4026531840]",
    daemon="/run/zonegate/admin.sock",
    process=(4711, "zgleak-0badcafe"),
    memory_key=7,
)
TABLE = table.attempts(GROUND)
PREFIX = table.prefix(GROUND.nonce)
SIGNS = Signs.of(PREFIX, [sign for one in TABLE for sign in one.signs])


# -- the table ---------------------------------------------------------------------------------------


def test_every_attempt_has_a_probe_that_takes_its_arguments() -> None:
    for one in TABLE:
        code = PROBES[one.probe].__code__
        assert set(one.arguments) <= set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]), one


def test_no_two_attempts_look_alike() -> None:
    """Neither in the table nor on a wire: what is seen is of one attempt and no other."""
    assert max(Counter(one.title for one in TABLE).values()) == 1
    signs = Counter((sign.kind, sign.offset, sign.content) for one in TABLE for sign in one.signs)
    assert max(signs.values()) == 1


def test_each_row_is_one_of_the_threats() -> None:
    rows = set(re.findall(r"^\| ([A-Z]\d+) \|", (REPOSITORY / "docs/threats.md").read_text(), re.MULTILINE))
    assert {one.row for one in TABLE} <= rows


def test_the_ways_that_the_threats_name_are_all_there() -> None:
    titles = " / ".join(one.title for one in TABLE)
    for words in (
        "bound to every device", "raw IPv4", "packet socket", "DNS over UDP to 10.255.255.53", "DNS over TLS",
        "DNS over HTTPS", "QUIC", "IPv6", "multicast", "broadcast", "router 192.0.2.1", "169.254.169.254",
        "abstract Unix socket", "Unix socket below /tmp", "in sight", "endpoint 192.0.2.7", "source route",
        "routing header", "::ffff:", "fragments", "echo request", "joining a group", "the host's network",
        "steer the kernel", "the host's own 192.0.2.2", "vsock", "a descriptor of the caller's",
        "asking for AF_PACKET", "asking for AF_ALG", "other families of sockets", "32-bit", "io_uring_setup",
        "bpf", "userfaultfd", "keyctl", "TIOCSTI", "a signal to a process", "tracing a process",
        "the daemon's own socket",
        "a file in the home", "DNS over QUIC", "0.0.0.0", "raw GRE", "::203.0.113.7",
    ):  # fmt: skip
        assert words in titles, words


def test_what_needs_files_is_not_tried_without_a_sandbox() -> None:
    of_files = {one.probe for one in TABLE if one.scope is Scope.SANDBOX}
    assert {"unix_in_sight", "inherited", "network_of_others", "files"} <= of_files
    assert "tcp" not in of_files


def test_every_family_of_sockets_is_asked_for_that_a_bubble_is_refused() -> None:
    """Of those that the kernel knows; the four that ordinary programs have are the filter's own."""
    asked = [one.arguments["numbers"] for one in TABLE if one.probe == "families"]
    assert set(table.ORDINARY) == syscalls.BUBBLE_FAMILIES
    assert sorted(number for numbers in asked for number in numbers) == [
        number for number in range(table.FAMILIES_KNOWN) if number not in syscalls.BUBBLE_FAMILIES
    ]


def test_the_document_names_the_rows_that_are_tried() -> None:
    text = (REPOSITORY / "docs/leaktest.md").read_text()
    told = re.search(r"\(rows ([^)]*)\)", text)
    assert told and {*re.findall(r"[A-Z]\d+", told[1])} == {one.row for one in TABLE}


# -- signs -------------------------------------------------------------------------------------------


def attempt(title: str) -> Attempt:
    return next(one for one in TABLE if one.title == title)


def ipv4(target: str, after: bytes) -> bytes:
    return bytes(12) + socket.inet_aton("192.0.2.9") + socket.inet_aton(target) + after


def test_a_syn_is_known_by_its_destination_and_ports() -> None:
    one = attempt("TCP 443, IPv4")
    ports = struct.pack("!HH", one.arguments["source_port"], 443)
    assert SIGNS.find(IPV4, ipv4(one.arguments["address"], ports + bytes(16))) == {one.number}
    other = struct.pack("!HH", one.arguments["source_port"] ^ 1, 443)
    assert SIGNS.find(IPV4, ipv4(one.arguments["address"], other + bytes(16))) == set()


def test_a_mapped_address_is_sought_as_what_goes_on_a_wire() -> None:
    one = attempt("TCP to ::ffff:203.0.113.7")
    ports = struct.pack("!HH", one.arguments["source_port"], 80)
    assert SIGNS.find(IPV4, ipv4("203.0.113.7", ports)) == {one.number}


def test_a_mark_is_found_anywhere_and_several_of_them() -> None:
    packet = b"x" * 90 + PREFIX + b"003" + b"y" + PREFIX + b"011" + PREFIX + b"zz"
    assert SIGNS.find(IPV6, packet) == {3, 11}


def test_a_question_for_a_neighbour_is_known() -> None:
    one = attempt("bound to every device, IPv4")
    asked = bytes(24) + socket.inet_aton(one.arguments["neighbour"])
    assert SIGNS.find(ARP, asked) == {one.number}
    one = attempt("bound to every device, IPv6")
    asked = bytes(48) + socket.inet_pton(socket.AF_INET6, one.arguments["neighbour"])
    assert SIGNS.find(IPV6, asked) == {one.number}


def test_the_mark_is_in_what_is_said() -> None:
    assert b"mark-1" in question("mark-1") and b"mark-1" in client_hello("mark-1")


@pytest.mark.parametrize(
    ("what", "answer", "meant"),
    [
        ("dns", question("m")[:3] + b"\x83" + question("m")[4:], "refused"),
        ("dns", question("m") + bytes([198, 18, 1, 2]), "answered by the gate"),
        ("dns", question("m") + bytes([93, 184, 1, 2]), "answered"),
        ("tls", b"\x15\x03\x03\0\2\2\x31", "refused by the gate"),
        ("tls", b"\x16\x03\x03\0\x7a\2", "answered"),
        ("http", b"HTTP/1.1 403 Forbidden\r\nZonegate-Because: x\r\n", "refused by the gate"),
        ("http", b"HTTP/1.1 200 OK\r\n", "answered"),
        ("mark", b"", "refused: closed"),
    ],
)
def test_whose_answer_it_is(what: str, answer: bytes, meant: str) -> None:
    assert heard(what, answer) == meant


# -- the judgement -----------------------------------------------------------------------------------

SEEN = Try("a namespace with a way out", "control", "silence", ("can0",))
UNSEEN = Try("a namespace with a way out", "control", "not there")
HELD = Try("a bubble", "attested", "refused")
WIRE = Attempt(number=0, row="N1", title="TCP", expected="refused", probe="tcp", arguments={})
SCTP = replace(WIRE, needs="SCTP")
DNS = replace(WIRE, probe="udp", arguments={"says": "dns"})


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    attempt: Attempt
    control: Try
    tries: tuple[Try, ...]
    captured: bool
    verdict: Verdict

    def __str__(self) -> str:
        return self.sentence


CASES = [
    Case("refused everywhere, seen in its control", WIRE, SEEN, (HELD,), True, Verdict.HELD),
    Case("without a control nothing is shown", WIRE, UNSEEN, (HELD,), True, Verdict.NOT_SHOWN),
    Case("what a machine lacks is no way", SCTP, UNSEEN, (HELD,), True, Verdict.ABSENT),
    Case(
        "seen on a device once is a leak",
        WIRE,
        SEEN,
        (HELD, replace(HELD, outcome="silence", seen_at=("eth0",))),
        True,
        Verdict.LEAK,
    ),
    Case(
        "a leak is one whatever its control says",
        SCTP,
        UNSEEN,
        (replace(HELD, seen_at=("eth0",)),),
        True,
        Verdict.LEAK,
    ),
    Case(
        "what was reached is a leak",
        WIRE,
        SEEN,
        (replace(HELD, outcome="reached: 1"),),
        False,
        Verdict.LEAK,
    ),
    Case(
        "an answer may have come through the tunnel, if all wires were looked at",
        WIRE,
        SEEN,
        (replace(HELD, outcome="answered"),),
        True,
        Verdict.HELD,
    ),
    Case(
        "and is not shown if they were not",
        WIRE,
        SEEN,
        (replace(HELD, outcome="answered"),),
        False,
        Verdict.NOT_SHOWN,
    ),
    Case(
        "a name that another resolver answers",
        DNS,
        SEEN,
        (replace(HELD, outcome="answered"),),
        True,
        Verdict.LEAK,
    ),
    Case(
        "the gate's own answer",
        DNS,
        SEEN,
        (replace(HELD, outcome="answered by the gate"),),
        False,
        Verdict.HELD,
    ),
    Case(
        "a probe that failed shows nothing",
        WIRE,
        SEEN,
        (replace(HELD, outcome="failed: KeyError"),),
        True,
        Verdict.NOT_SHOWN,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_judgement(case: Case) -> None:
    assert judge(case.attempt, case.control, case.tries, captured=case.captured).verdict is case.verdict


def found(*verdicts: Verdict, missed: int = 0) -> Found:
    rows = [Judged(WIRE, SEEN, (HELD,), verdict, "") for verdict in verdicts]
    return Found("corporate", judged=rows, missed=missed)


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (found(Verdict.HELD, Verdict.ABSENT), 0, "nothing left the zone"),
        (found(Verdict.HELD, Verdict.LEAK, Verdict.NOT_SHOWN), 1, "1 LEAK"),
        (found(Verdict.HELD, Verdict.NOT_SHOWN), 2, "1 could not be shown"),
        (found(Verdict.HELD, missed=3), 2, "3 frames were missed"),
        (found(), 2, "0 ways out"),
    ],
)
def test_exit_codes(result: Found, code: int, words: str) -> None:
    assert code_of(result) == code
    assert words in verdict_of(result)[0]


def test_on_a_narrow_terminal_what_was_seen_has_the_room() -> None:
    for width, there in ((80, False), (160, True)):
        console = Console(width=width, record=True, file=io.StringIO())
        show(found(Verdict.HELD), console)
        assert ("expected" in console.export_text()) is there


def test_signs_of_other_kinds_do_not_meet() -> None:
    signs = Signs.of(b"mark-", [Sign(ARP, 0, b"abcd", 1), Sign(IPV4, 0, b"abcd", 2)])
    assert signs.find(ARP, b"abcd") == {1} and signs.find(IPV4, b"abcd") == {2}
    assert signs.find(IPV6, b"abcd") == set()


def test_controls_are_where_a_way_out_is() -> None:
    assert {one.control for one in TABLE if one.probe in ("unix", "inherited")} == {Control.HOST}
    assert {one.control for one in TABLE if one.probe in ("packet", "group", "ping")} == {Control.OPEN}


# -- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "broke off, and nothing was shown (PermissionError"),
        (ValueError("two\nlines"), "(ValueError: two lines)"),
        (LeaktestError("with a cure"), "zonegate: with a cure"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_whatever_goes_wrong_is_no_leak(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    """One line and exit code 2, for 1 says that something left the zone."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("proxy.cli.leaktest.test", fails)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    done = CliRunner().invoke(command, [])
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_output_that_nobody_takes_is_no_leak() -> None:
    """A full disk, a pipe that is closed: exit code 2."""
    fails = """
import sys
import proxy.cli.leaktest as c
c.test = lambda *_: c.Found("corporate")
sys.argv = ["zonegate", "leaktest", *sys.argv[1:]]
from proxy.cli import main
main()
"""
    for options in ([], ["--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-P", "-c", fails, *options],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done


def test_sockets_in_a_directory_of_somebody_else() -> None:
    """What this user may not look into is passed over; the user's own sockets are found."""

    def ask() -> bytes:
        return json.dumps(unix_listeners()).encode()

    with tempfile.TemporaryDirectory() as base, contextlib.ExitStack() as undo:
        Path(base).chmod(0o755)
        paths = [Path(base, name, "listening") for name in ("closed", "open")]
        for path in paths:
            path.parent.mkdir(mode=0o755)
            sock = undo.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(path))
            sock.listen()
        assert {*map(str, paths)} <= {*unix_listeners()}, "the control: both are there"
        undo.callback(paths[0].parent.chmod, 0o700)
        paths[0].parent.chmod(0)
        said = ask() if os.getuid() else kernel.as_user(USER, ask)
        assert {*map(str, paths)} & {*json.loads(said)} == {str(paths[1])}
