"""What a person orders of a daemon, and may: flows told and killed, zones locked and opened again.

Whoever runs the daemon may order everything; everybody else what concerns their own flows. Decides who may
what and carries it out on workers; the policy has no part in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from proxy.addresses import parse_host
from proxy.answers import NoAnswer
from proxy.crew import Worker
from proxy.directory import Directory, DirectorySilent, User
from proxy.locks import EVERY_ZONE, EVERYBODY, MAX_REASON, Lock, Locks
from proxy.messages.worker import FlowRow
from proxy.policy.reading import did_you_mean
from proxy.site import Loaded

FLOWS_OF_PAGE = 50
_MOST = 1 << 53  # every number of JSON that all readers agree on
_UID = re.compile(r"#([0-9]{1,10})")


class OrderRefused(Exception):
    """It was not done; one line or several, with the cure."""


class Daemon(Protocol):
    """What orders need of a supervisor."""

    loaded: Loaded
    workers: dict[tuple[str, int], Worker]
    locks: Locks
    directory: Directory

    def lease_again(self, worker: Worker) -> None:
        """Tell a worker what is proved of its tunnels now."""


async def carry_out(daemon: Daemon, what: str, parameters: Mapping[str, Any], user: User) -> dict[str, Any]:
    """Do what a user orders; what there is to say of it. Raises OrderRefused."""
    match what:
        case "kill":
            return await _kill(daemon, parameters, user)
        case "lock":
            return await _lock(daemon, parameters, user)
        case "unlock":
            return await _unlock(daemon, parameters, user)
        case _:
            raise OrderRefused(f'"{what}" is nothing that this daemon can do')


def is_owner(user: User) -> bool:
    """Whether this is who runs the daemon."""
    return user.uid == os.geteuid()


def parameters_of(text: str) -> dict[str, Any]:
    """The parameters of an order; OrderRefused if they are none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OrderRefused("the parameters are no JSON") from error
    if not isinstance(found, dict):
        raise OrderRefused("the parameters are no object")
    return found


def _text(parameters: Mapping[str, Any], name: str) -> str:
    value = parameters.get(name) or ""
    if not isinstance(value, str) or not value.isprintable():
        raise OrderRefused(f"{name} is no line of text")
    return value


# -- flows -------------------------------------------------------------------------------------------


async def flows(daemon: Daemon, parameters: Mapping[str, Any], user: User) -> dict[str, Any]:
    """A page of the open flows that a user may see; `next` is what to ask for the following one with.

    Of a zone that is only counted, nobody but its user is told the destinations.
    """
    key, after = _cursor(parameters.get("after"))
    for (zone, uid), worker in sorted(_own(daemon, user)):
        if (zone, uid) < key:
            continue
        try:
            page = await worker.answers.flows(after if (zone, uid) == key else 0, FLOWS_OF_PAGE)
        except NoAnswer:
            continue  # it is ending, and its flows with it
        if not page.flows:
            continue
        settings = daemon.loaded.site.zones.get(zone)
        told = uid == user.uid or settings is None or not settings.counted_only
        rows = [_row(zone, flow, told=told) for flow in page.flows]
        following = [zone, uid, page.after] if page.after else [zone, uid + 1, 0]
        return {"flows": rows, "next": following}
    return {"flows": [], "next": None}


def _cursor(value: object) -> tuple[tuple[str, int], int]:
    match value:
        case None:
            return ("", -1), 0
        case [str() as zone, int() as uid, int() as after] if 0 <= after < _MOST:
            return (zone, uid), after
        case _:
            raise OrderRefused("there is no such page")


def _own(daemon: Daemon, user: User) -> list[tuple[tuple[str, int], Worker]]:
    """The workers whose flows a user may see and kill."""
    return [(key, worker) for key, worker in daemon.workers.items() if is_owner(user) or key[1] == user.uid]


