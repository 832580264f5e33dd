"""The records as people read them: in order, as they grow, filtered, verified, whoever wrote the files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from audit_records import NOW, end, verdict
from click.testing import CliRunner, Result

from proxy.audit import GapRecord, encode
from proxy.chain import MANIFEST
from proxy.cli import zonegate
from proxy.flow import Because, Origin, Verdict
from proxy.segments import OpenSegment, Segments
from proxy.trail import Filters, Following, line


class Records:
    """A directory of records with a worker for each zone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.segments = Segments(directory, clock=lambda: NOW)
        self.open: dict[str, OpenSegment] = {}

    def write(self, zone: str, *records: bytes) -> None:
        if zone not in self.open:
            self.open[zone] = self.segments.open(zone, "w")
        for record in records:
            os.write(self.open[zone].fd, record)

    def seal(self) -> None:
        for segment in self.open.values():
            os.close(segment.fd)
            self.segments.seal(segment.path)
        self.open.clear()

    def call(self, *arguments: str) -> Result:
        return CliRunner().invoke(zonegate, ["audit", *arguments, "--dir", str(self.directory)])


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "audit")


def judged(number: int, **more: object) -> bytes:
    return encode(replace(verdict(), flow=f"f{number}", at=NOW + timedelta(seconds=number), **more))  # type: ignore[arg-type] # by name


def flows(result: Result) -> list[str]:
    return [json.loads(text)["flow"] for text in result.stdout.splitlines()]


def test_the_records_of_all_segments_are_in_the_order_of_their_times(records: Records) -> None:
    for number in range(6):
        records.write("ab"[number % 2], judged(number))
    found = [one for one in Following(records.directory).new() if one.record and "flow" in one.text]
    assert [one.at for one in found] == sorted(one.at for one in found)
    assert flows(records.call("tail", "-n", "4", "--json")) == ["f2", "f3", "f4", "f5"]
    assert records.call("tail", "-n", "0").stdout == ""


def test_what_comes_later_is_told_once_and_half_a_line_not_yet(records: Records) -> None:
    following = Following(records.directory)
    records.write("a", judged(1))
    assert [one.text for one in following.latest(5)] == [judged(1).decode().rstrip()]
    assert list(following.new()) == []
    whole = judged(2)
    records.write("a", whole[:20])
    assert list(following.new()) == []
    records.write("a", whole[20:])
    records.write("b", judged(3))
    assert [one.text[:20] for one in following.new() if '"flow"' in one.text] == [
        whole[:20].decode(),
        judged(3)[:20].decode(),
    ]


def test_an_old_segment_is_not_read_for_the_latest_records(records: Records) -> None:
    records.write("old", judged(100))  # as if by a clock that was set: it would be the latest
    past = (NOW - timedelta(days=1)).timestamp()
    os.utime(records.open["old"].path, (past, past))
    records.write("new", judged(5), judged(6))
    following = Following(records.directory)
    assert [one.at for one in following.latest(2)] == [NOW + timedelta(seconds=n) for n in (5, 6)]
    assert list(following.new()) == []


