"""What a daemon says of itself: the answers to `status` and `explain`, as JSON. Reads, changes nothing."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from typing import Any, Protocol

from proxy.admin import Peer
from proxy.crew import Bubble, Worker
from proxy.flow import TunnelState
from proxy.site import Loaded
from proxy.tunnels.keeper import Keeper


class Daemon(Protocol):
    """What is read of a supervisor."""

    loaded: Loaded
    structural: bool
    since: datetime
    keepers: dict[str, Keeper]
    workers: dict[tuple[str, int], Worker]
    bubbles: dict[str, tuple[Bubble, Peer]]


def answer_question(daemon: Daemon, what: str, parameters: str, uid: int) -> str:
    """The JSON text that answers a command."""
    match what:
        case "status":
            return json.dumps(status(daemon, uid))
        case _:
            return json.dumps({"error": f'"{what}" is not a question that this daemon knows'})


def status(daemon: Daemon, uid: int) -> dict[str, Any]:
    """The state of everything; of bubbles and workers only the asking user's, unless the daemon's own."""
    everything = uid == os.geteuid()
    workers = [
        _worker(zone, owner, worker)
        for (zone, owner), worker in sorted(daemon.workers.items())
        if everything or owner == uid
    ]
    return {
        "enforcement": "structural" if daemon.structural else "cooperative",
        "since": daemon.since.isoformat(timespec="seconds"),
        "site": str(daemon.loaded.site.file),
        "policy": {"name": daemon.loaded.policy.name, "hash": daemon.loaded.policy.hash},
        "zones": {
            name: {"tunnels": list(zone.tunnels), "recorded": not zone.counted_only}
            for name, zone in daemon.loaded.site.zones.items()
        },
        "tunnels": {name: _tunnel(daemon, name) for name in daemon.keepers},
        "workers": workers,
        "bubbles": [
            {
                "id": bubble.id,
                "zone": bubble.zone,
                "user": bubble.user,
                "pid": bubble.pid,
                "enforcement": bubble.enforcement,
            }
            for bubble, _ in daemon.bubbles.values()
            if everything or bubble.uid == uid
        ],
        "trouble": [worker["audit_trouble"] for worker in workers if worker["audit_trouble"]],
    }


def _tunnel(daemon: Daemon, name: str) -> dict[str, Any]:
    keeper = daemon.keepers[name]
    now, age = keeper.now, None
    if now.proof_at_ns:
        age = round((time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now.proof_at_ns) / 1e9, 2)
    return {
        "kind": "mtls",
        "gateway": f"{keeper.setup.host}:{keeper.setup.port}",
        "state": now.state.value,
        "attested": now.state is TunnelState.ATTESTED,
        "words": now.words,
        "peer": now.peer,
        "proof_age_s": age,
    }


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
        "audit_trouble": report.audit_trouble,
    }
