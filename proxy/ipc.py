"""How the processes speak: one datagram, one message, schema-checked; descriptors ride along.

A message is a frozen dataclass of plain fields. On the wire it is a JSON object whose `is` names the
class; a peer that sends an unknown class, an unknown field, a wrong type or a wrong number of
descriptors has broken the link, and the link is closed. Nothing is ever unpickled.

How many descriptors a message brings, (least, most), stands in its class as `descriptors`; without it,
none. A descriptor that nobody expects is a leak, or worse.

Standard library only: the holder imports it. Knows no message (see messages), no process and no event
loop (see link).
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import math
import os
import re
import socket
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

MAX_MESSAGE_BYTES = 128 * 1024
MAX_DESCRIPTORS = 64
_INT64 = range(-(1 << 63), 1 << 63)  # what every call that a number may end in can take
_NO_DESCRIPTORS = (0, 0)
_SO_PASSRIGHTS = 83  # linux/socket.h, since 6.16
# Plain numbers: an operation on the enumeration costs more than the call it is for.
_CUT_SHORT, _LOST_SOME = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class LinkBroken(Exception):
    """The peer is gone or spoke nonsense; the link is of no more use."""


class PeerGone(LinkBroken):
    """Nobody is at the other end any more, or this end was closed."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a new link."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def refuse_descriptors(sock: socket.socket) -> None:
    """Have the kernel refuse what the other end sends with descriptors, where it can (Linux 6.16).

    To close what was not asked for is too late: the last close of a connection with SO_LINGER waits for its
    peer, and so does that of a file of FUSE. Whoever sends one would hold up whoever receives it.
    """
    with contextlib.suppress(OSError):  # an older kernel
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


# -- values on the wire ------------------------------------------------------------------------------


def encode(message: object) -> bytes:
    """The bytes of a message; ValueError if it is too long for one datagram or its text is no Unicode."""
    data = _json.encode({"is": type(message).__name__, **_fields(message)}).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(data)} bytes is too long for one message")
    return data


def _fields(message: object) -> dict[str, Any]:
    """The fields of a dataclass; what stands in them, the encoder asks for in turn."""
    kind: Any = type(message)
    return {name: getattr(message, name) for name in _hints(kind)}


_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_fields)


def decode[M](data: bytes, accepted: Sequence[type[M]]) -> M:
    """The message in `data`, which must be one of `accepted`; LinkBroken otherwise."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LinkBroken("a message is not JSON") from error
    if not isinstance(fields, dict):
        raise LinkBroken("a message is not an object")
    name = fields.pop("is", None)
    kind = next((kind for kind in accepted if kind.__name__ == name), None)
    if kind is None:
        raise LinkBroken(f"message {name!r:.60} is not expected here")
    return _built(kind.__name__, kind, fields)


def _built[M](place: str, kind: type[M], fields: Mapping[str, Any]) -> M:
    hints = _hints(kind)  # type: ignore[arg-type] # a class is hashable, whatever its instances are
    if fields.keys() != hints.keys():
        raise LinkBroken(f"message {place} has not the fields {', '.join(hints)} and no other")
    return kind(
        **{
            key: value if _is_plain(value, hints[key]) else _checked(f"{place}.{key}", value, hints[key])
            for key, value in fields.items()
        }
    )


@functools.cache
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    """The types of the fields of a message."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _checked(place: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says; LinkBroken if it is of another."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _checked(place, value, next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        if not isinstance(value, list):
            raise LinkBroken(f"{place} is not a list")
        return tuple(_checked(place, item, args[0]) for item in value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise LinkBroken(f"{place} is not a {hint.__name__}")
        return hint(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise LinkBroken(f"{place} is not an object")
        return _built(place, hint, value)
    if hint is float and type(value) is int and value in _INT64:
        value = float(value)
    if not _is_plain(value, hint):
        raise LinkBroken(f"{place} is not a {getattr(hint, '__name__', hint)}")
    return value


def _is_plain(value: object, hint: Any) -> bool:
    """Whether a value is of a plain type and can be used without a surprise: JSON can say more than a call or
    a log can take."""
    if type(value) is not hint:
        return False
    match value:
        case str():
            return value.isascii() or not _SURROGATE.search(value)
        case float():
            return math.isfinite(value)
        case int():
            return value in _INT64
    return True


# -- one end of a link -------------------------------------------------------------------------------


def send(sock: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Send one message; LinkBroken if the peer is gone, BlockingIOError if a non-blocking peer is full.

    ValueError if the message cannot be sent or brings another number of descriptors than it should.
    """
    transmit(sock, packed(message, fds), fds)


def packed(message: object, fds: Sequence[int] = ()) -> bytes:
    """The bytes of a message that is to go with these descriptors; ValueError where it may not."""
    if trouble := _wrong_count(type(message), fds):
        raise ValueError(trouble)
    return encode(message)


def transmit(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send what `packed` gave; raises as `send` does."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        raise
    except OSError as error:
        raise PeerGone(f"the other end is gone ({error.strerror or error})") from error


def brings_descriptors(sock: socket.socket) -> bool:
    """Whether the message that is next has descriptors; as `receive` raises where there is none."""
    try:
        return bool(sock.recvmsg(1, 0, socket.MSG_PEEK)[2] & _LOST_SOME)
    except BlockingIOError:
        raise
    except OSError as error:
        raise PeerGone(f"the other end is gone ({error.strerror or error})") from error


def receive[M](sock: socket.socket, accepted: Sequence[type[M]]) -> tuple[M, list[int]]:
    """Receive one message and its descriptors (close-on-exec); LinkBroken at end of file or nonsense.

    Where this process has no room for all of them, a message that may come without them does.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise PeerGone(f"the other end is gone ({error.strerror or error})") from error
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            got = array.array("i")
            got.frombytes(payload[: len(payload) - len(payload) % got.itemsize])
            fds.extend(got)
    try:
        if not data:
            raise PeerGone("the other end is gone")
        lost_some = flags & _LOST_SOME
        if flags & _CUT_SHORT or (lost_some and len(fds) == MAX_DESCRIPTORS):
            raise LinkBroken("a message was cut short")
        message = decode(data, accepted)
        if lost_some:
            close_all(fds)
            fds.clear()
            if _descriptors(type(message)) == _NO_DESCRIPTORS or _wrong_count(type(message), fds):
                raise LinkBroken(f"no descriptor is left for what comes with {type(message).__name__}")
        if trouble := _wrong_count(type(message), fds):
            raise LinkBroken(trouble)
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def _descriptors(kind: type) -> tuple[int, int]:
    """How few and how many it may bring."""
    found: tuple[int, int] = getattr(kind, "descriptors", _NO_DESCRIPTORS)
    return found


def _wrong_count(kind: type, fds: Sequence[int]) -> str:
    least, most = _descriptors(kind)
    if least <= len(fds) <= most:
        return ""
    return f"{kind.__name__} goes with {least} to {most} descriptors, not {len(fds)}"


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is passed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def memory_file(name: str, content: bytes) -> int:
    """A read-from-the-start descriptor of an anonymous file: how a secret travels between processes.

    It is sealed: whoever gets the descriptor can read it and can change it for nobody.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        written = 0
        while written < len(content):
            written += os.write(fd, content[written:])
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_file(fd: int, limit_bytes: int = 4 << 20) -> bytes:
    """All of a descriptor from its start, which is then closed; OSError beyond the limit."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {limit_bytes} bytes")
    return content