def test_tail_follows(records: Records) -> None:
    records.write("a", judged(1))
    command = [
        sys.executable,
        "-m",
        "proxy.cli",
        "audit",
        "tail",
        "-f",
        "--json",
        "--dir",
        str(records.directory),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["flow"] == "f1"
            records.write("a", judged(2))
            assert json.loads(process.stdout.readline())["flow"] == "f2"
        finally:
            process.kill()


FLOW = judged(1, name="git.corp.example", because=Because(Origin.RULE, "git"))
BLOCKED = judged(
    2, zone="lab", user="bob", name=None, address=ip_address("192.0.2.1"), verdict=Verdict.BLOCK, tunnel=None
)


@pytest.mark.parametrize(
    "options, wanted",
    [
        (["--zone", "lab"], ["f2"]),
        (["--user", "alice"], ["f1"]),
        (["--flow", "f2"], ["f2"]),
        (["--to", "git.corp.example"], ["f1"]),
        (["--to", "GIT.corp.example."], ["f1"]),
        (["--to", "*.corp.example"], ["f1"]),
        (["--to", "192.0.2.1"], ["f2"]),
        (["--verdict", "block"], ["f2"]),
        (["--rule", "git"], ["f1"]),
        (["--since", (NOW + timedelta(seconds=2)).isoformat()], ["f2"]),
        (["--until", (NOW + timedelta(seconds=2)).isoformat()], ["f1"]),
        (["--user", "alice", "--zone", "lab"], []),
    ],
)
def test_records_are_filtered(records: Records, options: list[str], wanted: list[str]) -> None:
    records.write("a", FLOW, BLOCKED)
    found = records.call("show", "--json", *options)
    assert flows(found) == wanted
    assert found.exit_code == (0 if wanted else 1)


@pytest.mark.parametrize(
    "options", [["--since", "tuesday"], ["--to", "0x7f.1"], ["--to", "*.0.2.1"], ["--since", "99999-01-01"]]
)
def test_what_cannot_be_asked_for_is_one_line(records: Records, options: list[str]) -> None:
    found = records.call("show", *options)
    assert (found.exit_code, found.stdout, found.stderr.count("\n")) == (2, "", 1)


def test_that_nothing_fits_is_said_with_how_far_the_records_reach(records: Records) -> None:
    none = records.call("show", "--flow", "f1")
    assert (none.exit_code, none.stdout) == (1, "") and "fits: there is none yet; " in none.stderr
    records.write("a", FLOW, BLOCKED)
    none = records.call("show", "--flow", "f9", "--json")
    said = f"fits: the oldest there is of {NOW.astimezone():%Y-%m-%d %H:%M:%S}; "
    assert (none.exit_code, none.stdout, none.stderr.count("\n")) == (1, "", 1) and said in none.stderr


def test_an_end_fits_as_its_flow_does_and_junk_only_when_nothing_is_asked_for(records: Records) -> None:
    records.write("a", FLOW, encode(end()), b"junk\n", encode(GapRecord(at=NOW, since=NOW, lost=3)))
    assert '"record":"end"' in records.call("show", "--user", "alice", "--json").stdout
    every = records.call("show", "--json").stdout.splitlines()
    assert [json.loads(text)["record"] for text in every].count("unreadable") == 1
    assert "gap: 3 records" in records.call("show").stdout


def test_nothing_in_a_record_reaches_a_terminal_as_a_command(records: Records) -> None:
    junk = Because(Origin.RULE, "x", "\x1b[2J\r\n\x9b31m")
    records.write("a", judged(1, because=junk, name="\x1b]0;owned\x07"), b'"\x1b[31m\xff junk"\n')
    shown = records.call("show").stdout
    assert shown.count("\n") == 3
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_a_line_for_people_has_all_that_matters(records: Records) -> None:
    records.write("a", FLOW, BLOCKED, encode(end()))
    header, first, second, ended = (line(one) for one in Following(records.directory).new())
    assert "begins" in header
    for words in ("tunnel", "f1  alice@corporate", "git.corp.example:443 tls", "by rule git through hq"):
        assert words in first
    for words in ("block", "bob@lab", "192.0.2.1:443"):
        assert words in second
    assert "2000 down in 2 s; closed by both" in ended


def test_a_flow_that_said_no_destination_is_told_without_one(records: Records) -> None:
    records.write("a", judged(1, name="", address=None, port=0))
    assert "tls, before it said where to" in records.call("show").stdout


def test_filters_that_ask_for_nothing_admit_all() -> None:
    assert Filters.of() == Filters()
    assert Filters.of(since="2026-01-05").since == datetime(2026, 1, 5).astimezone(UTC)  # local time is meant


# -- verify ------------------------------------------------------------------------------------------


def edit_segment(directory: Path) -> None:
    path = min(directory.glob("*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b"alice", b"mallo"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a sealed segment was changed": (edit_segment, "was changed after it was sealed"),
    "one was removed": (lambda at: min(at.glob("*.jsonl")).unlink(), "is missing, and was not pruned"),
    "the manifest was shortened": (lambda at: (at / MANIFEST).write_bytes(b""), "was shortened or replaced"),
    "a line of the manifest was changed": (
        lambda at: (at / MANIFEST).write_bytes(
            (at / MANIFEST).read_bytes().replace(b'"sealed"', b'"Sealed"', 1)
        ),
        "this line cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_kind_of_damage_has_its_words_and_exit_code_1(records: Records, damage: str) -> None:
    for number in (1, 2):
        records.write("a", judged(number))
        records.seal()
    good = records.call("verify")
    assert good.exit_code == 0 and good.stdout.startswith("whole: 2 sealed, 0 still open\nhead ")
    head = good.stdout.split()[-1]
    change, words = DAMAGES[damage]
    change(records.directory)
    found = records.call("verify", "--head", head)
    assert found.exit_code == 1 and found.stdout.startswith("damaged")
    assert words in found.stderr
    told = json.loads(records.call("verify", "--head", head, "--json").stdout)
    assert told["good"] is False and any(words in problem for problem in told["problems"])


def test_a_directory_that_cannot_be_read_is_exit_code_2(records: Records) -> None:
    found = CliRunner().invoke(zonegate, ["audit", "verify", "--dir", str(records.directory / "nowhere")])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    found = records.call("verify", "--head", "abc")
    assert found.exit_code == 2 and "is no head" in found.stderr
