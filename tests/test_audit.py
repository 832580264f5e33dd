"""Records and their segments: nothing unwritten is let through, nothing written can be changed unseen."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from audit_records import NOW, end, verdict
from hypothesis import given
from hypothesis import strategies as st

from proxy import chain
from proxy.audit import (
    AuditUnwritable,
    GapRecord,
    HeaderRecord,
    Record,
    Segment,
    Tally,
    VerdictRecord,
    decode,
    encode,
)
from proxy.chain import MANIFEST, NOTHING_BEFORE, Unreadable, read, tail, verify
from proxy.flow import Because, Origin, Protocol, Verdict
from proxy.lines import LineFile
from proxy.segments import MOST_LEAVING, Segments, Series


def opened(path: Path, max_bytes: int = 1 << 20) -> Segment:
    return Segment(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), max_bytes=max_bytes)


# -- one record is one line --------------------------------------------------------------------------


def test_a_verdict_says_everything_that_was_known_when_it_fell() -> None:
    assert json.loads(encode(verdict())) == {
        "record": "verdict",
        "at": "2026-01-02T03:04:05.678Z",
        "flow": "f1",
        "zone": "corporate",
        "user": "alice",
        "bubble": "b1",
        "name": "intranet.example",
        "address": None,
        "port": 443,
        "protocol": "tls",
        "verdict": "tunnel",
        "because": {
            "origin": "rule",
            "id": "intranet",
            "text": "the intranet is for everyone",
            "where": "corporate.yaml:12:3",
        },
        "policy": "sha256:abcd",
        "tunnel": "hq",
        "peer": "SHA256:peer",
        "proof_age_s": 0.25,
        "enforcement": "structural",
        "request": None,
    }


def test_an_end_repeats_the_verdict_so_that_one_line_tells_the_flow() -> None:
    judged = json.loads(encode(verdict()))
    ended = json.loads(encode(end(verdict(address=ip_address("192.0.2.1")))))
    assert ended == judged | {
        "record": "end",
        "at": "2026-01-02T03:04:07.678Z",
        "judged_at": judged["at"],
        "address": "192.0.2.1",
        "bytes_up": 10,
        "bytes_down": 2000,
        "duration_s": 2.0,
        "why": "closed by both",
    }


def test_times_are_in_utc_whatever_zone_they_come_in() -> None:
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    assert encode(verdict(at=tokyo)) == encode(verdict())


texts = st.text(st.characters(), max_size=40)
optional = st.none() | texts
verdicts = st.builds(
    VerdictRecord,
    at=st.datetimes(timezones=st.just(UTC)).map(
        lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000)
    ),
    flow=texts,
    zone=texts,
    user=texts,
    bubble=texts,
    name=optional,
    address=st.none() | st.ip_addresses(),
    port=st.integers(0, 65535),
    protocol=st.sampled_from(Protocol),
    verdict=st.sampled_from(Verdict),
    because=st.builds(Because, st.sampled_from(Origin), texts, texts, texts),
    policy=texts,
    tunnel=optional,
    peer=optional,
    proof_age_s=st.none() | st.floats(0, 1e9),
    enforcement=texts,
)


@given(verdicts)
def test_every_record_is_one_line_of_printable_ascii_and_reads_back(record: VerdictRecord) -> None:
    for each in (record, end(record)):
        line = encode(each)
        assert line.endswith(b"\n")
        assert all(0x20 <= byte < 0x7F for byte in line[:-1])
        assert decode(line) == each


@pytest.mark.parametrize(
    "evil", ["\r\n", "\n", "\x00", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\ud800", '"']
)
def test_no_character_of_a_name_ends_a_line_or_moves_a_cursor(evil: str) -> None:
    forged = f'a{evil}{{"record":"verdict"}}{evil}b'
    line = encode(verdict(name=forged))
    assert line.decode("ascii").splitlines(keepends=True) == [line.decode("ascii")]
    assert evil == '"' or evil.encode(errors="surrogatepass") not in line.removesuffix(b"\n")
    assert decode(line) == verdict(name=forged)


def test_a_field_is_cut_at_a_length_and_says_so() -> None:
    line = encode(verdict(name="a" * 100_000))
    assert len(line) < 2000
    record = decode(line)
    assert isinstance(record, VerdictRecord) and record.name is not None
    assert record.name.endswith("… 100000 characters")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"record":"verdict"}',
        b'{"record":"other","at":"2026-01-02T03:04:05Z"}',
        b'{"record":"gap","at":5,"since":5,"lost":1}',
        b"\xff",
        b"[" * 100_000,
        encode(verdict()).replace(b'"tunnel"', b'"tunnels"'),
        encode(verdict()).replace(b'"tls"', b'"tsl"'),
    ],
    ids=range(11),
)
def test_what_is_no_record_is_not_read_as_one(line: bytes) -> None:
    with pytest.raises(ValueError):
        decode(line)


# -- a worker's segment ------------------------------------------------------------------------------


def test_a_verdict_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    segment = opened(tmp_path / "s")
    segment.verdict(verdict())
    assert (tmp_path / "s").read_bytes() == encode(verdict())
    segment.end(end())
    assert list(read(tmp_path / "s")) == [verdict(), end()]
    segment.close()


def test_one_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, writes = opened(tmp_path / "s"), list[bytes]()
    write = os.write

    def noted(fd: int, line: bytes) -> int:
        writes.append(line)
        return write(fd, line)

    monkeypatch.setattr(os, "write", noted)
    segment.verdict(verdict())
    segment.end(end())
    assert writes == [encode(verdict()), encode(end())]


def test_dev_full_refuses_every_verdict_and_says_why() -> None:
    segment = Segment(os.open("/dev/full", os.O_WRONLY | os.O_APPEND), max_bytes=100)
    assert segment.trouble == ""
    for record in (verdict(), verdict()):
        with pytest.raises(AuditUnwritable, match="cannot be written: No space left on device"):
            segment.verdict(record)
        assert "No space left" in segment.trouble
    with pytest.raises(AuditUnwritable):
        segment.end(end())
    segment.close()


def test_on_a_full_disk_nothing_is_torn_and_the_first_write_that_succeeds_tells_the_gap(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("full_disk.py")
    command = ["unshare", "-Urm", sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_short_write_is_taken_back_and_refused_until_a_write_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "s", os.write
    segment = opened(path)
    segment.verdict(verdict(flow="before"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, line: write(fd, line[:20]))
        with pytest.raises(AuditUnwritable, match="only a part"):
            segment.verdict(verdict(flow="torn"))
        patch.setattr(os, "ftruncate", lambda fd, size: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(AuditUnwritable, match="I/O error"):
            segment.verdict(verdict(flow="torn too"))
        with pytest.raises(AuditUnwritable, match="I/O error"):
            segment.end(end())
    assert segment.trouble
    later = NOW + timedelta(minutes=1)
    segment.verdict(verdict(flow="after", at=later))
    assert segment.trouble == ""
    assert list(read(path)) == [
        verdict(flow="before"),
        GapRecord(at=later, since=NOW, lost=3),
        verdict(flow="after", at=later),
    ]
    segment.close()


def test_a_number_that_json_has_not_denies_the_flow(tmp_path: Path) -> None:
    segment = opened(tmp_path / "s")
    with pytest.raises(AuditUnwritable):
        segment.verdict(verdict(proof_age_s=float("nan")))
    assert (tmp_path / "s").read_bytes() == b""


def test_a_full_segment_asks_for_the_next_and_goes_on_in_it(tmp_path: Path) -> None:
    segment = opened(tmp_path / "1", max_bytes=len(encode(verdict())) + 1)
    asked = []
    for _ in range(3):
        segment.verdict(verdict())
        asked.append(segment.is_full)
    segment.replace(os.open(tmp_path / "2", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    asked.append(segment.is_full)
    assert asked == [False, True, True, False]
    segment.verdict(verdict(flow="next"))
    assert len(list(read(tmp_path / "1"))) == 3
    assert list(read(tmp_path / "2")) == [verdict(flow="next")]


def test_without_a_next_segment_flows_are_denied_until_there_is_one_but_ends_are_written(
    tmp_path: Path,
) -> None:
    segment = opened(tmp_path / "1")
    segment.bar("the audit directory is full")
    with pytest.raises(AuditUnwritable, match="directory is full"):
        segment.verdict(verdict())
    segment.end(end())
    assert segment.trouble == "the audit directory is full"
    with pytest.raises(AuditUnwritable, match="directory is full"):
        segment.verdict(verdict())
    segment.replace(os.open(tmp_path / "2", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    segment.verdict(verdict())
    assert segment.trouble == ""
    written = [*read(tmp_path / "1"), *read(tmp_path / "2")]
    assert [record.lost for record in written if isinstance(record, GapRecord)] == [1, 1]


def test_a_personal_zone_is_counted_and_not_logged() -> None:
    tally = Tally()
    tally.verdict(verdict(verdict=Verdict.DIRECT))
    tally.verdict(verdict(verdict=Verdict.BLOCK))
    tally.end(end())
    assert tally.flows == {Verdict.BLOCK: 1, Verdict.TUNNEL: 0, Verdict.DIRECT: 1}
    assert (tally.bytes_up, tally.bytes_down) == (10, 2000)
    assert "example" not in repr(tally)


# -- reading -----------------------------------------------------------------------------------------


def test_a_segment_that_ends_at_any_byte_gives_its_whole_lines(tmp_path: Path) -> None:
    path, records = tmp_path / "s", [verdict(flow="1"), end(), verdict(flow="2")]
    lines = [encode(record) for record in (verdict(flow="1"), end(), verdict(flow="2"))]
    ends = list(itertools.accumulate(map(len, lines)))
    for size in range(ends[-1] + 1):
        path.write_bytes(b"".join(lines)[:size])
        assert list(read(path)) == [record for record, at in zip(records, ends, strict=True) if at <= size]


def test_junk_within_a_segment_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(
        encode(verdict()) + b"junk\n" + b"x" * 1_000_000 + b"\n" + encode(end()) + b"torn" * 100_000
    )
    assert list(read(path)) == [verdict(), Unreadable(2), Unreadable(3), end()]
    assert tail(path, 2) == [Unreadable(3), end()]
    assert tail(path, 0) == []


WRITES_UNTIL_KILLED = """
import os, sys
from audit_records import verdict
from proxy.audit import Segment
segment = Segment(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), max_bytes=1)
for number in range(1_000_000):
    segment.verdict(verdict(flow=str(number), name="n" * 900))
    os.write(1, b"%d\\n" % number)
