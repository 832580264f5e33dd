"""Patterns over bytes that come in pieces: what is found is the same wherever the pieces are cut.

Of what has passed it keeps as many bytes as the longest pattern has, and forgets each pattern once found.
Text in UTF-16 or UTF-32 is read by leaving its zero bytes out, beside the bytes as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.scanning.patterns import Search


@dataclass(frozen=True, slots=True)
class Hit:
    """A pattern that was found, and after how many bytes: of the text, or of it without its zero bytes."""

    pattern: str
    offset: int


class Stream:
    """One text, fed in order."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self._plain = _Lane(searches)
        self._wide: _Lane | None = None

    def copy(self) -> Stream:
        """Another that goes on from here."""
        made = Stream(())
        made._plain = self._plain.copy()
        made._wide = self._wide.copy() if self._wide else None
        return made

    @property
    def pending(self) -> frozenset[str]:
        """The patterns that end right here, unless what follows makes it something longer."""
        return self._plain.pending | (self._wide.pending if self._wide else frozenset())

    def feed(self, data: bytes) -> list[Hit]:
        """What is found with these bytes, each pattern once."""
        if self._wide is None and 0 in data:
            self._wide = self._plain.copy()
        found = list(self._plain.feed(data))
        if self._wide is not None:
            found += self._wide.feed(data.replace(b"\0", b""))
        return self._once(found)

    def finish(self) -> list[Hit]:
        """What the end of the text settles."""
        found = list(self._plain.finish())
        if self._wide is not None:
            found += self._wide.finish()
        return self._once(found)

    def _once(self, found: list[Hit]) -> list[Hit]:
        first: dict[str, Hit] = {}
        for hit in found:
            first.setdefault(hit.pattern, hit)
            self._plain.forget(hit.pattern)
            if self._wide is not None:
                self._wide.forget(hit.pattern)
        return list(first.values())


class _Lane:
    """One way to read the bytes: `_tail` are the last ones, `_passed` how many there were before them."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self._searches = {search.name: search for search in searches}
        self._kept = max((search.most_bytes for search in searches), default=0) + 1
        self._tail = b""
        self._passed = 0
        self.pending: frozenset[str] = frozenset()

    def copy(self) -> _Lane:
        """Another that goes on from here."""
        made = _Lane(tuple(self._searches.values()))
        made._kept, made._tail, made._passed = self._kept, self._tail, self._passed
        made.pending = self.pending
        return made

    def forget(self, pattern: str) -> None:
        """It was found: look for it no more."""
        self._searches.pop(pattern, None)
        self.pending -= {pattern}

    def feed(self, data: bytes) -> Iterator[Hit]:
        if not data or not self._searches:
            return
        known = len(self._tail)
        text = self._tail + data
        pending = set()
        # the byte before a match is looked at, so that the first byte of a tail begins none
        first = 1 if self._passed else 0
        for search in self._searches.values():
            settled = []
            for end in search.ends(text, first):
                if search.edged and end == len(text):
                    pending.add(search.name)
                elif end > known or (search.edged and end == known):
                    settled.append(end)
            if settled:
                yield Hit(search.name, self._passed + min(settled))
        self.pending = frozenset(pending)
        cut = max(0, len(text) - self._kept)
        self._tail, self._passed = text[cut:], self._passed + cut

    def finish(self) -> Iterator[Hit]:
        for name in sorted(self.pending):
            yield Hit(name, self._passed + len(self._tail))
