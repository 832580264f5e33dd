"""What a daemon says of itself: the answers to `status` and `explain`, as JSON. Reads, changes nothing."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from proxy import expiry, listeners, quota_service
from proxy.admin import Peer
from proxy.crew import Worker
from proxy.directory import User
from proxy.flow import Because, Origin, TunnelState, Verdict
from proxy.locks import EVERYBODY, Locks
from proxy.paths import Places
from proxy.policy.facts import make_situation
from proxy.policy.telling import because_value, decision_value, tell_decision
from proxy.posts import Bubble
from proxy.quotas import Ledger
from proxy.reloading import Reloads
from proxy.remains import Remaining
from proxy.site import Loaded
from proxy.tunnels.keeper import Keeper

# What `explain` takes from the daemon and the kernel, and never from the asker.
_KNOWN_HERE = frozenset({"zone", "user", "group", "tunnel", "tunnels"})


class Daemon(Protocol):
    """What is read of a supervisor."""

    loaded: Loaded
    structural: bool
    since: datetime
    keepers: dict[str, Keeper]
    workers: dict[tuple[str, int], Worker]
    bubbles: dict[str, tuple[Bubble, Peer]]
    quotas: Ledger
    waiting: dict[str, Remaining]
    locks: Locks
    reloads: Reloads
    places: Places


def answer_question(daemon: Daemon, what: str, parameters: str, user: User) -> str:
    """The JSON text that answers a command of a user."""
    match what:
        case "status":
            return json.dumps(status(daemon, user))
        case "explain":
            return json.dumps(explain(daemon, parameters, user))
        case _:
            return json.dumps({"error": f'"{what}" is not a question that this daemon knows'})


def status(daemon: Daemon, user: User) -> dict[str, Any]:
    """The state of everything; of bubbles and workers only the asking user's, unless the daemon's own."""
    return _of_everybody(daemon) | _of_user(daemon, user)


def _of_everybody(daemon: Daemon) -> dict[str, Any]:
    return {
        "enforcement": "structural" if daemon.structural else "cooperative",
        "since": daemon.since.isoformat(timespec="seconds"),
        "site": str(daemon.loaded.site.file),
        "state": str(daemon.places.state),
        "policy": {"name": daemon.loaded.policy.name, "hash": daemon.loaded.policy.hash},
        "reload": _reload(daemon.reloads),
        "zones": {
            name: {"tunnels": list(zone.tunnels), "recorded": not zone.counted_only}
            for name, zone in daemon.loaded.site.zones.items()
        },
        "tunnels": {name: _tunnel(daemon, name) for name in daemon.keepers},
        "listeners": listeners.status(daemon.loaded.site.listeners),
        "warnings": [
            line
            for name, keeper in daemon.keepers.items()
            for line in expiry.warnings(name, keeper.certificate, keeper.shown, datetime.now(UTC))
        ],
    }


def _of_user(daemon: Daemon, user: User) -> dict[str, Any]:
    uid = user.uid
    everything = uid == os.geteuid()
    workers = [
        _worker(zone, owner, worker)
        for (zone, owner), worker in sorted(daemon.workers.items())
        if everything or owner == uid
    ]
    login = None if everything else user.login
    return {
        "locks": [
            asdict(lock) | {"words": lock.words}
            for lock in daemon.locks.in_force
            if everything or lock.uid in (EVERYBODY, uid)
        ],
        "workers": workers,
        "bubbles": [
            _bubble(bubble) for bubble, _ in daemon.bubbles.values() if everything or bubble.uid == uid
        ],
        "waiting": [
            {"id": one.bubble, "pid": one.pid}
            for one in daemon.waiting.values()
            if one.is_there and (everything or one.bubble.startswith(f"{uid}-"))
        ],
        "quotas": quota_service.status(daemon.quotas, daemon.loaded.policy, login),
        "trouble": [
            process["audit_trouble"]
            for worker in workers
            for process in (worker, worker["inspector"])
            if process and process["audit_trouble"]
        ],
    }


def _bubble(bubble: Bubble) -> dict[str, Any]:
    return {
        "id": bubble.id,
        "zone": bubble.zone,
        "user": bubble.user,
        "pid": bubble.pid,
        "enforcement": bubble.enforcement,
        "attached": bubble.attached,
    }


def explain(daemon: Daemon, parameters: str, user: User) -> dict[str, Any]:
    """What becomes of a flow of this user now: the policy in force, and what is proved of each tunnel.

    `parameters` are facts as `make_situation` takes them; zone, user, groups and tunnels are not the
    asker's to say.
    """
    site, policy = daemon.loaded.site, daemon.loaded.policy
    try:
        given = json.loads(parameters)
        facts = {str(key): tuple(map(str, values)) for key, values in given.items() if key not in _KNOWN_HERE}
        allowed = [(zone, site.may_enter(zone, user.uid, user.login, user.groups)) for zone in site.zones]
        may = {zone: groups for zone, groups in allowed if groups is not None}
        entered = [(zone, may[zone]) for zone in given.get("zone", may) if zone in may]
        if len(entered) != 1:
            return {"error": f"name one zone with --zone; {user.login} may enter {', '.join(may) or 'none'}"}
        zone, groups = entered[0]
        locked = daemon.locks.over(zone, user.uid)
        tunnels = tuple(
            f"{name}={TunnelState.DOWN if locked else daemon.keepers[name].now.state}"
            for name in site.zones[zone].tunnels
        )
        own = {"zone": (zone,), "user": (user.login,), "tunnels": tunnels}
        if known := tuple(group for group in groups if group in policy.model.groups):
            own["group"] = known
        situation = make_situation(policy.model, {**facts, **own})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return {"error": str(error)}
    flow = situation.flow if "time" in facts else replace(situation.flow, at=datetime.now(UTC))
    decision = policy.decide(flow, situation.candidates, trace=True)
    lines = list(tell_decision(policy, flow, decision, situation.candidates))
    value = decision_value(flow, decision)
    if locked:
        because = Because(Origin.GATE, "locked", locked)
        lines = [lines[0], f"verdict  {Verdict.BLOCK.name.lower()}", f"because  {because}"]
        value |= {"verdict": Verdict.BLOCK.name.lower(), "because": because_value(because)}
    elif value["carrier"] == "inspection" and not site.zones[zone].inspects:
        lines.append(f"now      zone {zone} inspects nothing, so it is refused; see inspect in the site file")
    live = {name: _tunnel(daemon, name) for name in site.zones[zone].tunnels}
    lines += [f"now      tunnel {name} is {one['state']}: {one['words']}" for name, one in live.items()]
    return {"lines": lines, "decision": {**value, "locked": locked, "live": live}}


def _reload(reloads: Reloads) -> dict[str, Any]:
    failed = reloads.failed
    return {
        "loaded_at": reloads.loaded_at,
        "failed": {"at": failed[0], "words": failed[1]} if failed else None,
    }


def _tunnel(daemon: Daemon, name: str) -> dict[str, Any]:
    keeper = daemon.keepers[name]
    now, age = keeper.now, None
    if now.proof_at_ns:
        age = round((time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now.proof_at_ns) / 1e9, 2)
    return {
        "kind": keeper.setup.kind,
        "gateway": keeper.setup.endpoint,
        "state": now.state.value,
        "attested": now.state is TunnelState.ATTESTED,
        "words": now.words,
        "packets": None if keeper.setup.packets is None else asdict(keeper.setup.packets),
        "zones": [zone.name for zone in daemon.loaded.site.zones.values() if name in zone.tunnels],
        "peer": now.peer,
        "proof_age_s": age,
        "certificate": _expiry(expiry.of_pem(keeper.certificate)),
        "gateway_certificate": _expiry(expiry.of_base64(keeper.shown)),
    }


def _expiry(found: expiry.Expiry | None) -> dict[str, Any] | None:
    if found is None:
        return None
    now = datetime.now(UTC)
    return {
        "name": found.name,
        "until": found.until.isoformat(),
        "days_left": found.days_left(now),
        "expires_soon": found.is_soon(now),
    }


def _one_line(text: str) -> str:
    """A worker's words, which go to somebody's terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:300])


def _worker(zone: str, uid: int, worker: Worker) -> dict[str, Any]:
    report = worker.report
    return {
        "zone": zone,
        "user": worker.post.user,
        "uid": uid,
        "pid": worker.pid,
        "enforcement": worker.enforcement,
        "open_flows": report.open_flows,
        "admitted": report.admitted,
        "refused": report.refused,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "audit_trouble": _one_line(report.audit_trouble),
        "inspector": _inspector(worker.inspector),
    }


def _inspector(inspector: Worker | None) -> dict[str, Any] | None:
    """The inspector beside a worker, which counts requests."""
    if inspector is None:
        return None
    report = inspector.report
    return {
        "pid": inspector.pid,
        "open": report.open_flows,
        "admitted": report.admitted,
        "refused": report.refused,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "audit_trouble": _one_line(report.audit_trouble),
    }
