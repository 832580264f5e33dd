"""A reload: site file, policy, certificates and keys are read again, and taken whole or not at all.

What was good last stays until everything that was read is good. Then each post's worker gets the new policy,
or, where it cannot swap what changed, a successor; a post that is not admitted any more ends. Decides which
of these, and tells what it did; how it is done is the supervisor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from proxy import listeners, notify, tunnel_orders
from proxy.answers import NoAnswer
from proxy.crew import Worker
from proxy.differences import Change, changed_tunnels, differences, not_reloadable
from proxy.directory import Directory, DirectorySilent
from proxy.listeners import Ear
from proxy.orders import OrderRefused
from proxy.posts import Post
from proxy.site import Loaded, SiteError, load_site

MAX_WORDS = 4000
SUCCESSOR_LIMIT_S, LOOK_S = 15.0, 0.02
NOTHING_CHANGED = "nothing was changed"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a post, and why: `kept`, a new `policy`, its worker `replaced`, or `dismissed`."""

    post: Post
    what: str
    why: str = ""
    groups: tuple[str, ...] = ()
    ears: tuple[Ear, ...] = ()


class Daemon(Protocol):
    """What a reload needs of a supervisor."""

    loaded: Loaded
    workers: dict[tuple[str, int], Worker]
    ears: tuple[Ear, ...]
    directory: Directory

    def posts(self) -> Sequence[Post]:
        """Every post."""

    def adopt(self, new: Loaded, changed_tunnels: set[str]) -> None:
        """Take another site; the tunnels that changed end, those that are new come up."""

    def man_listeners(self) -> None:
        """Have a post for the ears of each zone, where there is none."""

    async def dismiss_post(self, post: Post, why: str) -> list[str]:
        """End a post; the names of the bubbles that are told why."""


