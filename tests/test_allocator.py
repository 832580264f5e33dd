"""The allocator against a naive oracle, and against every way in which a process or a disk can end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from proxy import allocator
from proxy.allocator import FIRST_OFFSET, POOL_SIZE, Allocator, NameFault, Synthetic, is_synthetic, offset_of
from proxy.flow import IPAddress, Refusal
from proxy.journal import JournalUnusable
from proxy.lines import LineFile


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make(path: Path, **options: object) -> Allocator:
    defaults: dict[str, object] = {"clock": Clock(), "boot": "boot-1", "quarantine_s": 100.0}
    return Allocator(path, **(defaults | options))  # type: ignore[arg-type]  # a test's own options


def given(answer: Synthetic | Refusal) -> Synthetic:
    assert isinstance(answer, Synthetic), answer
    return answer


def fault(answer: Synthetic | Refusal) -> str:
    assert isinstance(answer, Refusal), answer
    return answer.because.id


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "names"


# -- the rules, one by one ---------------------------------------------------------------------------


def test_a_name_has_the_same_offset_in_both_pools_and_keeps_it(path: Path) -> None:
    names = make(path)
    first = given(names.allocate("b1", "intranet.example"))
    assert first == Synthetic(IPv4Address("198.18.1.0"), IPv6Address("fd00:7a67::100"))
    assert given(names.allocate("b1", "intranet.example")) == first
    assert given(names.allocate("b2", "intranet.example")) == first, "one mapping for the zone"
    for address in (first.v4, first.v6):
        assert names.name_of("b1", address) == names.name_of("b2", address) == "intranet.example"


def test_a_bubble_cannot_read_or_reach_what_only_another_asked_for(path: Path) -> None:
    names = make(path)
    answer = given(names.allocate("b1", "secret.example"))
    assert names.name_of("b2", answer.v4) is None
    assert names.name_of("b2", answer.v6) is None


@pytest.mark.parametrize(
    "text",
    ["198.18.0.0", "198.18.0.255", "198.20.0.0", "192.0.2.1", "fd00:7a67::ff", "fd00:7a67::2:0", "::1"],
)
def test_an_address_that_can_stand_for_no_name_has_none(path: Path, text: str) -> None:
    names = make(path)
    names.allocate("b1", "intranet.example")
    assert offset_of(ip_address(text)) is None
    assert names.name_of("b1", ip_address(text)) is None


def test_the_whole_of_both_pools_is_synthetic_whether_allocated_or_not() -> None:
    inside = ["198.18.0.0", "198.19.255.255", "fd00:7a67::", "fd00:7a67::ffff:ffff:ffff:ffff"]
    outside = ["198.17.255.255", "198.20.0.0", "fd00:7a66::1", "fd00:7a67:0:1::"]
    assert all(is_synthetic(ip_address(text)) for text in inside)
    assert not any(is_synthetic(ip_address(text)) for text in outside)


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "UPPER.example", "a b", "x\ny", "ü.example", "a" * 64, "a." * 127, "dot."]
)
def test_what_is_not_a_canonical_host_name_is_refused_whoever_asks(path: Path, name: str) -> None:
    assert fault(make(path).allocate("b1", name)) == NameFault.INVALID


def test_the_quota_counts_what_one_living_bubble_was_told(path: Path) -> None:
    names = make(path, quota=2)
    names.allocate("b1", "a.example")
    names.allocate("b1", "b.example")
    names.allocate("b1", "a.example")
    refused = names.allocate("b1", "c.example")
    assert fault(refused) == NameFault.QUOTA
    assert str(refused) == (
        "blocked by gate names-quota (this bubble has asked for 2 different names);"
        " leave the bubble and start it again"
    )
    given(names.allocate("b2", "c.example"))
    assert fault(names.allocate("b1", "c.example")) == NameFault.QUOTA, "known to others: still one more"
    names.release("b1")
    given(names.allocate("b1", "c.example"))


def test_an_address_is_reused_only_after_its_rest_and_never_while_known(path: Path) -> None:
    clock = Clock()
    names = make(path, clock=clock, pool_size=FIRST_OFFSET + 1)
    first = given(names.allocate("b1", "a.example"))
    names.allocate("b2", "a.example")
    names.release("b1")
    clock.now += 1_000
    assert fault(names.allocate("b3", "b.example")) == NameFault.EXHAUSTED, "b2 may know it"
    names.release("b2")
    clock.now += 99
    assert fault(names.allocate("b3", "b.example")) == NameFault.EXHAUSTED, "it rests"
    clock.now += 1
    assert given(names.allocate("b3", "b.example")) == first
    assert fault(names.allocate("b4", "a.example")) == NameFault.EXHAUSTED, "the old name is forgotten"


def test_a_resting_name_that_is_asked_for_again_wakes_at_its_old_address(path: Path) -> None:
    names = make(path)
    first = given(names.allocate("b1", "a.example"))
    names.release("b1")
    assert given(names.allocate("b2", "a.example")) == first
    assert names.name_of("b1", first.v4) is None


def test_a_clock_set_back_neither_frees_an_address_nor_holds_it_for_years(path: Path) -> None:
    clock = Clock()
    names = make(path, clock=clock, pool_size=FIRST_OFFSET + 1)
    names.allocate("b1", "a.example")
    clock.now += 1e9
    names.release("b1")
    clock.now -= 1e9
    assert fault(names.allocate("b2", "b.example")) == NameFault.EXHAUSTED
    clock.now += 100
    given(names.allocate("b2", "b.example"))


# -- 200,000 names -----------------------------------------------------------------------------------


def test_200_000_names_asked_by_one_bubble_take_its_quota_and_no_more(path: Path) -> None:
    names = make(path)
    answers = [names.allocate("greedy", f"n{i}.example") for i in range(200_000)]
    assert sum(isinstance(answer, Synthetic) for answer in answers) == 4096
    assert {fault(answer) for answer in answers[4096:]} == {NameFault.QUOTA}
    assert given(names.allocate("other", "intranet.example")).v4 == Synthetic.at(FIRST_OFFSET + 4096).v4


def test_200_000_names_asked_by_many_bubbles_exhaust_the_pool_without_one_mistake(path: Path) -> None:
    clock = Clock()
    names = make(path, clock=clock)
    kept: dict[str, Synthetic] = {}
    for i in range(200_000):
        answer = names.allocate(f"b{i // 4096}", f"n{i}.example")
        if isinstance(answer, Synthetic):
            kept[f"n{i}.example"] = answer
        else:
            assert fault(answer) == NameFault.EXHAUSTED
    assert len(kept) == len(set(kept.values())) == POOL_SIZE - FIRST_OFFSET
    names.close()
    names = make(path, clock=clock)
    for i, (name, answer) in enumerate(kept.items()):
        assert names.name_of(f"b{i // 4096}", answer.v6) == name, "after a restart"
    for bubble in names.bubbles():
        names.release(bubble)
    assert fault(names.allocate("new", "new.example")) == NameFault.EXHAUSTED
    clock.now += 100
    assert given(names.allocate("new", "new.example")) in kept.values()


# -- against an oracle -------------------------------------------------------------------------------


@dataclass
class Oracle:
    """Everything that was ever answered, kept for ever; questions are answered by going through it."""

    told: list[tuple[str, str, int]] = field(default_factory=list)  # bubble, name, offset
    gone: list[tuple[str, int, float]] = field(default_factory=list)  # bubble, len(told) at that time, when
    pool: int = 4
    quota: int = 3
    rest_s: float = 100.0

    def living(self) -> list[tuple[str, str, int]]:
        return [
            entry
            for index, entry in enumerate(self.told)
            if not any(bubble == entry[0] and index < upto for bubble, upto, _ in self.gone)
        ]

    def last_seen(self, offset: int, now: float) -> float:
        """Until when a living bubble knew the address."""
        if any(entry[2] == offset for entry in self.living()):
            return now
        ends = [
            next(at for bubble, upto, at in self.gone if bubble == entry[0] and index < upto)
            for index, entry in enumerate(self.told)
            if entry[2] == offset
        ]
        return max(ends, default=float("-inf"))

    def means(self, offset: int) -> str | None:
        return next((name for _, name, at in reversed(self.told) if at == offset), None)

    def expected(self, bubble: str, name: str, now: float) -> str | None:
        """Why a name must be refused, None when it must be answered."""
        mine = {entry[1] for entry in self.living() if entry[0] == bubble}
        offsets = range(FIRST_OFFSET, FIRST_OFFSET + self.pool)
        if name in mine:
            return None
        if len(mine) >= self.quota:
            return NameFault.QUOTA
        if any(self.means(offset) == name for offset in offsets):
            return None
        if any(now - self.last_seen(offset, now) >= self.rest_s for offset in offsets):
            return None
        return NameFault.EXHAUSTED


class Machine(RuleBasedStateMachine):
    bubbles = Bundle("bubbles")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "names"
        self.clock, self.oracle, self.boot = Clock(), Oracle(), 0
        self.open()

    def open(self) -> None:
        self.names = make(
            self.path,
            clock=self.clock,
            boot=f"boot-{self.boot}",
            quota=self.oracle.quota,
            pool_size=FIRST_OFFSET + self.oracle.pool,
        )

    def teardown(self) -> None:
        if hasattr(self, "names"):
            self.names.close()
            self.folder.cleanup()

    @rule(bubble=st.sampled_from("ABC"), name=st.sampled_from([f"n{i}.example" for i in range(7)]))
    def ask(self, bubble: str, name: str) -> None:
        now = self.clock()
        expected = self.oracle.expected(bubble, name, now)
        answer = self.names.allocate(bubble, name)
        if expected is not None:
            assert fault(answer) == expected
            return
        offset = offset_of(given(answer).v4)
        assert offset is not None and offset == offset_of(given(answer).v6)
        if self.oracle.means(offset) != name:
            assert now - self.oracle.last_seen(offset, now) >= self.oracle.rest_s, "reused too soon"
        for bubble_then, name_then, offset_then in self.oracle.living():
            assert (offset_then == offset) == (name_then == name), bubble_then
        self.oracle.told.append((bubble, name, offset))

    @rule(bubble=st.sampled_from("ABC"))
    def release(self, bubble: str) -> None:
        self.names.release(bubble)
        self.oracle.gone.append((bubble, len(self.oracle.told), self.clock()))

    @rule(seconds=st.sampled_from([1.0, 49.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(torn=st.binary(max_size=40).filter(lambda piece: b"\n" not in piece))
    def die_and_start_again(self, torn: bytes) -> None:
        self.names.close()
        with self.path.open("ab") as file:
            file.write(torn)
        self.open()

    @precondition(lambda self: self.boot < 3)
    @rule(lost=st.binary(max_size=20))
    def the_machine_crashes(self, lost: bytes) -> None:
        self.names.close()
        with self.path.open("ab") as file:
            file.write(b"\0" + lost + b"\n\0\0\n")
        self.boot += 1
        self.open()
        for bubble in "ABC":
            self.oracle.gone.append((bubble, len(self.oracle.told), self.clock()))

    @rule(bubble=st.sampled_from("ABC"), offset=st.integers(FIRST_OFFSET - 1, FIRST_OFFSET + 5))
    def look_up(self, bubble: str, offset: int) -> None:
        expected = next((n for b, n, o in self.oracle.living() if b == bubble and o == offset), None)
        pair = Synthetic.at(offset)
        assert self.names.name_of(bubble, pair.v4) == self.names.name_of(bubble, pair.v6) == expected


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- the journal -------------------------------------------------------------------------------------


def test_after_a_restart_between_answer_and_connect_the_address_still_has_its_name(path: Path) -> None:
    answer = given(make(path).allocate("b1", "intranet.example"))  # never closed: it was killed
    again = reopened(path)
    assert again.name_of("b1", answer.v4) == "intranet.example"
    assert given(again.allocate("b1", "other.example")) != answer


def reopened(path: Path, **options: object) -> Allocator:
    """A second start on a copy, as after SIGKILL (which takes the lock with it)."""
    copy = path.with_name(f"{path.name}-{len(list(path.parent.iterdir()))}")
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    return make(copy, **options)


def test_a_journal_that_ends_at_any_byte_gives_exactly_what_was_acknowledged(path: Path) -> None:
    names = make(path, quarantine_s=0.0, pool_size=FIRST_OFFSET + 3)
    states: list[tuple[int, dict[tuple[str, int], str]]] = []

    def known(of: Allocator) -> dict[tuple[str, int], str]:
        pairs = [(b, o) for b in ("b1", "b2") for o in range(FIRST_OFFSET, FIRST_OFFSET + 4)]
        return {(b, o): name for b, o in pairs if (name := of.name_of(b, Synthetic.at(o).v4))}

    def note() -> None:
        states.append((path.stat().st_size, known(names)))

    note()
    for bubble, name in [("b1", "a.example"), ("b1", "b.example"), ("b2", "a.example"), ("b2", "c.example")]:
        names.allocate(bubble, name)
        note()
    for bubble in ("b1", "b2"):
        names.release(bubble)
        note()
    names.allocate("b2", "d.example")
    note()
    names.close()
    whole = path.read_bytes()
    for size in range(states[0][0], len(whole) + 1):
        path.write_bytes(whole[:size])
        cut = make(path, quarantine_s=0.0, pool_size=FIRST_OFFSET + 3)
        assert known(cut) == [state for at, state in states if at <= size][-1], size
        given(cut.allocate("b1", "a.example"))
        cut.close()


KILLED = """
import sys
import tempfile
from pathlib import Path
from proxy.allocator import Allocator
names = Allocator(Path(sys.argv[1]), clock=lambda: 0.0, boot="boot-1")
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    print(number, names.allocate(f"b{number % 3}", f"n{number}.example").v4, flush=True)
"""


def test_nothing_answered_is_forgotten_by_sigkill(path: Path) -> None:
    answers: dict[int, IPAddress] = {}
    for start in range(0, 120, 30):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            child.stdin.write("".join(f"{number}\n" for number in range(start, start + 1000)))
            child.stdin.flush()
            for _ in range(30):  # the child is far ahead, somewhere in a write, when it is killed
                number, address = child.stdout.readline().split()
                answers[int(number)] = ip_address(address)
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                if line.endswith("\n"):
                    number, address = line.split()
                    answers[int(number)] = ip_address(address)
        assert child.returncode == -signal.SIGKILL
    names = make(path)
    assert len(answers) >= 120
    for number_, address_ in answers.items():
        assert names.name_of(f"b{number_ % 3}", address_) == f"n{number_}.example"


def test_the_journal_is_of_mode_0600_and_one_that_others_could_write_is_refused(path: Path) -> None:
    names = make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    names.close()
    path.chmod(0o666)
    with pytest.raises(JournalUnusable, match="0600"):
        make(path)


def test_a_link_in_place_of_the_journal_is_refused(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(JournalUnusable, match="cannot open"):
        make(path)


def test_a_second_gate_on_the_same_journal_is_refused(path: Path) -> None:
    first = make(path)
    with pytest.raises(JournalUnusable, match="in use"):
        make(path)
    first.close()
    make(path).close()


@pytest.mark.parametrize(
    "row",
    [
        b"garbage",
        b'["told",256,"b.example","b1"]',
        b'["told",257,"a.example","b1"]',
        b'["told",5,"b.example","b1"]',
        b'["told",131072,"b.example","b1"]',
        b'["rest",256,"a.example",1.0]',
        b'["told",true,"b.example","b1"]',
        b'["told",257,"b.example"]',
        b"\xff\xfe",
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_place_while_its_bubbles_may_live(
    path: Path, row: bytes
) -> None:
    names = make(path)
    names.allocate("b1", "a.example")
    names.close()
    path.write_bytes(path.read_bytes() + row + b"\n")
    with pytest.raises(JournalUnusable, match=r"names:3: .* end all bubbles and remove it"):
        make(path)
    after_a_crash = make(path, boot="boot-2")
    assert after_a_crash.bubbles() == frozenset()


def test_a_new_start_of_the_machine_lets_every_bubble_go_but_lets_addresses_rest(path: Path) -> None:
    clock = Clock()
    names = make(path, clock=clock, pool_size=FIRST_OFFSET + 1)
    first = given(names.allocate("b1", "a.example"))
    names.close()
    names = make(path, clock=clock, boot="boot-2", pool_size=FIRST_OFFSET + 1)
    assert names.bubbles() == frozenset()
    assert names.name_of("b1", first.v4) is None
    assert fault(names.allocate("b1", "b.example")) == NameFault.EXHAUSTED
    clock.now += 100
    assert given(names.allocate("b1", "b.example")) == first


def test_starting_again_shortens_the_journal_to_what_matters(path: Path) -> None:
    names = make(path)
    for i in range(50):
        names.allocate(f"b{i}", "a.example")
        names.release(f"b{i}")
    names.close()
    assert path.read_bytes().count(b"\n") == 101
    make(path).close()
    assert path.read_bytes().count(b"\n") == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_journal_of_history_is_shortened_while_running(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.journal._SHORT_ROWS", 10)
    names = make(path)
    kept = given(names.allocate("b", "kept.example"))
    for i in range(50):
        names.allocate(f"b{i}", "a.example")
        names.release(f"b{i}")
    assert path.read_bytes().count(b"\n") < 20
    assert reopened(path).name_of("b", kept.v4) == "kept.example"


# -- a disk that is full -----------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every write fails while the list has an entry; how a real full disk does it, the audit test shows."""
    full: list[str] = []
    append = LineFile.append

    def failing(self: LineFile, line: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, line)

    monkeypatch.setattr(LineFile, "append", failing)
    yield full


