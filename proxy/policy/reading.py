"""Aids to read a tree of nodes into values: each says what is wrong, where, and the cure, and goes on.

A reader makes one `Reading`, asks it for values, and calls `finish`: the file is refused with every
problem that was found. A value that could not be read comes back as None; the caller goes on without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import islice

from proxy.policy.source import MAX_PROBLEMS, Map, Node, Problem, Problems, Scalar, Seq, Where, read

_DURATION_S: Mapping[str, float] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE: Mapping[str, int] = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h|d)")
_BYTES = re.compile(r"(0|[1-9][0-9]{0,11}) ?(B|KiB|MiB|GiB|TiB)")
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing where no known word is close."""
    close = closest(word, known)
    return "" if close is None else f'; did you mean "{close}"?'


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was meant, None where none is close."""
    return next(iter(get_close_matches(word[:80], islice(known, 2000), n=1, cutoff=0.6)), None)


def one_of(words: Iterable[str]) -> str:
    """`block, tunnel or direct`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


class Reading:
    """One file being read: its tree, and what was found wrong so far."""

    def __init__(self, text: bytes, filename: str) -> None:
        """Raises Problems where the text is not a well-formed file."""
        self.filename = filename
        self._text = text
        self.problems: list[Problem] = []
        self.root = read(text, filename)

    def problem(self, at: Node | Where, message: str) -> None:
        """Record a problem at a node, once. Raises Problems at once when there are too many to read."""
        where = at if isinstance(at, Where) else at.at
        if (found := Problem(*where, message)) not in self.problems:
            self.problems.append(found)
        if len(self.problems) >= MAX_PROBLEMS:
            self.finish()

    def finish(self) -> None:
        """Raises Problems if there was any."""
        if self.problems:
            raise Problems(self.problems, self._text.decode("utf-8", "replace").replace("\r\n", "\n"))

    def mapping(
        self, node: Node, what: str, keys: Collection[str], required: Collection[str] = ()
    ) -> dict[str, Node]:
        """The values of a map by key; unknown and missing keys are problems, a misspelt one only once."""
        found: dict[str, Node] = {}
        misspelt: set[str | None] = set()
        for key, value in self.entries(node, what):
            if key.text in keys:
                found[key.text] = value
            else:
                cure = did_you_mean(key.text, keys) or f"; it may have {one_of(keys)}"
                misspelt.add(closest(key.text, keys))
                self.problem(key, f'unknown key "{key.text}" in {what}{cure}')
        if isinstance(node, Map):
            for key_name in required:
                if key_name not in found and key_name not in misspelt:
                    self.problem(node, f'{what} has no "{key_name}"; add it')
        return found

    def entries(self, node: Node, what: str) -> tuple[tuple[Scalar, Node], ...]:
        """The keys and values of a map whose keys are free."""
        if isinstance(node, Map):
            return node.entries
        self.problem(node, f"{what} must be a map; write it as {{key: value}}")
        return ()

    def items(self, node: Node, what: str) -> tuple[Node, ...]:
        """The items of a list."""
        if isinstance(node, Seq):
            return node.items
        self.problem(node, f"{what} must be a list; write it as [a, b] or with a dash on each line")
        return ()

    def word(self, node: Node, what: str) -> Scalar | None:
        """One text with its place, not empty."""
        if not isinstance(node, Scalar):
            self.problem(node, f"{what} must be one text, not a list or a map")
        elif not node.text:
            self.problem(node, f"{what} is empty; write a value or remove the key")
        else:
            return node
        return None

    def text(self, node: Node, what: str) -> str | None:
        """One text, not empty."""
        word = self.word(node, what)
        return word.text if word else None

    def words(self, node: Node, what: str) -> tuple[Scalar, ...]:
        """One text or a list of them, not empty, none twice."""
        if not isinstance(node, Seq):
            word = self.word(node, what)
            return () if word is None else (word,)
        if not node.items:
            self.problem(node, f"{what} is an empty list; write a value or remove the key")
        found: dict[str, Scalar] = {}
        for item in node.items:
            word = self.word(item, what)
            if word is None:
                continue
            if found.setdefault(word.text, word) is not word:
                self.problem(word, f'"{word.text}" is written twice in {what}; remove one')
        return tuple(found.values())

    def texts(self, node: Node, what: str) -> tuple[str, ...]:
        """One text or a list of them, as plain strings."""
        return tuple(word.text for word in self.words(node, what))

    def choice(self, node: Node, what: str, choices: Collection[str]) -> str | None:
        """One of a closed set of words."""
        word = self.word(node, what)
        if word is None or word.text in choices:
            return word.text if word else None
        cure = did_you_mean(word.text, choices) or f"; write {one_of(choices)}"
        self.problem(word, f'{what} cannot be "{word.text}"{cure}')
        return None

    def boolean(self, node: Node, what: str) -> bool | None:
        """`true` or `false`, nothing else."""
        chosen = self.choice(node, what, ("true", "false"))
        return None if chosen is None else chosen == "true"

    def integer(self, node: Node, what: str, low: int, high: int) -> int | None:
        """A decimal whole number within bounds, without leading zeros."""
        word = self.word(node, what)
        if word is None:
            return None
        if _WHOLE.fullmatch(word.text) and low <= int(word.text) <= high:
            return int(word.text)
        self.problem(word, f'{what} "{word.text}" is not a whole number from {low} to {high}; write one')
        return None

    def duration_s(self, node: Node, what: str) -> float | None:
        """Seconds of a text such as `500ms`, `10s`, `5m`, `12h`, `30d`."""
        word = self.word(node, what)
        if word and (found := _DURATION.fullmatch(word.text)):
            return int(found[1]) * _DURATION_S[found[2]]
        if word:
            self.problem(word, f'{what} "{word.text}" is not a duration; write a number and ms, s, m, h or d')
        return None

    def size_bytes(self, node: Node, what: str) -> int | None:
        """Bytes of a text such as `10MiB`."""
        word = self.word(node, what)
        if word and (size := parse_size(word.text)) is not None:
            return size
        if word:
            self.problem(word, f'{what} "{word.text}" is not a size; write a number and B, KiB, MiB or GiB')
        return None

    def parsed[T](self, node: Node, what: str, parse: Callable[[str], T]) -> T | None:
        """One text through a parser that raises ValueError with a message that names the cure."""
        word = self.word(node, what)
        if word is None:
            return None
        try:
            return parse(word.text)
        except ValueError as error:
            self.problem(word, f"{what} {error}")
            return None


def size_text(count: int) -> str:
    """A number of bytes as a policy would say it, to the byte: `10MiB`, `1500B`."""
    unit = max((unit for unit, factor in _SIZE.items() if count % factor == 0), key=lambda unit: _SIZE[unit])
    return f"{count // _SIZE[unit]}{unit if count else 'B'}"


def parse_size(text: str) -> int | None:
    """Bytes of `10MiB`; None where it is not a size with a binary unit."""
    found = _BYTES.fullmatch(text)
    return int(found[1]) * _SIZE[found[2]] if found else None