def _row(zone: str, flow: FlowRow, *, told: bool) -> dict[str, Any]:
    """A worker's words go to somebody's terminal, and a worker may have been taken over."""
    return {
        "id": _plain(flow.id, 40),
        "zone": zone,
        "user": _one_line(flow.user, 64),
        "bubble": _plain(flow.bubble, 40),
        "destination": _plain(flow.destination, 270) if told else "not recorded",
        "protocol": _plain(flow.protocol, 16),
        "tunnel": _plain(flow.tunnel, 40),
        "age_s": flow.age_s,
        "bytes_up": flow.bytes_up,
        "bytes_down": flow.bytes_down,
        "because": _one_line(flow.because, 160) if told else "not recorded",
    }


def _plain(text: str, most: int) -> str:
    return _one_line(text, most).encode("ascii", "replace").decode()


def _one_line(text: str, most: int) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:most])


async def _kill(daemon: Daemon, parameters: Mapping[str, Any], user: User) -> dict[str, Any]:
    flow, name, to = (_text(parameters, key) for key in ("flow", "user", "to"))
    if not (flow or name or to):
        raise OrderRefused("name a flow, a user or a destination")
    host, port = _destination(to) if to else ("", 0)
    meant = await _of_user(daemon, name, user)
    because = f"killed by {user.login}"
    done = await asyncio.gather(
        *(one.answers.cut(because, flow=flow, host=host, port=port, user=login) for one, login in meant),
        return_exceptions=True,
    )
    workers = [worker for worker, _ in meant]
    return {"cut": sum(cut for cut in done if isinstance(cut, int)), "trouble": _troubles(workers, done)}


async def _of_user(daemon: Daemon, name: str, asker: User) -> list[tuple[Worker, str]]:
    """The workers that may have flows of a user, each with the login that is meant among its flows.

    Who logs in at a listener need not be a user of this machine, and shares a worker with others there.
    """
    if not name:
        return [(worker, "") for _, worker in _own(daemon, asker)]
    refused = None
    try:
        uid = await _uid_of(daemon, name, asker)
    except OrderRefused as error:
        uid, refused = None, error
    own = _own(daemon, asker)  # only now: workers may have come while the directory was asked
    shared = [(worker, name) for _, worker in own if worker.post.ears]
    if refused is not None and not shared:
        raise refused
    return [(worker, "") for key, worker in own if key[1] == uid] + shared


async def _uid_of(daemon: Daemon, name: str, user: User) -> int:
    if name == user.login:
        return user.uid
    if not is_owner(user):
        raise OrderRefused("only the user who runs the daemon may name other users")
    if number := _UID.fullmatch(name):
        return int(number[1])
    try:
        return await daemon.directory.uid_of(name)
    except DirectorySilent as error:
        raise OrderRefused(f'{error}; write "#uid" instead of a name') from error
    except KeyError as error:
        raise OrderRefused(
            f'there is no user "{name}" on this machine; write a login name or "#uid"'
        ) from error