def test_with_a_full_disk_new_names_are_refused_and_known_ones_answered(
    path: Path, full_disk: list[str]
) -> None:
    names = make(path)
    known = given(names.allocate("b1", "known.example"))
    full_disk.append("full")
    refused = names.allocate("b1", "new.example")
    assert fault(refused) == NameFault.JOURNAL
    assert "No space left on device" in str(refused)
    assert given(names.allocate("b1", "known.example")) == known
    assert fault(names.allocate("b2", "known.example")) == NameFault.JOURNAL, "who knows it must be written"
    assert names.name_of("b2", known.v4) is None
    full_disk.clear()
    given(names.allocate("b1", "new.example"))


def test_an_end_that_could_not_be_written_is_written_before_an_address_is_reused(
    path: Path, full_disk: list[str]
) -> None:
    names = make(path, quarantine_s=0.0, pool_size=FIRST_OFFSET + 1)
    names.allocate("b1", "a.example")
    full_disk.append("full")
    names.release("b1")
    assert reopened(path).bubbles() == {"b1"}, "a restart now takes it for living"
    assert fault(names.allocate("b2", "b.example")) == NameFault.JOURNAL
    full_disk.clear()
    answer = given(names.allocate("b2", "b.example"))
    again = reopened(path)
    assert again.bubbles() == {"b2"}
    assert again.name_of("b2", answer.v4) == "b.example"


def test_a_start_with_a_full_disk_keeps_every_known_name(path: Path, full_disk: list[str]) -> None:
    names = make(path)
    known = given(names.allocate("b1", "known.example"))
    names.close()
    full_disk.append("full")
    names = make(path)
    assert names.name_of("b1", known.v4) == "known.example"
    assert fault(names.allocate("b1", "new.example")) == NameFault.JOURNAL
    assert list(path.parent.iterdir()) == [path]


def test_a_piece_of_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    file = LineFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    file.append(b"one\n")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, line: write(fd, line[:2]))
        with pytest.raises(OSError, match="only a part"):
            file.append(b"two\n")
    assert path.read_bytes() == b"one\n"
    file.append(b"three\n")
    assert path.read_bytes() == b"one\nthree\n"
    file.close()


def test_the_module_says_what_it_never_knows() -> None:
    """The allocator is asked by workers: it must need neither their loop nor a resolver."""
    source = Path(allocator.__file__).read_text()
    assert not any(f"import {word}" in source for word in ("asyncio", "socket", "dns", "subprocess"))
