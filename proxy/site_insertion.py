"""A tunnel put into the text of a site file, at the end of `tunnels` and of a zone's list.

Pure: text in, text out, and every line that was there stays as it is. What cannot be done so is refused.
Whoever uses the text reads it first, as every site file is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


class NotInserted(ValueError):
    """It cannot be put in; one line with the cure."""


@dataclass(frozen=True, slots=True)
class Inserted:
    """The new text, the zone that has the tunnel now, and the zone's tunnels before it."""

    text: str
    zone: str
    before: tuple[str, ...]


def with_tunnel(text: str, name: str, entry: str, zone: str = "") -> Inserted:
    """The text of a site file with a tunnel, whose lines are `entry`, indented by two spaces for each level.
    It becomes the last of a zone, which need not be named where there is one. Raises NotInserted."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise NotInserted(f"it is no YAML: {str(error).splitlines()[0]}") from error
    tunnels, zones = _entry(root, "tunnels"), _entry(root, "zones")
    if not isinstance(tunnels, MappingNode) or tunnels.flow_style or not tunnels.value:
        raise NotInserted("its tunnels are not one below the other; write the lines there by hand")
    if _entry(tunnels, name) is not None:
        raise NotInserted(f'it has a tunnel "{name}" already; say another --name')
    zone = zone or _only(zones)
    listed = _entry(_entry(zones, zone), "tunnels")
    if not isinstance(listed, SequenceNode | ScalarNode):
        raise NotInserted(f'it has no zone "{zone}" with tunnels; say another --zone')
    indent = " " * tunnels.value[0][0].start_mark.column
    lines = "".join(indent + line.removeprefix("  ") for line in entry.splitlines(keepends=True))
    edits = [(_line_after(text, tunnels, len(indent)), lines), *_listing(text, listed, name)]
    for at, more in sorted(edits, reverse=True):
        own_line = "\n" if more.endswith("\n") and text[:at][-1:] not in ("", "\n") else ""
        text = f"{text[:at]}{own_line}{more}{text[at:]}"
    before = listed.value if isinstance(listed, SequenceNode) else [listed]
    return Inserted(text, zone, tuple(one.value for one in before))


def _entry(node: Node | None, key: str) -> Node | None:
    """What a mapping has under a key, None where it is none or has no such key."""
    if not isinstance(node, MappingNode):
        return None
    return next(
        (value for name, value in node.value if isinstance(name, ScalarNode) and name.value == key), None
    )


def _only(zones: Node | None) -> str:
    names: Sequence[str] = [key.value for key, _ in zones.value] if isinstance(zones, MappingNode) else []
    if len(names) != 1:
        raise NotInserted(f"say which zone is to have it: --zone; there are {', '.join(names) or 'none'}")
    return names[0]


def _listing(text: str, listed: SequenceNode | ScalarNode, name: str) -> list[tuple[int, str]]:
    """Where in a zone's list a name is to be written, and how."""
    if isinstance(listed, ScalarNode):
        return [(listed.start_mark.index, "["), (listed.end_mark.index, f", {name}]")]
    if not listed.flow_style and listed.value:
        dash = text.rfind("\n", 0, listed.value[0].start_mark.index) + 1
        indent = text[dash : text.index("-", dash)]
        return [(_line_after(text, listed, len(indent)), f"{indent}- {name}\n")]
    end = listed.end_mark.index - 1
    inside = text[listed.start_mark.index + 1 : end].rstrip()
    comma = ", " if inside and not inside.endswith(",") else " " if inside else ""
    return [(listed.start_mark.index + 1 + len(inside), comma + name)]


def _line_after(text: str, node: Node, margin: int) -> int:
    """The beginning of the line behind the last thing that a block says, and behind the comments on it: those
    further in than the block's margin."""
    end = _last(node).end_mark
    index = end.index if end.column else end.index - 1
    newline = text.find("\n", index)
    if newline < 0:
        return len(text)
    behind = re.compile(rf"(?:[ \t]*\n)* {{{margin + 1},}}#[^\n]*(?:\n|\Z)")
    after = newline + 1
    while comment := behind.match(text, after):
        after = comment.end()
    return after


def _last(node: Node) -> Node:
    """The last node in the text that is no block of others."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, MappingNode) else node.value[-1]
    return node
