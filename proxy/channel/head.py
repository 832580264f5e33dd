"""The head of an HTTP/1.1 message, strictly: a start line and fields, bounded in size and number.

It takes bytes apart and knows no meaning. What a lenient reader would repair (bare line feeds, folded
fields, spaces before a colon, control characters) is refused: two readers that repair differently
disagree about what was said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.channel.plain import Channel

LIMIT_BYTES = 8192
LIMIT_FIELDS = 64
_END = b"\r\n\r\n"
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_START = re.compile(rb"[\x20-\x7e]+")


class BadHead(ValueError):
    """The head of a message is malformed, too long, or ended early."""


@dataclass(frozen=True, slots=True)
class Head:
    """A start line, and fields in order with their names in lower case."""

    start: str
    fields: tuple[tuple[str, str], ...]

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of the field `name`."""
        return tuple(value for field, value in self.fields if field == name)


async def read_head(
    channel: Channel, first: bytes = b"", limit_bytes: int = LIMIT_BYTES, limit_fields: int = LIMIT_FIELDS
) -> Head:
    """Read one head that begins with `first`; what follows it stays in the channel.

    Raises BadHead, and ConnectionError as the channel does. It sets no time limit.
    """
    buffer = bytearray(first)
    searched = 0
    while (end := buffer.find(_END, searched)) < 0:
        if len(buffer) > limit_bytes:
            raise BadHead(f"the head is longer than {limit_bytes} bytes")
        searched = max(0, len(buffer) - len(_END) + 1)
        data = await channel.read()
        if not data:
            raise BadHead("the connection ended within the head")
        buffer += data
    if end > limit_bytes:
        raise BadHead(f"the head is longer than {limit_bytes} bytes")
    if rest := bytes(buffer[end + len(_END) :]):
        channel.unread(rest)
    return parse_head(bytes(buffer[:end]), limit_fields)


def parse_head(head: bytes, limit_fields: int = LIMIT_FIELDS) -> Head:
    """Take a head without its blank line apart. Raises BadHead."""
    start, *lines = head.split(b"\r\n")
    if not _START.fullmatch(start):
        raise BadHead("the start line is malformed")
    if len(lines) > limit_fields:
        raise BadHead(f"the head has more than {limit_fields} fields")
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise BadHead("a field is malformed")
        name, value = match.groups()
        fields.append((name.decode("ascii").lower(), value.decode("latin-1").rstrip(" \t")))
    return Head(start.decode("ascii"), tuple(fields))
