"""Compressed bodies, unpacked as they pass: never much more at a time, never more than their ratio allows.

What is in another coding, is cut short, has something behind its end, or unpacks to too much, cannot be read,
and says so. (R2: a bomb is a body whose ratio or size is beyond any text.)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

PIECE_BYTES = 64 * 1024
MOST_RATIO, FREE_BYTES = 100, 1 << 20
MOST_BYTES = 8 << 30
MOST_WINDOW_BYTES = 8 << 20  # RFC 8878, section 3.1.1.1.2: what every decoder of zstd is to have
# The worst that a byte of zstd can say is a block of 128 KiB in four; it has no bound of its own.
_ZSTD_SLICE = 256


class Unreadable(Exception):
    """What is in a body cannot be known; one line."""


class Coding(Protocol):
    """One coding, fed in order."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bytes within, in pieces. Raises Unreadable."""

    def finish(self) -> None:
        """Nothing follows. Raises Unreadable where something had to."""


class Unpacker:
    """A body in a coding, within bounds."""

    def __init__(self, coding: str) -> None:
        """Raises Unreadable for a coding that is not known here."""
        make = CODINGS.get(coding)
        if make is None:
            raise Unreadable(f'its coding "{coding:.40}" is not one that is looked into')
        self._coding = make()
        self._took = self._gave = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What is in these bytes, in pieces. Raises Unreadable."""
        self._took += len(data)
        for piece in self._coding.feed(data):
            self._gave += len(piece)
            if self._gave > min(MOST_BYTES, FREE_BYTES + MOST_RATIO * self._took):
                raise Unreadable("it unpacks to too much")
            yield piece

    def finish(self) -> None:
        """Raises Unreadable where the body was cut short."""
        self._coding.finish()


class _Zlib:
    """gzip (of several members) and deflate (with and without the header of zlib: both are sent)."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._decoder = zlib.decompressobj(wbits)
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._began and data:
            self._began = True
            if self._wbits == zlib.MAX_WBITS and data[0] & 0x0F != 8:  # RFC 1950, CM
                self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            while data:
                if self._decoder.eof:
                    self._next_member()
                piece = self._decoder.decompress(data, PIECE_BYTES)
                data = self._decoder.unconsumed_tail or self._decoder.unused_data
                if piece:
                    yield piece
            while not self._decoder.eof and (piece := self._decoder.decompress(b"", PIECE_BYTES)):
                yield piece
        except zlib.error as error:
            raise Unreadable("its compressed bytes are malformed") from error

    def _next_member(self) -> None:
        if self._wbits != zlib.MAX_WBITS | 16:
            raise Unreadable("something follows the end of its compressed bytes")
        self._decoder = zlib.decompressobj(self._wbits)

    def finish(self) -> None:
        if self._began and not self._decoder.eof:
            raise Unreadable("its compressed bytes are cut short")


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._decoder, self._error = brotli.Decompressor(), brotli.error
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._began = self._began or bool(data)
        try:
            while data or not self._decoder.can_accept_more_data():
                if data and self._decoder.is_finished():
                    raise Unreadable("something follows the end of its compressed bytes")
                piece = self._decoder.process(data, output_buffer_limit=PIECE_BYTES)
                data = b""
                if piece:
                    yield piece
                elif self._decoder.is_finished():
                    return
        except self._error as error:
            raise Unreadable("its compressed bytes are malformed") from error

    def finish(self) -> None:
        if self._began and not self._decoder.is_finished():
            raise Unreadable("its compressed bytes are cut short")


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._make = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES).decompressobj
        self._error = zstandard.ZstdError
        self._decoder = self._make()
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            for at in range(0, len(data), _ZSTD_SLICE):
                some = data[at : at + _ZSTD_SLICE]
                while some:
                    if self._decoder.eof:
                        self._decoder = self._make()  # frames may follow each other
                    self._began = True
                    piece = self._decoder.decompress(some)
                    some = self._decoder.unused_data
                    if piece:
                        yield piece
        except self._error as error:
            raise Unreadable("its compressed bytes are malformed") from error

    def finish(self) -> None:
        if self._began and not self._decoder.eof:
            raise Unreadable("its compressed bytes are cut short")


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return


CODINGS: Mapping[str, Callable[[], Coding]] = {
    "": _Plain,
    "identity": _Plain,
    "gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}
