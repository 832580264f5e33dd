"""One body on its way: which bytes may go on now, what was found in it, and what ended it.

A body in which a pattern that blocks is found goes no further than the piece before the one in which the
pattern ends; a piece after which a pattern is whole but for its edge waits for the next one. What cannot be
read where something is blocked goes nowhere. Under patterns that are only reported everything goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.policy.model import Pattern, Scan
from proxy.scanning.patterns import Search, searches
from proxy.scanning.readings import FORM, Base64, reading_of
from proxy.scanning.stream import Hit, Stream
from proxy.scanning.unpack import Unpacker, Unreadable

HELD_BYTES = 256 * 1024
# Text in these is read as it is or by leaving its zero bytes out; letters of the patterns are ASCII in all.
_CHARSETS = re.compile(
    r"us-ascii|ascii|utf-?8|utf-?16(le|be)?|utf-?32(le|be)?|ucs-?2|latin-?1|iso-8859-[0-9]{1,2}|windows-125[0-8]|cp125[0-8]"
)
# RFC 7578, section 4.7: no browser sends it, and what unpacks it would see what we do not.
_CODED_PART = Search(
    "coded part",
    64,
    False,
    lambda data, first: (
        found.end(1)
        for found in re.finditer(
            rb"(?=(content-transfer-encoding:[ \t]{0,8}(?:base64|quoted-printable|x-)))", data.lower()
        )
        if found.start() >= first
    ),
)


@dataclass(frozen=True, slots=True)
class Body:
    """What its head says of a body: media type without parameters, charset, content codings in order."""

    media: str = ""
    charset: str = ""
    codings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a body goes no further: a pattern, or that it cannot be read. Never the bytes themselves."""

    reason: str
    hit: Hit | None = None


@dataclass(slots=True)
class Passed:
    """What may go on now. `reported` are patterns that were found and go."""

    data: bytes
    reported: list[Hit] = field(default_factory=list)


class Sieve:
    """One body, fed in order. After a Stopped nothing of it goes on."""

    def __init__(self, scan: Scan, defined: Sequence[Pattern], body: Body) -> None:
        found = list(searches((*scan.block, *scan.report), defined))
        self._block = frozenset(scan.block)
        self._coded = body.media.startswith("multipart/")
        if self._coded and self._block:
            found.append(_CODED_PART)
        self._stream, self._within = Stream(found), Stream(found)
        self._reading, self._base64 = reading_of(body.media), Base64()
        self._held = bytearray()
        self._unpacker: Unpacker | None = None
        self._over: Stopped | None = None
        try:
            self._unpacker = _unpacker(body)
        except Unreadable as error:
            self._unreadable(error)

    def feed(self, data: bytes) -> Passed | Stopped:
        """Some bytes of the body."""
        return self._step(data, last=False)

    def finish(self) -> Passed | Stopped:
        """The end of the body: what was held may go on."""
        return self._step(b"", last=True)

    def _step(self, data: bytes, *, last: bool) -> Passed | Stopped:
        if self._over is not None:
            return self._over
        hits: list[Hit] = []
        if self._unpacker is not None:
            try:
                for text in self._unpacker.feed(data):
                    hits += self._read(self._reading.feed(text) if self._reading else text)
                    if self._blocking(hits):
                        break
                if last and not self._blocking(hits):
                    self._unpacker.finish()
                    hits += self._read(self._reading.finish()) if self._reading else []
                    hits += self._within.feed(self._base64.finish())
                    hits += self._stream.finish() + self._within.finish()
            except Unreadable as error:
                self._unreadable(error)
        if (hit := self._blocking(hits)) is not None:
            if hit.pattern in self._block:
                self._over = Stopped(f"it holds {hit.pattern}", hit)
            else:
                self._over = Stopped("it cannot be read: a part of it is in a coding")
        if self._over is not None:
            self._held.clear()
            return self._over
        return self._passed(data, hits, last=last)

    def _read(self, text: bytes) -> list[Hit]:
        """What is found in some text, and in what it says in base64."""
        return self._stream.feed(text) + self._within.feed(self._base64.feed(text))

    @property
    def _pending(self) -> frozenset[str]:
        """The patterns that are whole if nothing follows."""
        pending = self._stream.pending | self._within.pending
        if ahead := self._base64.ahead:
            within = self._within.copy()
            pending |= {hit.pattern for hit in within.feed(ahead)} | within.pending
        return pending

    def _passed(self, data: bytes, hits: list[Hit], *, last: bool) -> Passed | Stopped:
        if not last and self._pending & self._block:
            self._held += data
            if len(self._held) > HELD_BYTES:  # what packs nothing into many bytes would be held for ever
                self._over = Stopped("it cannot be read: its compressed bytes hold nothing")
                self._held.clear()
                return self._over
            return Passed(b"", hits)
        if self._held:
            data = bytes(self._held) + data
            self._held.clear()
        return Passed(data, hits)

    def _blocking(self, hits: Sequence[Hit]) -> Hit | None:
        return next((hit for hit in hits if hit.pattern in self._block or hit.pattern == "coded part"), None)

    def _unreadable(self, error: Unreadable) -> None:
        """Where something is blocked it ends the body; else the body goes on unread."""
        self._unpacker = None
        if self._block:
            self._over = Stopped(f"it cannot be read: {error}")


def _unpacker(body: Body) -> Unpacker:
    """Raises Unreadable."""
    if body.charset and not _CHARSETS.fullmatch(body.charset.lower()):
        raise Unreadable(f'its charset "{body.charset:.40}" is not one that is looked into')
    codings = [coding for coding in map(str.lower, body.codings) if coding != "identity"]
    if len(codings) > 1:
        raise Unreadable("it is in several codings")
    return Unpacker(codings[0] if codings else "")


def scan_head(
    scan: Scan, defined: Sequence[Pattern], target: str, fields: Sequence[tuple[bytes, bytes]]
) -> tuple[Stopped | None, list[Hit]]:
    """What a request says before its body: its path and query and its header fields are sent as well.

    Parts of a path are looked into by themselves too: a slash is a letter of base64.
    """
    place = target.encode("utf-8", "surrogateescape")
    said = b"\n".join(b"%s: %s" % field for field in fields)
    texts = ((FORM, place), (FORM, place.replace(b"/", b"\n")), ("", said), (FORM, said))
    hits: list[Hit] = []
    for media, text in texts:
        sieve = Sieve(scan, defined, Body(media))
        for step in (sieve.feed(text), sieve.finish()):
            if isinstance(step, Stopped):
                return step, hits
            hits += step.reported
    return None, hits
