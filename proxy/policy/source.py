"""The strict reader: YAML text in, a tree of strings with positions out, or every problem at once.

It decides what counts as a well-formed file and nothing about what the file means. Every scalar stays
the string that was written (YAML 1.1 reads `no` as False, `22:22` as 1342, `014` as 12), and whatever
could make two readers see two things is refused: duplicate keys, anchors, aliases, merge keys, tags,
directives, several documents, byte order marks, control and bidirectional characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple, NoReturn

import yaml

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 20
MAX_NODES = 150_000
MAX_PROBLEMS = 100
_PIECE = 1 << 16

# Names of the module, since these are looked up for every word of a file.
_ScalarEvent, _SequenceEnd, _MappingEnd = yaml.ScalarEvent, yaml.SequenceEndEvent, yaml.MappingEndEvent

# C0 and C1 controls but tab and line feed; the line breaks that only YAML 1.1 knows (NEL, LS, PS); and
# the characters that make text look other than it is (Unicode TR 36, "Trojan Source" CVE-2021-42574).
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Where(NamedTuple):
    """A place in a file; line and column count from 1. Its text is `file:line:col`."""

    file: str
    line: int
    col: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"


@dataclass(slots=True, eq=False)
class Placed:
    """What has a place in a file. Not frozen: there are tens of thousands, and freezing costs."""

    mark: yaml.Mark

    @property
    def at(self) -> Where:
        """Where it starts, made when it is asked for."""
        mark = self.mark
        return Where(mark.name, mark.line + 1, mark.column + 1)


@dataclass(slots=True, eq=False)
class Scalar(Placed):
    """A string as it was written, with its quotes resolved."""

    text: str


@dataclass(slots=True, eq=False)
class Seq(Placed):
    """A list."""

    items: tuple[Node, ...]


@dataclass(slots=True, eq=False)
class Map(Placed):
    """Keys and values in the order of the file; no key occurs twice."""

    entries: tuple[tuple[Scalar, Node], ...]

    def get(self, key: str) -> Node | None:
        """The value of a key, None where it is not given."""
        return next((value for name, value in self.entries if name.text == key), None)


type Node = Scalar | Seq | Map


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong, where it is, and its cure."""

    file: str
    line: int
    col: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}: {self.message}"


class Problems(Exception):
    """A file that is refused: all that is wrong with it, in the order of the file."""

    def __init__(self, problems: list[Problem], text: str = "") -> None:
        self.problems = tuple(sorted(set(problems)))
        self.text = text
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    def render(self) -> str:
        """Each problem with its line of the file and a caret below the column."""
        lines = self.text.split("\n") if self.text else []
        return "\n".join(_with_caret(problem, lines) for problem in self.problems)


def _with_caret(problem: Problem, lines: list[str]) -> str:
    if not 1 <= problem.line <= len(lines):
        return str(problem)
    line, col = lines[problem.line - 1].rstrip("\r"), problem.col - 1
    start = max(0, col - 60) if len(line) > 120 else 0
    shown = _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", line[start : start + 120])
    pad = re.sub(r"[^\t]", " ", line[start:col])
    return f"{problem}\n    {shown}\n    {pad}^"


class Refused(Exception):
    """Internal to readers: stop now, the problems so far are enough."""


def read(text: bytes, filename: str) -> Node:
    """The tree of one YAML document. Raises Problems."""
    decoded = _decode(text, filename)
    composer = _Composer(decoded, filename)
    try:
        node = composer.document()
    except Refused:
        node = None
    if node is None or composer.problems:
        raise Problems(composer.problems, decoded)
    return node


def release(node: Node) -> None:
    """Take apart a tree that nobody needs; freed whole, a big one holds the interpreter for 10 ms."""
    left = [node]
    while left:
        node = left.pop()
        if isinstance(node, Map):
            left += [value for _, value in node.entries if not isinstance(value, Scalar)]
            node.entries = ()
        elif isinstance(node, Seq):
            left += [item for item in node.items if not isinstance(item, Scalar)]
            node.items = ()


