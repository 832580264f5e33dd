"""Who may log in to a listener, and how often somebody may fail.

A login is somebody of the listener's password file, or of a certificate, or `anonymous`; the site's table of
people says whether that one may enter the zone, and its groups. It knows no connection. Passwords are
compared in a thread, two at a time; what was right is remembered under a key of this process, and no longer
than it lives.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network

from proxy import passwords
from proxy.addresses import inner
from proxy.config import Person, groups_in
from proxy.flow import IPAddress, Refusal
from proxy.gate import gate_refusal

TOO_MANY = "too-many-logins"
_AT_ONCE = 2
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Login:
    """Whose flows they are."""

    name: str
    groups: frozenset[str]


class Failures:
    """Failed logins by address: `BURST` at once, then one each `EVERY_S`. The memory is bounded; of IPv6 a
    /64 counts as one address, for it belongs to one host. `clock` counts seconds."""

    BURST, EVERY_S, MOST = 10, 6.0, 4096

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def may_try(self, address: IPAddress) -> bool:
        """Whether one more attempt may be made; it counts as failed until `succeeded`."""
        spent = self._now(key := _host(address))
        if spent + 1 > self.BURST:
            return False
        self._keep(key, spent + 1)
        return True

    def succeeded(self, address: IPAddress) -> None:
        """The attempt was none of somebody who guesses."""
        key = _host(address)
        self._keep(key, max(0.0, self._now(key) - 1))

    def _now(self, key: object) -> float:
        spent, since = self._spent.get(key, (0.0, 0.0))
        return max(0.0, spent - (self._clock() - since) / self.EVERY_S)

    def _keep(self, key: object, spent: float) -> None:
        self._spent.pop(key, None)
        if spent:
            self._spent[key] = (spent, self._clock())
            if len(self._spent) > self.MOST:
                self._spent.popitem(last=False)


def _host(address: IPAddress) -> object:
    meant = inner(address)
    return ip_network((meant, 64), strict=False) if isinstance(meant, IPv6Address) else meant


class Logins:
    """The logins of one listener of a zone. Raises BadPasswords for a wrong file."""

    def __init__(self, zone: str, contents: bytes, failures: Failures) -> None:
        self._zone, self._failures = zone, failures
        shown = json.loads(contents)
        self._people = tuple(
            Person(who, tuple(zones), tuple(groups)) for who, zones, groups in shown["people"]
        )
        self._entries: Mapping[str, passwords.Entry] = passwords.read(shown["passwords"].encode())
        self._nobody = passwords.nobody()
        self._key = os.urandom(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._checking: dict[bytes, asyncio.Task[bool]] = {}
        self._threads = asyncio.Semaphore(_AT_ONCE)

    def known(self, name: str) -> Login | Refusal:
        """Somebody whose name is proved: the rights that the site's people give."""
        groups = groups_in(self._people, self._zone, {"*", *([name] if passwords.is_login(name) else [])})
        if groups is None:
            shown = name if passwords.is_login(name) else "this login"
            return gate_refusal(
                "not-admitted",
                f"{shown} may not enter zone {self._zone}",
                "ask for a row under people in the site file",
            )
        return Login(name, frozenset(groups))

    async def check(self, address: IPAddress, name: str, password: bytes) -> Login | Refusal:
        """Somebody who shows a password, from this address."""
        digest = hashlib.blake2b(name.encode() + b"\0" + password, key=self._key).digest()
        # Many connections of one program show the same at once: it is compared, and counted, once for all.
        joins = digest in self._checking
        if not joins and not self._failures.may_try(address):
            return gate_refusal(TOO_MANY, "too many logins have failed from this address", "wait a minute")
        if not await self._is_right(digest, name, password):
            return gate_refusal(
                "login", "the login or the password is wrong", "correct them in the program's settings"
            )
        if not joins:
            self._failures.succeeded(address)
        return self.known(name)

    async def _is_right(self, digest: bytes, name: str, password: bytes) -> bool:
        if digest in self._right:
            self._right.move_to_end(digest)
            return True
        task = self._checking.get(digest)
        if task is None:
            task = self._checking[digest] = asyncio.ensure_future(self._compare(name, password))
            task.add_done_callback(lambda _: self._checking.pop(digest, None))
        if not await asyncio.shield(task):
            return False
        self._right[digest] = None
        if len(self._right) > _REMEMBERED:
            self._right.popitem(last=False)
        return True

    async def _compare(self, name: str, password: bytes) -> bool:
        """An unknown login takes as long as a known one."""
        async with self._threads:
            entry = self._entries.get(name)
            matches = await asyncio.to_thread((entry or self._nobody).matches, password)
            return matches and entry is not None
