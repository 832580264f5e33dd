"""A destination's response to a request that was sent on: its head made the client's, and its body framed.

Pure. Judged as strictly as a request: a response that can be read in two ways would let one response be taken
for two (RFC 9112, section 11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.channel.head import Head
from proxy.explicit.bodies import Body, Chunked, Counted, Unbounded
from proxy.explicit.requests import BadRequest, Request, check_framing, end_to_end, written

_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (.*))?")


class BadResponse(ValueError):
    """What the destination answered is no response to the request; one line."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response's head. `body` is None for an interim one: another head follows."""

    onward: bytes
    body: Body | None
    reusable: bool


def parse_response(head: Head, request: Request, *, keep: bool) -> Response:
    """The head of a response to `request`; with `keep` the client may use its connection again, if the body's
    end shows. Raises BadResponse."""
    line = _LINE.fullmatch(head.start)
    if line is None:
        raise BadResponse("its answer is not HTTP/1.1")
    status = int(line[2])
    start = f"HTTP/1.1 {status} {line[3] or ''}"
    try:
        check_framing(head)
        fields = end_to_end(head)
    except BadRequest as error:
        raise BadResponse(f"in its answer, {error}") from None
    if status == 101:
        raise BadResponse("it changes to another protocol, which nobody asked for")
    if status < 200:
        return Response(written(start, fields), None, True)
    body = _body(head, request, status)
    reusable = keep and not isinstance(body, Unbounded)
    own = [] if reusable else [("connection", "close")]
    if isinstance(body, Chunked):
        own.append(("transfer-encoding", "chunked"))
    return Response(written(start, [*fields, *own]), body, reusable)


def _body(head: Head, request: Request, status: int) -> Body:
    if request.method == "HEAD" or status in (204, 304):
        return Counted(0)
    if head.all("transfer-encoding"):
        if request.version == 0:
            raise BadResponse("it answers HTTP/1.0 in chunks")
        return Chunked(strict=False)
    if lengths := head.all("content-length"):
        return Counted(int(lengths[0]))
    return Unbounded()
