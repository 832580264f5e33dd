"""How the processes speak: one datagram, one message, schema-checked; descriptors ride along.

A message is a frozen dataclass of plain fields. On the wire it is a JSON object whose `is` names the
class; a peer that sends an unknown class, an unknown field, a wrong type or a wrong number of
descriptors has broken the link, and the link is closed. Nothing is ever unpickled.

Standard library only: the holder imports it. Knows no message (see messages), no process and no event
loop (see link).
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
import os
import socket
import types
import typing
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

MAX_MESSAGE_BYTES = 128 * 1024
MAX_DESCRIPTORS = 64


class LinkBroken(Exception):
    """The peer is gone or spoke nonsense; the link is of no more use."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a new link."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


# -- values on the wire ------------------------------------------------------------------------------


def encode(message: object) -> bytes:
    """The bytes of a message; ValueError if it is too long for one datagram."""
    fields = dataclasses.asdict(message)  # type: ignore[call-overload] # any dataclass instance
    data: bytes = json.dumps({"is": type(message).__name__, **fields}, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(data)} bytes is too long for one message")
    return data


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
        raise LinkBroken(f"message {name!r} is not expected here")
    hints = typing.get_type_hints(kind)
    if fields.keys() != hints.keys():
        raise LinkBroken(f"message {name} has the fields {sorted(fields)}, not {sorted(hints)}")
    return kind(**{key: _checked(f"{name}.{key}", value, hints[key]) for key, value in fields.items()})


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
        try:
            return hint(value)
        except ValueError as error:
            raise LinkBroken(f"{place} is not a {hint.__name__}") from error
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise LinkBroken(f"{place} is not an object")
        return decode(json.dumps({"is": hint.__name__, **value}).encode(), [hint])
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise LinkBroken(f"{place} is not a {getattr(hint, '__name__', hint)}")
    return value


# -- one end of a link ----------------------------------------------------------


def send(sock: socket.socket, message: object, fds: Iterable[int] = ()) -> None:
    """Send one message; LinkBroken if the peer is gone, BlockingIOError if a non-blocking peer is full."""
    descriptors = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
    try:
        sock.sendmsg([encode(message)], ancillary, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        raise
    except OSError as error:
        raise LinkBroken(f"the other end is gone ({os.strerror(error.errno or 0)})") from error


def receive[M](sock: socket.socket, accepted: Sequence[type[M]]) -> tuple[M, list[int]]:
    """Receive one message and its descriptors (close-on-exec); LinkBroken at end of file or nonsense."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        raise
    except OSError as error:
        raise LinkBroken(f"the other end is gone ({os.strerror(error.errno or 0)})") from error
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            got = array.array("i")
            got.frombytes(payload[: len(payload) - len(payload) % got.itemsize])
            fds.extend(got)
    try:
        if not data:
            raise LinkBroken("the other end is gone")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise LinkBroken("a message was cut short")
        return decode(data, accepted), fds
    except LinkBroken:
        close_all(fds)
        raise


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is passed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def memory_file(name: str, content: bytes) -> int:
    """A read-from-the-start descriptor of an anonymous file: how a secret travels between processes."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_file(fd: int, limit_bytes: int = 4 << 20) -> bytes:
    """All of a descriptor from its start, which is then closed."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return file.read(limit_bytes)
