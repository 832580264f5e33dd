"""The file of client certificates that no longer count, read again whenever it changes.

Each line is the SHA-256 fingerprint of a certificate or its serial number, both in hexadecimal digits
as `openssl x509 -fingerprint -sha256 -serial` prints them (colons and a prefix up to `=` or `sha256:`
may stand), or a comment after #. While the file cannot be read or understood nobody is let in anew: the
gateway cannot know who is still welcome.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from proxy.gateway.judge import Client

LIMIT_BYTES = 4 * 1024 * 1024
SETTLED_S = 2.0
_PREFIX = re.compile(r"(?:sha256 fingerprint=|serial=|sha256:)", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-f]{1,64}")

type _Stamp = tuple[int, int, int, int]


class BadRevocations(ValueError):
    """The file cannot be understood; the text says `line N: what`."""


def parse_revocations(text: bytes) -> frozenset[str]:
    """Fingerprints (64 digits) and serial numbers (without leading zeros). Raises BadRevocations."""
    found = set()
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        digits = _PREFIX.sub("", entry, count=1).replace(":", "").lower()
        if not _HEX.fullmatch(digits) or 40 < len(digits) < 64:
            said = f'"{entry[:80]}" is no fingerprint or serial number; write hexadecimal digits'
            raise BadRevocations(f"line {number}: {said}")
        found.add(digits if len(digits) == 64 else digits.lstrip("0") or "0")
    return frozenset(found)


class Revocations:
    """The file at `path`. `now` is a wall clock in seconds, the one that stamps files.

    What is added counts at once. What is taken out counts again once the file has rested for SETTLED_S:
    an editor that writes a file anew leaves it empty for a moment.
    """

    def __init__(self, path: Path | None, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._stamp: _Stamp | None = None
        self._listed: frozenset[str] = frozenset()
        self._in_force: frozenset[str] = frozenset()
        self.trouble = ""
        """Why the file cannot be used now, "" while it can."""
        self.refresh()

    def refresh(self) -> bool:
        """Look at the file again; whether anything has changed. Never raises."""
        if self._path is None:
            return False
        before = self._in_force, self.trouble
        try:
            self._read(self._path)
            self.trouble = ""
        except (OSError, BadRevocations) as error:
            self._stamp = None
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.trouble = f'"{self._path}": {said or error}'
        return before != (self._in_force, self.trouble)

    def why_unwelcome(self, client: Client) -> str:
        """Why nothing new of a client is let in, "" if it is welcome."""
        if self.trouble:
            return "the gateway cannot read which certificates are revoked"
        return "this client's certificate is revoked" if self.lists(client) else ""

    def lists(self, client: Client) -> bool:
        """Whether a client is revoked by the last list that could be read."""
        digits = client.fingerprint.removeprefix("sha256:")
        return client.serial in self._in_force or digits in self._in_force

    def _read(self, path: Path) -> None:
        found = path.stat()
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp != self._stamp:
            if found.st_size > LIMIT_BYTES:
                raise BadRevocations(f"the file is larger than {LIMIT_BYTES} bytes")
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                self._listed = parse_revocations(file.read(LIMIT_BYTES))
            self._stamp = stamp
        settled = self._now() - found.st_mtime >= SETTLED_S
        self._in_force = self._listed if settled else self._in_force | self._listed
