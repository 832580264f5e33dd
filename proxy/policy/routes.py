"""Connections of which one request would go one way and another request another way.

A second request of the same connection has dimensions of its own for what requests have; the two share the
rest. Two pieces that go two ways and leave such a connection are an unstable route.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from proxy.flow import Origin, Verdict
from proxy.policy.cover import AutoEngine, touching
from proxy.policy.model import REQUEST_ATTRIBUTES
from proxy.policy.regions import Box, Cover, Piece, meet

type Route = tuple[Verdict, tuple[str, ...] | None]

_SECOND = "second "


@dataclass(frozen=True, slots=True)
class Fork:
    """Two pieces that one connection can come to; `first_box` and `second_box` hold its two requests."""

    first: Piece
    second: Piece
    first_box: Box
    second_box: Box


@dataclass(frozen=True, slots=True)
class _Part:
    """One box of a piece, what is left out of it, and whether requests tell it from others."""

    piece: Piece
    route: Route
    box: Box
    names: int
    left_out: Cover
    asks: bool


def forks(pieces: Iterable[Piece], full: Mapping[str, int]) -> Iterator[Fork]:
    """One for each two pieces that fork. Raises TooHard."""
    admitting = [piece for piece in pieces if piece.verdict is not Verdict.BLOCK]
    if len({_route(piece) for piece in admitting}) < 2:
        return
    engine = AutoEngine({**full, **{_SECOND + name: full[name] for name in REQUEST_ATTRIBUTES}})
    parts = [part for piece in admitting for part in _parts(piece)]
    others = [_of_second_request(part) for part in parts]
    found: set[tuple[int, int]] = set()
    for i, first in enumerate(parts):
        for second in others[i:]:
            if first.route == second.route or not first.names & second.names:
                continue
            if not (first.asks or second.asks) or (pair := (id(first.piece), id(second.piece))) in found:
                continue
            both = meet(first.box, second.box)
            escaped = engine.escape(both, (first.left_out, second.left_out)) if both is not None else None
            if escaped is not None:
                found.add(pair)
                yield Fork(first.piece, second.piece, escaped, _second_request(escaped))


def _parts(piece: Piece) -> Iterator[_Part]:
    route = _route(piece)
    built_in = [cover for cover in piece.covers if cover.because.origin is Origin.GATE]
    stated = [cover for cover in piece.covers if cover.because.origin is not Origin.GATE]
    for box in piece.boxes:
        near = touching(box, stated)
        left_out = Cover(piece.because, (*touching(box, built_in), *near))
        yield _Part(piece, route, box, box.get("name", -1), left_out, _asks((box, *near)))


def _route(piece: Piece) -> Route:
    return piece.verdict, tuple(sorted(piece.via)) if piece.via else None


def _asks(boxes: Iterable[Box]) -> bool:
    return any(not REQUEST_ATTRIBUTES.isdisjoint(box) for box in boxes)


def _of_second_request(part: _Part) -> _Part:
    left_out = Cover(part.left_out.because, tuple(map(_shift, part.left_out.boxes)))
    return _Part(part.piece, part.route, _shift(part.box), part.names, left_out, part.asks)


def _shift(box: Box) -> Box:
    return {_SECOND + name if name in REQUEST_ATTRIBUTES else name: mask for name, mask in box.items()}


def _second_request(box: Box) -> Box:
    """The same connection with its other request."""
    connection = {name: mask for name, mask in box.items() if name not in REQUEST_ATTRIBUTES}
    return {name.removeprefix(_SECOND): mask for name, mask in connection.items()}