def _destination(text: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `*.host`."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = text, "0"
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise OrderRefused(f'"{text}" has no port behind its colon; write host:port')
    star = "*." if host.startswith("*.") else ""
    try:
        return f"{star}{parse_host(host.removeprefix(star).strip('[]'))}", int(port)
    except ValueError as error:
        raise OrderRefused(str(error)) from error


def _troubles(workers: Iterable[Worker], done: Iterable[object]) -> list[str]:
    return [
        f"zone {worker.post.zone} of {worker.post.user}: {fault}"
        for worker, fault in zip(workers, done, strict=True)
        if isinstance(fault, BaseException)
    ]


# -- locks -------------------------------------------------------------------------------------------


async def _lock(daemon: Daemon, parameters: Mapping[str, Any], user: User) -> dict[str, Any]:
    """In force and every flow cut first, then kept, then answered."""
    zone, reason = _zone(daemon, parameters), _text(parameters, "reason")
    if len(reason) > MAX_REASON:
        raise OrderRefused(f"the reason has {len(reason)} characters; write at most {MAX_REASON}")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lock = Lock(zone, await _whom(daemon, parameters, user), user.login, user.uid, reason, now)
    async with daemon.locks.changing:
        daemon.locks.add(lock)
        cut, trouble = await _apply(daemon)
        try:
            await daemon.locks.save()
        except OSError as error:
            trouble.append(f"it is locked, but a restart would open it: {error.strerror or error}")
    return {"locked": asdict(lock), "cut": cut, "trouble": trouble}


async def _unlock(daemon: Daemon, parameters: Mapping[str, Any], user: User) -> dict[str, Any]:
    """Forgotten on disk first, then opened."""
    zone, uid = _zone(daemon, parameters, removed=True), await _whom(daemon, parameters, user)
    async with daemon.locks.changing:
        meant = [
            lock for lock in daemon.locks.in_force if zone in (EVERY_ZONE, lock.zone) and lock.uid == uid
        ]
        mine = [lock for lock in meant if is_owner(user) or lock.by_uid == user.uid]
        if not mine:
            raise OrderRefused(_why_not(daemon.locks, meant, zone, uid))
        try:
            await daemon.locks.remove(mine)
        except OSError as error:
            raise OrderRefused(f"it stays locked: {error.strerror or error}") from error
        _, trouble = await _apply(daemon)
    return {"unlocked": [asdict(lock) for lock in mine], "trouble": trouble}


def _why_not(locks: Locks, meant: Sequence[Lock], zone: str, uid: int) -> str:
    """Why a user can open nothing here."""
    if meant:
        return f"it was {meant[0].words}; who locked it can open it, and the user who runs the daemon"
    wider = next((lock for lock in locks.in_force if lock.covers(zone, uid)), None)
    if wider is not None and wider.zone == EVERY_ZONE != zone:
        return f"every zone was {wider.words}; leave out --zone"
    if wider is not None:
        return f"everybody was {wider.words}; leave out --user, or ask who runs the daemon"
    return "nothing of that is locked; see: zonegate status"


def _zone(daemon: Daemon, parameters: Mapping[str, Any], *, removed: bool = False) -> str:
    zone, known = _text(parameters, "zone"), list(daemon.loaded.site.zones)
    if removed:  # a zone may be gone from the site file and its lock still there
        known += [lock.zone for lock in daemon.locks.in_force]
    if zone and zone not in known:
        raise OrderRefused(
            f'there is no zone "{zone}" here{did_you_mean(zone, known) or "; see: zonegate status"}'
        )
    return zone


async def _whom(daemon: Daemon, parameters: Mapping[str, Any], user: User) -> int:
    """Everybody's, where who runs the daemon names nobody; everybody else has only themselves to lock."""
    name = _text(parameters, "user")
    if name:
        return await _uid_of(daemon, name, user)
    return EVERYBODY if is_owner(user) else user.uid


async def _apply(daemon: Daemon) -> tuple[int, list[str]]:
    """Have every worker hold to the locks in force. One that does not say so is ended: its successor will."""
    changed = [
        (worker, words)
        for (zone, uid), worker in daemon.workers.items()
        if worker.locked != (words := daemon.locks.over(zone, uid))
        and (words or worker.loaded is daemon.loaded)  # a reload has locked who is to go
    ]
    done = await asyncio.gather(*(_hold(daemon, *one) for one in changed), return_exceptions=True)
    for (worker, _), fault in zip(changed, done, strict=True):
        if isinstance(fault, BaseException):
            worker.retire()
    troubles = _troubles((worker for worker, _ in changed), done)
    return sum(cut for cut in done if isinstance(cut, int)), [f"{one}; it was ended" for one in troubles]


async def _hold(daemon: Daemon, worker: Worker, words: str) -> int:
    if words:
        return await worker.lock(words)
    await worker.unlock()
    daemon.lease_again(worker)
    return 0
