"""The directory of audit segments: opened for workers, sealed into the chain, pruned.

Lives in the supervisor. Touches files of one directory of mode 0700. Never knows what a record means; a
worker writes its own segment and cannot reach the others. What the chain proves is told in `chain`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from proxy.audit import AuditUnwritable, HeaderRecord, encode, rfc3339
from proxy.chain import MANIFEST, Chain, Entry, digest_of, segments_in, sequence_of
from proxy.lines import LineFile, whole_lines

EARLY_SEGMENTS = 8
MOST_LEAVING = 4
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment for a worker: the descriptor is the caller's to hand over and close."""

    path: Path
    fd: int


class Segments:
    """All segments below `directory`, which is made if it is not there. `clock` gives aware datetimes.

    Of each zone the last `keep` sealed segments stay. Raises AuditUnwritable, and then there is no segment
    for the worker and new flows are denied.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], datetime], keep: int = 64) -> None:
        self._directory, self._clock, self._keep = directory, clock, keep
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except OSError as error:
            raise _unwritable(directory, error) from error
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            text = "must belong to the user who runs the gate and have mode 0700"
            raise AuditUnwritable(f"the audit directory '{directory}' {text}")

    def claim(self) -> int:
        """Keep other daemons out for as long as the descriptor is open: they would seal what ours write."""
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unwritable(self._directory, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            cure = "stop that one first, or name another `state` in the site file"
            raise AuditUnwritable(f"another daemon writes to '{self._directory}'; {cure}") from error
        return fd

    def open(self, zone: str, worker: str) -> OpenSegment:
        """The next segment, with its header."""
        if not _WORD.fullmatch(zone) or not _WORD.fullmatch(worker):
            raise ValueError(f"'{zone}' or '{worker}' cannot stand in the name of a file")
        with self._manifest() as manifest:
            names = manifest.chain.known | segments_in(self._directory)
            sequence = 1 + max(map(sequence_of, names), default=0)
            path = self._directory / f"{zone}.{worker}.{sequence:08}.jsonl"
            header = HeaderRecord(
                at=self._clock(), zone=zone, worker=worker, sequence=sequence, previous=manifest.chain.head
            )
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            try:
                LineFile(fd).append(encode(header))
            except BaseException:
                os.close(fd)
                path.unlink()
                raise
            return OpenSegment(path, fd)

    def seal(self, path: Path) -> None:
        """Put a segment that its worker has let go of into the chain, and prune its zone."""
        with self._manifest() as manifest:
            self._seal(manifest, path.name)
            self._prune(manifest, _zone(path.name))

    def seal_left_over(self) -> int:
        """At the start, before any worker: seal what an earlier supervisor could not; gives how many."""
        with self._manifest() as manifest:
            present, chain = segments_in(self._directory), manifest.chain
            left = sorted(present - chain.known, key=sequence_of)
            for name in left:
                self._seal(manifest, name)
            for zone in {_zone(name) for name in chain.sealed}:
                self._prune(manifest, zone)
            for name in present & chain.pruned:
                (self._directory / name).unlink(missing_ok=True)
        return len(left)

    def _seal(self, manifest: _Manifest, name: str) -> None:
        size, digest = digest_of(self._directory / name)
        manifest.add("sealed", name, self._clock(), size, digest)

    def _prune(self, manifest: _Manifest, zone: str) -> None:
        """Written before it is done: a crash between leaves a file too many, not one that is missed."""
        names = sorted((name for name in manifest.chain.sealed if _zone(name) == zone), key=sequence_of)
        for name in names[: max(0, len(names) - self._keep)]:
            manifest.add("pruned", name, self._clock(), 0, "")
            (self._directory / name).unlink(missing_ok=True)

    @contextmanager
    def _manifest(self) -> Iterator[_Manifest]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        path = self._directory / MANIFEST
        try:
            fd = os.open(path, flags, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                lines, size = whole_lines(path.read_bytes())
                yield _Manifest(lines, LineFile(fd, size))
            finally:
                os.close(fd)
        except OSError as error:
            raise _unwritable(self._directory, error) from error


class Series:
    """The segments of one worker, one behind the other; none is sealed while the worker may write to it.

    Descriptors are the caller's to hand over and close. `begin` and `following` raise AuditUnwritable.
    """

    def __init__(self, segments: Segments, zone: str, worker: str, max_bytes: int) -> None:
        self._segments, self._zone, self._worker, self._max_bytes = segments, zone, worker, max_bytes
        self._written: OpenSegment | None = None
        self._leaving: deque[OpenSegment] = deque()
        self._left = 0
        self._early = 0

    def begin(self) -> int:
        """The first segment's descriptor."""
        self._written = self._segments.open(self._zone, self._worker)
        return self._written.fd

    def following(self) -> int | None:
        """The next segment's descriptor, None for a worker that has asked too often before one was full, or
        does not go on to those that it was given: while it does not, none is sealed, and none pruned."""
        if len(self._leaving) >= MOST_LEAVING:
            return None
        before = self._written
        if before is not None and not self._is_full(before):
            # In trouble a worker asks early; one that was taken over would so push old records out.
            self._early += 1
            if self._early > EARLY_SEGMENTS:
                return None
        fd = self.begin()
        if before is not None:
            self._leaving.append(before)
        return fd

    def gone_on(self, times: int) -> None:
        """The worker says how often it has gone on to the next: those before it are sealed.

        Not sooner: what it had written since would look like a forgery.
        """
        while self._leaving and self._left < times:
            self._left += 1
            self._seal(self._leaving.popleft())

    def end(self) -> None:
        """The worker is gone: all are sealed."""
        while self._leaving:
            self._seal(self._leaving.popleft())
        if self._written is not None:
            self._seal(self._written)
            self._written = None

    def _seal(self, segment: OpenSegment) -> None:
        with contextlib.suppress(AuditUnwritable):  # the next daemon seals what is left over
            self._segments.seal(segment.path)

    def _is_full(self, segment: OpenSegment) -> bool:
        with contextlib.suppress(OSError):
            return segment.path.stat().st_size >= self._max_bytes
        return True


class _Manifest:
    """The manifest while it is locked: what is in it, and its next line."""

    def __init__(self, lines: list[bytes], file: LineFile) -> None:
        self._file, self.chain = file, Chain()
        for number, line in enumerate(lines, 1):
            if trouble := self.chain.take(line):
                cure = "keep the directory for an inquiry and begin a new one"
                raise AuditUnwritable(f"{MANIFEST}:{number}: {trouble}; {cure}")

    def add(self, action: str, segment: str, at: datetime, size_bytes: int, sha256: str) -> None:
        """Append one line; raises OSError."""
        entry = Entry(action, segment, rfc3339(at), size_bytes, sha256, self.chain.head)
        self._file.append(entry.line() + b"\n")
        self.chain.take(entry.line())


def _zone(name: str) -> str:
    return name.partition(".")[0]


def _unwritable(directory: Path, error: OSError) -> AuditUnwritable:
    return AuditUnwritable(f"the audit directory '{directory}' cannot be used: {error.strerror}")
