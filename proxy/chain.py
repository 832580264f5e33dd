"""Audit segments as they lie in their directory: read one, and verify the chain over the sealed ones.

Decides whether records were changed. Touches files for reading only; runs in the supervisor and in the
commands that read. Never knows what a record means.

Each line of the manifest carries the SHA-256 of the line before it and of the segment that it seals, and
each segment's header the head of the chain when it was opened. Whoever may write the directory can make
up a new chain: what proves the old one is a head that was noted elsewhere (`Verification.head`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.audit import HeaderRecord, Record, decode
from proxy.lines import whole_lines

MANIFEST = "sealed.manifest"
_ACTIONS = ("sealed", "pruned")
NOTHING_BEFORE = "0" * 64
SEGMENT = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}\.[0-9]{8,}\.jsonl")
MAX_LINE_BYTES = 1 << 17  # more than the longest record, so that junk is not read in one piece


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the manifest: a segment was sealed (`sha256` of its content) or pruned (empty)."""

    action: str
    segment: str
    at: str
    size_bytes: int
    sha256: str
    previous: str

    def line(self) -> bytes:
        """As it stands in the file, without its end."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(shown, separators=(",", ":")).encode()


class Chain:
    """What the lines of a manifest amount to: its heads so far, and what is sealed and what pruned."""

    def __init__(self) -> None:
        self.heads = [NOTHING_BEFORE]
        self.sealed: dict[str, Entry] = {}
        self.pruned: set[str] = set()

    @property
    def head(self) -> str:
        """The SHA-256 of the last line."""
        return self.heads[-1]

    @property
    def known(self) -> set[str]:
        """Every segment that was ever sealed."""
        return self.pruned | self.sealed.keys()

    def take(self, line: bytes) -> str:
        """Go on by one line; gives what is wrong with it, or nothing."""
        before = self.head
        self.heads.append(hashlib.sha256(line).hexdigest())
        try:
            entry = _entry(line)
        except ValueError:
            return "this line cannot be read"
        if entry.action == "sealed":
            self.sealed[entry.segment] = entry
        else:
            self.sealed.pop(entry.segment, None)
            self.pruned.add(entry.segment)
        return "" if entry.previous == before else "this line does not follow the one before it"


def _entry(line: bytes) -> Entry:
    try:
        entry = Entry(**json.loads(line))
    except (TypeError, RecursionError) as error:
        raise ValueError("not a line of a manifest") from error
    if entry.line() != line or entry.action not in _ACTIONS or not SEGMENT.fullmatch(entry.segment):
        raise ValueError("not a line of a manifest")
    return entry


def segments_in(directory: Path) -> set[str]:
    """The names of the segments that lie there, open or sealed."""
    return {path.name for path in directory.iterdir() if SEGMENT.fullmatch(path.name)}


def sequence_of(name: str) -> int:
    """The place of a segment among those of its directory."""
    return int(name.split(".")[2])


def digest_of(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


# -- reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that is no record, by its number from 1."""

    line: int


def read(path: Path) -> Iterator[Record | Unreadable]:
    """The records of a segment in their order. A last line without its end was never acknowledged and is
    left out; any other that is no record is told."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = piece = file.readline(MAX_LINE_BYTES)
            while piece and not piece.endswith(b"\n"):
                piece = file.readline(MAX_LINE_BYTES)
            if not piece:
                return
            found: Record | Unreadable = Unreadable(number)
            with suppress(ValueError):
                found = decode(line)
            yield found


def tail(path: Path, count: int) -> list[Record | Unreadable]:
    """The last `count` records of a segment."""
    return list(deque(read(path), maxlen=count))


# -- verifying ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of a directory of segments; good when there are no `problems`, a line each.

    `open` segments are not covered by the chain yet. `head` is worth noting elsewhere.
    """

    sealed: int
    open: tuple[str, ...]
    head: str
    problems: tuple[str, ...]


def verify(directory: Path, head: str = NOTHING_BEFORE) -> Verification:
    """Whether every sealed segment is there and unchanged, and follows a `head` that was noted earlier.

    Raises OSError where the directory cannot be read. May run while the gate does: what lies there is
    listed before the manifest is read, so that nothing is newer than the manifest.
    """
    present = segments_in(directory)
    chain, problems = _chain(directory)
    if head not in chain.heads:
        problems.append(f"{MANIFEST}: the noted head {head:.16} is not in it: it was shortened or replaced")
    for entry in chain.sealed.values():
        problems += _changes(directory, entry)
    for name in sorted(present - chain.pruned, key=sequence_of):
        with suppress(FileNotFoundError):  # pruned by now, or told as missing above
            problems += _foreign_header(directory / name, chain)
    unsealed = sorted(present - chain.known, key=sequence_of)
    return Verification(len(chain.sealed), tuple(unsealed), chain.head, tuple(problems))


def _chain(directory: Path) -> tuple[Chain, list[str]]:
    chain = Chain()
    lines, _ = whole_lines((directory / MANIFEST).read_bytes())
    troubles = ((number, chain.take(line)) for number, line in enumerate(lines, 1))
    return chain, [f"{MANIFEST}:{number}: {trouble}" for number, trouble in troubles if trouble]


def _changes(directory: Path, entry: Entry) -> list[str]:
    try:
        found = digest_of(directory / entry.segment)
    except FileNotFoundError:
        pruned_meanwhile = entry.segment in _chain(directory)[0].pruned
        return [] if pruned_meanwhile else [f"{entry.segment}: is missing, and was not pruned"]
    if found != (entry.size_bytes, entry.sha256):
        return [f"{entry.segment}: was changed after it was sealed"]
    return []


def _foreign_header(path: Path, chain: Chain) -> list[str]:
    header = next(read(path), None)
    if not isinstance(header, HeaderRecord):
        return [f"{path.name}: does not begin with a header"]
    if path.name != f"{header.zone}.{header.worker}.{header.sequence:08}.jsonl":
        return [f"{path.name}: its header is that of another segment"]
    if header.previous not in chain.heads:
        return [f"{path.name}: follows what is not in the manifest: that was shortened or replaced"]
    return []