class Reloads:
    """The reloads of one daemon, one after the other. `failed` is when and why the last one was refused."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._one = asyncio.Lock()
        self.loaded_at = _now()
        self.failed: tuple[str, str] | None = None

    async def by_signal(self) -> None:
        """A reload that nobody waits for: what there is to say goes to the log."""
        try:
            found = await self.reload()
        except OrderRefused as error:
            for line in str(error).splitlines():
                notify.say(line)
        else:
            for line in found["lines"]:
                notify.say(line)

    async def reload(self, *, check: bool = False) -> dict[str, Any]:
        """What changed and whom it concerned; with `check`, what would. Raises OrderRefused."""
        async with self._one:
            if check:
                return await self._reload(check=True)
            notify.reloading()
            try:
                return await self._reload(check=False)
            finally:
                notify.ready()

    async def _reload(self, *, check: bool) -> dict[str, Any]:
        old, before = self._daemon.loaded, self._daemon.ears
        ears = before
        try:
            new = await asyncio.to_thread(load_site, old.site.file)
            if lacking := await asyncio.to_thread(tunnel_orders.lacking, new.site):
                raise SiteError("\n".join(lacking))
            if unlike := not_reloadable(old, new):
                cure = "start the daemon again: zonegate stop --keep-bubbles, then zonegate up"
                raise SiteError(f"{old.site.file}: {', '.join(unlike)} cannot change while it runs; {cure}")
            ears = await asyncio.to_thread(listeners.open_ears, new, before)
            fates = await self._fates(old, new, ears)
        except Exception as error:  # whatever is wrong with what was read, it is not taken
            listeners.close_all(ears, but=before)
            is_told = isinstance(error, SiteError | DirectorySilent)
            words = str(error)[:MAX_WORDS] if is_told else f"it failed: {error!r:.200}"
            if not check:
                self.failed = (_now(), words)
            raise OrderRefused(f"{words}\n{NOTHING_CHANGED}") from error
        changes = differences(old, new)
        if check:
            listeners.close_all(ears, but=before)
            return _told(changes, [_row(fate) for fate in fates], [], new)
        self.loaded_at, self.failed = _now(), None
        self._daemon.ears = ears
        self._daemon.adopt(new, changed_tunnels(old, new))
        listeners.close_all(before, but=ears)
        for fate in fates:
            worker = self._daemon.workers.get((fate.post.zone, fate.post.uid))
            if worker is not None and fate.what in ("kept", "policy"):
                _adopted(worker, new)
        rows = await asyncio.gather(*(self._carry_out(fate, new) for fate in fates))
        self._daemon.man_listeners()
        return _told(changes, [row for row, _ in rows], [told for _, told in rows if told], new)

    async def _fates(self, old: Loaded, new: Loaded, ears: Sequence[Ear]) -> list[Fate]:
        """Those of every post, also of one that comes while the others are judged."""
        fates: dict[Post, Fate] = {}
        while left := [post for post in self._daemon.posts() if post not in fates]:
            for post in left:
                mine = listeners.of_zone(ears, post.zone) if post.ears else ()
                fates[post] = await self._fate(post, old, new, mine)
        return list(fates.values())

    async def _fate(self, post: Post, old: Loaded, new: Loaded, ears: tuple[Ear, ...]) -> Fate:
        zone = new.site.zones.get(post.zone)
        if zone is None:
            return Fate(post, "dismissed", f'zone "{post.zone}" is not in {new.site.file} any more')
        if post.ears and not ears:
            return Fate(post, "dismissed", f"no listener of zone {post.zone} is left")
        groups: tuple[str, ...] | None = ()
        if not post.ears:  # whose people log in at the listener, each by himself
            user = await self._daemon.directory.user(post.uid)
            groups = new.site.may_enter(post.zone, post.uid, user.login, user.groups)
        if groups is None:
            return Fate(post, "dismissed", f'{post.user} may not enter zone "{post.zone}" any more')
        if zone != old.site.zones.get(post.zone):
            return Fate(post, "replaced", f"zone {post.zone} changed", groups, ears)
        if lost := sorted(changed_tunnels(old, new).intersection(zone.tunnels)):
            return Fate(post, "replaced", f"tunnel {', '.join(lost)} changed", groups, ears)
        if groups != post.groups:
            return Fate(post, "replaced", f"the groups of {post.user} changed", groups)
        if [ear.listener for ear in ears] != [ear.listener for ear in post.ears]:
            return Fate(post, "replaced", "its listeners changed", groups, ears)
        if ears != post.ears:
            return Fate(post, "replaced", "who may log in changed", groups, ears)
        if new.site.max_flows != old.site.max_flows:
            return Fate(post, "replaced", "the limit of flows changed", groups, ears)
        same = (old.policy.hash, old.site.policy) == (new.policy.hash, new.site.policy)
        return Fate(post, "kept" if same else "policy", "", groups)

    async def _carry_out(self, fate: Fate, new: Loaded) -> tuple[dict[str, Any], str]:
        """What became of a post, and what went wrong with it. Nothing that is wrong leaves it as it was."""
        post, row = fate.post, _row(fate)
        worker = self._daemon.workers.get((post.zone, post.uid))
        trouble = ""
        if worker is not None:
            try:
                row["cut"] = await self._tell(worker, fate, new)
            except Exception as error:  # whatever it is, it may hold to what is not in force any more
                words = str(error) if isinstance(error, NoAnswer) else f"it failed: {error!r:.200}"
                row["what"], trouble = "replaced", f"zone {post.zone} of {post.user}: {words}; it was ended"
                worker.retire()
        if fate.what == "dismissed":
            row["bubbles"] = await self._daemon.dismiss_post(post, fate.why)
        elif fate.what == "replaced":
            post.groups, post.ears = fate.groups, fate.ears
            if worker is not None:
                worker.retire()
                trouble = trouble or await self._succeeded(worker, post)
        return row, trouble

    async def _tell(self, worker: Worker, fate: Fate, new: Loaded) -> int:
        """Raises NoAnswer, and OSError where there is no descriptor left."""
        if fate.what == "kept":
            return 0
        if fate.what == "policy":
            return await worker.answers.replace_policy(new.policy_text, str(new.site.policy))
        return await worker.lock(f"the site was reloaded: {fate.why}")

    async def _succeeded(self, worker: Worker, post: Post) -> str:
        """Nothing once a successor is at the post; words when it is late."""
        for _ in range(int(SUCCESSOR_LIMIT_S / LOOK_S)):
            if self._daemon.workers.get((post.zone, post.uid)) not in (None, worker):
                return ""
            await asyncio.sleep(LOOK_S)
        return f"zone {post.zone} of {post.user}: its new worker is late; see: zonegate status"


def _adopted(worker: Worker, new: Loaded) -> None:
    """Have a worker go on with another site; one that cannot is ended, and its successor has it."""
    try:
        worker.reloaded(new)
    except Exception as error:
        notify.say(f"the worker of zone {worker.post.zone} is replaced: {error!r:.200}")
        worker.retire()


def _row(fate: Fate) -> dict[str, Any]:
    return {
        "zone": fate.post.zone,
        "user": fate.post.user,
        "what": fate.what,
        "why": fate.why,
        "cut": 0,
        "bubbles": [],
    }


def _told(
    changes: Sequence[Change], rows: Sequence[dict[str, Any]], trouble: Sequence[str], new: Loaded
) -> dict[str, Any]:
    return {
        "changes": [asdict(change) for change in changes],
        "workers": list(rows),
        "trouble": list(trouble),
        "policy": {"name": new.policy.name, "hash": new.policy.hash},
        "lines": list(_lines(changes, rows, trouble)),
    }


def _lines(
    changes: Sequence[Change], rows: Sequence[dict[str, Any]], trouble: Sequence[str]
) -> Sequence[str]:
    lines = [str(change) for change in changes] or ["no difference"]
    for row in rows:
        cut = f"{row['cut']} flow{'' if row['cut'] == 1 else 's'} cut"
        whose = f"zone {row['zone']} of {row['user']}"
        match row["what"]:
            case "policy":
                lines.append(f"{whose}: judged by the new policy; {cut}")
            case "replaced":
                lines.append(f"{whose}: every flow cut ({row['cut']}), a new worker; {row['why']}")
            case "dismissed":
                gone = f"{len(row['bubbles'])} bubble{'' if len(row['bubbles']) == 1 else 's'} refused"
                lines.append(f"{whose}: every flow cut ({row['cut']}), {gone}; {row['why']}")
    return [*lines, *trouble]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
