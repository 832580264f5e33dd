"""A file of logins and hashed passwords: its lines, made, read and compared.

One login a line, `alice:scrypt:14:8:1:SALT:HASH`: scrypt (RFC 7914) with log2 N, r and p, salt and hash in
base64. Nothing else is read: a line that is not one refuses the file. To compare costs 16 MiB and some
hundredths of a second, so it belongs in a thread. Touches no file.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass

MAX_PASSWORD_BYTES = 255  # what SOCKS can carry (RFC 1929)
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LINE = re.compile(r"([^:]+):scrypt:(1[4-6]):8:1:([A-Za-z0-9+/]{22}==):([A-Za-z0-9+/]{43}=)")
_COST, _SALT_BYTES, _HASH_BYTES = 14, 16, 32
_MEMORY_BYTES = 128 * 8 * (1 << 16) * 2  # what scrypt may use: twice the most that _LINE allows


class BadPasswords(ValueError):
    """The file is not one of logins and passwords; one line, with the number of the wrong one."""


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """What is kept of a password."""

    cost: int
    salt: bytes
    hash: bytes

    def matches(self, password: bytes) -> bool:
        """Whether this is the password; takes as long for a wrong one. Slow."""
        return hmac.compare_digest(_hashed(password, self.salt, self.cost), self.hash)


def nobody() -> Entry:
    """An entry that no password matches and that takes as long as any: for logins that are not there."""
    return Entry(_COST, os.urandom(_SALT_BYTES), os.urandom(_HASH_BYTES))


def is_login(text: str) -> bool:
    """Whether this can be a login."""
    return _LOGIN.fullmatch(text) is not None


def line(login: str, password: bytes) -> str:
    """The line of a login with this password. Raises ValueError with the cure. Slow."""
    if not is_login(login):
        raise ValueError(f'"{login}" is no login; write letters, digits, ".", "_" and "-", at most 64')
    if not 1 <= len(password) <= MAX_PASSWORD_BYTES:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes; write another one")
    salt = os.urandom(_SALT_BYTES)
    words = (b64encode(part).decode() for part in (salt, _hashed(password, salt, _COST)))
    return ":".join((login, "scrypt", str(_COST), "8", "1", *words))


def read(text: bytes) -> Mapping[str, Entry]:
    """The entries of a file by login. Raises BadPasswords."""
    found: dict[str, Entry] = {}
    for number, raw in enumerate(text.decode("ascii", "replace").splitlines(), 1):
        if not raw.strip() or raw.startswith("#"):
            continue
        match = _LINE.fullmatch(raw)
        if match is None or not is_login(match[1]):
            raise BadPasswords(f"line {number} is no entry; make entries with `zonegate passwd FILE USER`")
        if match[1] in found:
            raise BadPasswords(f'line {number} has the login "{match[1]}" again; remove one of the lines')
        try:
            found[match[1]] = Entry(int(match[2]), b64decode(match[3]), b64decode(match[4]))
        except binascii.Error:
            raise BadPasswords(f"line {number} is no base64; make it again with `zonegate passwd`") from None
    return found


def with_line(text: str, login: str, new: str) -> str:
    """The text of a file in which `login` has the line `new`, or none where that is empty."""
    kept = [one for one in text.splitlines() if one.partition(":")[0] != login]
    return "".join(f"{one}\n" for one in [*kept, *([new] if new else [])])


def _hashed(password: bytes, salt: bytes, cost: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=1 << cost, r=8, p=1, maxmem=_MEMORY_BYTES, dklen=_HASH_BYTES)