def _decode(text: bytes, filename: str) -> str:
    """The characters of a file, once its size, encoding and characters are in order."""

    def refuse(line: int, col: int, message: str) -> Problems:
        return Problems([Problem(filename, line, col, message)])

    if len(text) > MAX_BYTES:
        raise refuse(1, 1, f"the file has more than {MAX_BYTES} bytes; split it or shorten it")
    if text.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise refuse(1, 1, "the file starts with a byte order mark; save it as UTF-8 without one")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode("utf-8")
        line, col = _line_col(before, len(before))
        raise refuse(
            line, col, f"byte 0x{text[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    decoded = decoded.replace("\r\n", "\n")
    for start in range(0, len(decoded), _PIECE):  # a search holds the interpreter to its end
        if found := _FORBIDDEN.search(decoded, start, start + _PIECE):
            line, col = _line_col(decoded, found.start())
            raise refuse(line, col, f"character U+{ord(found[0]):04X} is not allowed in a file; remove it")
    return decoded


def _line_col(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1


class _Stream(BytesIO):
    """A text that the parser reads in pieces; places in it carry its name."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text.encode())
        self.name = name


class _Composer:
    """Events to nodes. Goes on after a refusal where the tree is still clear.

    It asks events for their class: this is done for every word of a file.
    """

    def __init__(self, text: str, filename: str) -> None:
        self.filename = filename
        self.problems: list[Problem] = []
        self._next: Callable[[], Any] = yaml.CSafeLoader(_Stream(text, filename)).get_event
        self._left = MAX_NODES

    def refuse(self, at: Where, message: str) -> None:
        self.problems.append(Problem(*at, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise Refused

    def document(self) -> Node:
        """The one document of the file. Raises Refused."""
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = Where(self.filename, mark.line + 1, mark.column + 1) if mark else self._start
            said = f"this is not YAML: {error.problem or 'it ends too soon'}"
            self.refuse(at, f"{said}; check the brackets and the indentation, and quote text with : # * & !")
        except (yaml.YAMLError, ValueError):
            self.refuse(self._start, "this is not YAML; check it from the first line on")
        raise Refused

    @property
    def _start(self) -> Where:
        return Where(self.filename, 1, 1)

    def _document(self) -> Node:
        self._next()  # the start of the stream
        start = self._next()
        if isinstance(start, yaml.StreamEndEvent):
            self.refuse(self._start, "the file is empty; write at least its version")
            raise Refused
        if start.version or start.tags:
            self.refuse(Placed(start.start_mark).at, "a % directive is not allowed; remove the line")
        node = self._node(self._next(), 0)
        self._next()  # the end of the document
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            at = Placed(after.start_mark).at
            self.refuse(at, "a second document is not allowed; write one file for each")
        return node

    def _node(self, event: Any, depth: int) -> Node:
        self._left -= 1
        if self._left < 0:
            self._stop(event, f"more than {MAX_NODES} values; split the file")
        kind = event.__class__
        if kind is _ScalarEvent:
            if event.anchor or event.tag:
                self._check_properties(event)
            if event.style == '"':
                self._check_characters(event)
            return Scalar(event.start_mark, event.value)
        if kind is yaml.AliasEvent:
            at = Placed(event.start_mark).at
            self.refuse(at, f"alias *{event.anchor} is not allowed; write the value out, or quote the text")
            return Scalar(event.start_mark, "")
        if depth >= MAX_DEPTH:
            self._stop(event, f"deeper than {MAX_DEPTH} levels; a policy never needs that")
        if event.anchor or event.tag:
            self._check_properties(event)
        return (self._seq if kind is yaml.SequenceStartEvent else self._map)(event.start_mark, depth + 1)

    def _stop(self, event: Any, message: str) -> NoReturn:
        self.refuse(Placed(event.start_mark).at, message)
        raise Refused

    def _seq(self, mark: yaml.Mark, depth: int) -> Seq:
        items = []
        while (event := self._next()).__class__ is not _SequenceEnd:
            items.append(self._node(event, depth))
        return Seq(mark, tuple(items))

    def _map(self, mark: yaml.Mark, depth: int) -> Map:
        entries: dict[str, tuple[Scalar, Node]] = {}
        while (event := self._next()).__class__ is not _MappingEnd:
            key = self._node(event, depth)
            value = self._node(self._next(), depth)
            if not isinstance(key, Scalar):
                self.refuse(key.at, "a key must be one word; write the list or map as a value")
            elif key.text == "<<":
                self.refuse(key.at, "a merge key << is not allowed; write the keys out")
            elif key.text in entries:
                first = entries[key.text][0].at.line
                self.refuse(key.at, f'duplicate key "{key.text}", first on line {first}; remove one')
            else:
                entries[key.text] = (key, value)
        return Map(mark, tuple(entries.values()))

    def _check_properties(self, event: Any) -> None:
        at = Placed(event.start_mark).at
        if event.anchor:
            self.refuse(at, f"anchor &{event.anchor} is not allowed; write the value out, or quote the text")
        if event.tag:
            self.refuse(at, f'tag "{event.tag}" is not allowed; remove it, every value is read as text')

    def _check_characters(self, event: Any) -> None:
        """Escapes in double quotes can write what the file itself may not contain."""
        if found := _FORBIDDEN.search(event.value) or _SURROGATE.search(event.value):
            at = Placed(event.start_mark).at
            self.refuse(at, f"character U+{ord(found[0]):04X} is not allowed in a value; remove the escape")