"""


def test_every_acknowledged_verdict_is_there_after_sigkill_in_the_middle_of_writing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent) as child:
        assert child.stdout is not None
        for _ in range(500):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        acknowledged = 500 + len(child.stdout.read().split())
    records = list(read(tmp_path / "s"))
    flows = [record.flow for record in records if isinstance(record, VerdictRecord)]
    assert len(flows) == len(records) and acknowledged <= len(flows) <= acknowledged + 1
    assert flows == [str(number) for number in range(len(flows))]


# -- the supervisor's directory ----------------------------------------------------------------------


def filled(segments: Segments, worker: str = "w1", zone: str = "corporate", records: int = 2) -> Path:
    """A segment that a worker wrote to and let go of."""
    given = segments.open(zone, worker)
    segment = Segment(given.fd, max_bytes=1 << 20)
    for number in range(records):
        segment.verdict(verdict(flow=str(number)))
    segment.close()
    return given.path


def make(directory: Path, **options: Any) -> Segments:
    return Segments(directory, clock=lambda: NOW, **options)


def test_a_worker_that_goes_on_to_none_of_its_segments_is_given_no_more(tmp_path: Path) -> None:
    """While it writes to all of them none is sealed, and so none pruned: the disk would fill."""
    series = Series(make(tmp_path / "audit"), "corporate", "w1", max_bytes=1)
    given: list[int | None] = [series.begin(), *(series.following() for _ in range(MOST_LEAVING + 2))]
    assert given[-2:] == [None, None] and None not in given[:-2]
    series.gone_on(1)
    given += [series.following(), series.following()]
    assert given[-2] is not None and given[-1] is None
    series.end()
    for fd in given:
        if fd is not None:
            os.close(fd)


def test_a_segment_is_a_file_of_0600_in_a_directory_of_0700_and_begins_with_a_header(tmp_path: Path) -> None:
    path = filled(make(tmp_path / "audit"))
    assert path == tmp_path / "audit" / "corporate.w1.00000001.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert next(read(path)) == HeaderRecord(
        at=NOW, zone="corporate", worker="w1", sequence=1, previous=NOTHING_BEFORE
    )


def test_the_descriptor_of_a_segment_only_appends(tmp_path: Path) -> None:
    given = make(tmp_path / "audit").open("corporate", "w1")
    os.lseek(given.fd, 0, os.SEEK_SET)
    os.write(given.fd, b"x\n")
    assert given.path.read_bytes().endswith(b"}\nx\n")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(given.fd, 1)
    os.close(given.fd)


@pytest.mark.parametrize("mode", [0o750, 0o777])
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(AuditUnwritable, match="0700"):
        make(tmp_path)


def test_a_directory_that_cannot_be_made_denies(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnwritable, match="cannot be used"):
        make(tmp_path / "file" / "audit")


@pytest.mark.parametrize("word", ["", "..", "a/b", "a.b", "a\n", "ü", "a" * 65])
def test_no_word_of_a_configuration_leaves_the_directory(tmp_path: Path, word: str) -> None:
    segments = make(tmp_path / "audit")
    for pair in ((word, "w1"), ("corporate", word)):
        with pytest.raises(ValueError, match="name of a file"):
            segments.open(*pair)


def test_sequences_go_on_over_restarts_and_pruning(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    for number in range(1, 6):
        segments = make(directory, keep=1)
        path = filled(segments)
        assert path.name == f"corporate.w1.{number:08}.jsonl"
        segments.seal(path)
    assert sorted(found.name for found in directory.iterdir()) == ["corporate.w1.00000005.jsonl", MANIFEST]
    assert verify(directory).problems == ()


def test_a_zone_is_pruned_for_itself(tmp_path: Path) -> None:
    segments = make(tmp_path / "audit", keep=2)
    quiet = filled(segments, zone="lab")
    segments.seal(quiet)
    for _ in range(5):
        segments.seal(filled(segments))
    assert quiet.exists()
    found = verify(tmp_path / "audit")
    assert (found.sealed, found.problems) == (3, ())


def test_what_a_dead_supervisor_left_is_sealed_at_the_next_start(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    segments = make(directory)
    segments.seal(filled(segments))
    left = [filled(segments, worker) for worker in ("w2", "w3")]
    with left[0].open("ab") as file:
        file.write(b'{"torn')
    assert verify(directory).open == tuple(path.name for path in left)
    with (directory / MANIFEST).open("ab") as file:
        file.write(b'{"action":"sea')  # it died while it sealed
    again = make(directory)
    assert again.seal_left_over() == 2
    assert again.seal_left_over() == 0
    found = verify(directory)
    assert (found.sealed, found.open, found.problems) == (3, (), ())


def test_a_prune_that_was_cut_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "audit"
    segments = make(directory, keep=1)
    first = filled(segments)
    segments.seal(first)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(OSError(5, "I/O error"))
        )
        with pytest.raises(AuditUnwritable, match="I/O error"):
            segments.seal(filled(segments))
    assert first.exists() and verify(directory).problems == ()
    make(directory, keep=1).seal_left_over()
    assert not first.exists() and verify(directory).problems == ()


def test_nothing_is_pruned_that_could_not_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = make(tmp_path / "audit", keep=1)
    paths = [filled(segments) for _ in range(2)]
    segments.seal(paths[0])
    append = LineFile.append

    def failing(self: LineFile, line: bytes) -> None:
        if b'"pruned"' in line:
            raise OSError(28, "No space left on device")
        append(self, line)

    monkeypatch.setattr(LineFile, "append", failing)
    with pytest.raises(AuditUnwritable, match="No space left"):
        segments.seal(paths[1])
    assert paths[0].exists() and verify(tmp_path / "audit").problems == ()


def test_a_manifest_that_was_tampered_with_denies_rather_than_goes_on(tmp_path: Path) -> None:
    segments = make(tmp_path / "audit")
    segments.seal(filled(segments))
    manifest = tmp_path / "audit" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b"w1", b"w9"))
    segments.seal_left_over()
    manifest.write_bytes(b"junk\n")
    with pytest.raises(AuditUnwritable, match="cannot be read; keep the directory"):
        segments.open("corporate", "w1")


# -- verifying ---------------------------------------------------------------------------------------


def four(directory: Path) -> list[Path]:
    """Three sealed segments and an open one."""
    segments = make(directory)
    paths = [filled(segments) for _ in range(3)]
    for path in paths:
        segments.seal(path)
    return [*paths, filled(segments)]


type Tamper = Callable[[list[Path], Path], object]


def edit(path: Path, change: Callable[[bytes], bytes]) -> object:
    return path.write_bytes(change(path.read_bytes()))


def remove(path: Path) -> object:
    return path.rename(path.with_name("elsewhere"))


def shorten(segments: list[Path], manifest: Path) -> object:
    remove(segments[2])
    return edit(manifest, drop_line(2))


def drop_line(number: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        del lines[number]
        return b"".join(lines)

    return change


def test_an_untouched_directory_verifies_and_its_head_can_be_noted(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    paths = four(directory)
    found = verify(directory)
    assert (found.sealed, found.open, found.problems) == (3, (paths[3].name,), ())
    make(directory).seal(paths[3])
    assert verify(directory, found.head).problems == ()
    assert verify(directory).head != found.head


TAMPERING: list[tuple[str, Tamper, str]] = [
    ("a byte changed", lambda s, m: edit(s[1], lambda c: c.replace(b"alice", b"alicf", 1)), "was changed"),
    ("a line removed", lambda s, m: edit(s[1], drop_line(1)), "was changed"),
    ("a line added", lambda s, m: edit(s[1], lambda c: c + encode(verdict())), "was changed"),
    ("a segment truncated", lambda s, m: edit(s[0], lambda c: b""), "does not begin with a header"),
    ("a segment removed", lambda s, m: remove(s[0]), "is missing"),
    ("one put in place of another", lambda s, m: s[1].rename(s[0]), "another segment"),
    (
        "a line of the manifest changed",
        lambda s, m: edit(m, lambda c: c.replace(b"02T", b"03T", 1)),
        "follow",
    ),
    ("one removed", lambda s, m: edit(m, drop_line(1)), "does not follow"),
    ("one that is junk", lambda s, m: edit(m, lambda c: c + b"junk\n"), "cannot be read"),
    ("one in another form", lambda s, m: edit(m, lambda c: c.replace(b":", b": ", 1)), "cannot be read"),
    ("the last one removed, with its segment", lambda s, m: shorten(s, m), "shortened"),
    ("the manifest emptied", lambda s, m: edit(m, lambda c: b""), "shortened"),
]


@pytest.mark.parametrize(("sentence", "tamper", "problem"), TAMPERING, ids=[row[0] for row in TAMPERING])
def test_tampering_is_found(tmp_path: Path, sentence: str, tamper: Tamper, problem: str) -> None:
    directory = tmp_path / "audit"
    tamper(four(directory), directory / MANIFEST)
    assert any(problem in line for line in verify(directory).problems), verify(directory).problems


def test_a_segment_pruned_while_it_is_being_verified_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = four(tmp_path / "audit")
    digest_of = chain.digest_of

    def after_pruning(path: Path) -> tuple[int, str]:
        if paths[0].exists():
            make(tmp_path / "audit", keep=1).seal(paths[3])
        return digest_of(path)

    monkeypatch.setattr(chain, "digest_of", after_pruning)
    assert verify(tmp_path / "audit").problems == ()
    assert not paths[2].exists()


def test_a_chain_made_up_anew_is_found_by_a_head_noted_elsewhere(tmp_path: Path) -> None:
    four(tmp_path / "audit")
    noted = verify(tmp_path / "audit").head
    segments = make(tmp_path / "forged")
    segments.seal(filled(segments, records=1))
    assert verify(tmp_path / "forged").problems == ()
    assert any("noted head" in line for line in verify(tmp_path / "forged", noted).problems)


def test_records_are_all_of_one_type() -> None:
    """A new kind of record has to be written and read."""
    records: list[Record] = [verdict(), end(), GapRecord(at=NOW, since=NOW, lost=1)]
    assert [decode(encode(record)) for record in records] == records
