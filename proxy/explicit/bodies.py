"""Where the body of an HTTP/1.1 message ends (RFC 9112, section 6), and the same body as it is sent on.

Pure: bytes in, bytes out. A body of chunks is taken apart and framed anew, so that no second reader can find
another end in it. Of a request nothing is repaired; of a response what old servers really send: spaces and
extensions after a chunk's size, leading zeros, trailers, all of which are left out.
"""

from __future__ import annotations

import re
from typing import Protocol

_STRICT = re.compile(rb"(0|[1-9a-fA-F][0-9a-fA-F]{0,11})\r\n")
_LENIENT = re.compile(rb"0{0,16}([0-9a-fA-F]{1,12})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")
_MAX_LINE, _MAX_TRAILERS = 4096, 64
LAST_CHUNK = b"0\r\n\r\n"


class BadBody(ValueError):
    """The body is not framed as its head says; one line."""


class Body(Protocol):
    """A body that is being read."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """What to send on for `data`, and what of it lies behind the body's end. Raises BadBody."""

    def end(self) -> bytes:
        """Nothing more will come; what to send on for that. Raises BadBody."""


class Counted:
    """A body of so many bytes."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        """See Body."""
        return self._left == 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """See Body."""
        mine, rest = data[: self._left], data[self._left :]
        self._left -= len(mine)
        return mine, rest

    def end(self) -> bytes:
        """See Body."""
        if self._left:
            raise BadBody("the body is shorter than its head says")
        return b""


class Unbounded:
    """The body of a response that ends with its connection."""

    done = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """See Body."""
        return data, b""

    def end(self) -> bytes:
        """See Body."""
        self.done = True
        return b""


class Chunked:
    """A body of chunks. `strict` is for requests."""

    def __init__(self, *, strict: bool) -> None:
        self._line = _STRICT if strict else _LENIENT
        self._trailers = 0 if strict else _MAX_TRAILERS
        self._held = b""
        self._left = 0
        self._state = "size"

    @property
    def done(self) -> bool:
        """See Body."""
        return self._state == "done"

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """See Body."""
        data, at, out = self._held + data, 0, []
        self._held = b""
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                out.append(b"%x\r\n%b\r\n" % (len(piece), piece))
                continue
            end = data.find(b"\n", at, at + _MAX_LINE) + 1
            if not end:
                if len(data) - at >= _MAX_LINE:
                    raise BadBody("a line of its chunks has no end")
                self._held, at = data[at:], len(data)
                break
            out.append(self._line_ended(data[at:end]))
            at = end
        return b"".join(out), data[at:]

    def _line_ended(self, line: bytes) -> bytes:
        """Go on after a line: a chunk's size, the gap behind a chunk, a trailer or the end of them."""
        match self._state:
            case "size":
                size = self._line.fullmatch(line)
                if size is None:
                    raise BadBody("the size of a chunk is malformed")
                self._left = int(size[1], 16)
                self._state = "gap" if self._left else "trailers"
            case "gap":
                if line != b"\r\n":
                    raise BadBody("a chunk is longer than its size")
                self._state = "size"
            case _:
                if line == b"\r\n":
                    self._state = "done"
                    return LAST_CHUNK
                self._trailers -= 1
                if self._trailers < 0 or not _TRAILER.fullmatch(line):
                    raise BadBody("fields after the last chunk are not accepted")
        return b""

    def end(self) -> bytes:
        """See Body."""
        raise BadBody("the body ends before its last chunk")
