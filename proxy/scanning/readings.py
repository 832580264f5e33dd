"""What text means that is written in another way: forms, JSON, base64. Each is fed in pieces of any size.

A sign that is cut in two waits for its rest, of which there are a few bytes at most.
"""

from __future__ import annotations

import binascii
import re
from typing import Protocol
from urllib.parse import unquote_to_bytes

FORM, JSON = "application/x-www-form-urlencoded", "application/json"


class Reading(Protocol):
    """One text, fed in order."""

    def feed(self, data: bytes) -> bytes:
        """What these bytes mean."""

    def finish(self) -> bytes:
        """What still waited."""


def reading_of(media: str) -> Reading | None:
    """How a body of a media type is written; None where it is as it stands."""
    if media == FORM:
        return Form()
    return Json() if media == JSON or media.endswith("+json") else None


class Form:
    """What a form means: `+` is a blank, `%41` a letter."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        data = self._rest + data
        cut = data.rfind(b"%", max(0, len(data) - 2))
        cut = len(data) if cut < 0 else cut
        data, self._rest = data[:cut], data[cut:]
        return unquote_to_bytes(data.replace(b"+", b" "))

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest


_HEX, _HIGH, _LOW = rb"[0-9A-Fa-f]", rb"[dD][89abAB][0-9A-Fa-f]{2}", rb"[dD][c-fC-F][0-9A-Fa-f]{2}"
_ESCAPE = re.compile(
    rb"\\(?:"
    rb"(\Z|u%(hex)s{0,3}\Z|u%(high)s(?:\\(?:u%(hex)s{0,3})?)?\Z)"  # cut in two
    rb"|u(%(high)s)\\u(%(low)s)|u(%(hex)s{4})|(.))" % {b"hex": _HEX, b"high": _HIGH, b"low": _LOW},
    re.DOTALL,
)
_SHORT = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b" ", b"f": b" "}


class Json:
    """What JSON means within its strings (RFC 8259, section 7); the rest is as it stands."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        return _ESCAPE.sub(self._meant, data) if b"\\" in data else data

    def _meant(self, found: re.Match[bytes]) -> bytes:
        unfinished, high, low, four, one = found.groups()
        if unfinished is not None:
            self._rest = found[0]
            return b""
        if one is not None:
            return _SHORT.get(one, one)
        units = bytes.fromhex((four or high + low).decode("ascii"))
        return units.decode("utf-16-be", "replace").encode()

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest


_LETTER = rb"[A-Za-z0-9+/_-]"
_LETTERS, _BEGINS = re.compile(_LETTER + rb"*"), re.compile(_LETTER + rb"{16}")
_BEGINS_LINE = re.compile(_LETTER)
_MAY_BEGIN = re.compile(_LETTER + rb"{1,15}\Z")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BETWEEN = b"\n"  # what no pattern goes across


class Base64:
    """What is said in base64 (RFC 4648) within a text: in runs of 16 letters or more, in lines or not.

    A line that is not of whole groups of four ends its run. Nothing is unpacked twice.
    """

    def __init__(self) -> None:
        self._open = False  # within a run
        self._group = b""  # its last letters, fewer than four
        self._rest = b""

    @property
    def ahead(self) -> bytes:
        """What the last letters mean if the run ends with them."""
        if len(self._group) < 2:
            return b""
        return binascii.a2b_base64(self._group.translate(_STANDARD) + b"==")

    def feed(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        out, at = bytearray(), 0
        while True:
            if not self._open:
                found = _BEGINS.search(data, at)
                if found is None:
                    tail = _MAY_BEGIN.search(data, max(at, len(data) - 15))
                    self._rest = tail[0] if tail else b""
                    return bytes(out)
                self._open, at = True, found.start()
            at = self._letters(data, at, out)
            follows = data[at : at + 2]
            if at + len(follows) == len(data) and follows in (b"", b"\r", b"\n", b"\r\n"):
                self._rest = follows
                return bytes(out)
            line = 2 if follows == b"\r\n" else 1 if follows[:1] == b"\n" else 0
            if line and not self._group and _BEGINS_LINE.match(data, at + line):
                at += line
                continue
            out += self.ahead + _BETWEEN
            self._open, self._group = False, b""

    def _letters(self, data: bytes, at: int, out: bytearray) -> int:
        """Take the letters from here on; where they end."""
        end = _LETTERS.match(data, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
        letters = self._group + data[at:end]
        whole = len(letters) & ~3
        self._group = letters[whole:]
        out += binascii.a2b_base64(letters[:whole].translate(_STANDARD))
        return end

    def finish(self) -> bytes:
        ahead, self._open, self._group = self.ahead, False, b""
        return ahead
