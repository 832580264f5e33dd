"""What a person orders of a tunnel: to be held down, and to come up again. The daemon's own user may."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from proxy import sandbox
from proxy.audit import rfc3339
from proxy.config import Site
from proxy.directory import User
from proxy.held import Held
from proxy.orders import OrderRefused, is_owner
from proxy.policy.reading import did_you_mean
from proxy.tunnels.keeper import Keeper
from proxy.wireguard_config import WireguardTunnel

ORDERS = ("tunnel-down", "tunnel-up")
OTHERS_MAY_NOT = "only the user who runs the daemon may take a tunnel down or up"


class Daemon(Protocol):
    """What orders need of a supervisor."""

    keepers: dict[str, Keeper]
    held: Held


def lacking(site: Site) -> list[str]:
    """What this machine lacks for the site's tunnels, a line each with its cure."""
    packets = any(isinstance(tunnel, WireguardTunnel) for tunnel in site.tunnels.values())
    return sandbox.missing_for_wireguard() if packets else []


async def carry_out(daemon: Daemon, what: str, parameters: Mapping[str, Any], user: User) -> dict[str, Any]:
    """Do what a user orders; what there is to say of it. Raises OrderRefused."""
    if not is_owner(user):
        raise OrderRefused(OTHERS_MAY_NOT)
    name = parameters.get("tunnel")
    if not isinstance(name, str) or name not in daemon.keepers:
        cure = did_you_mean(str(name), daemon.keepers) or f"; there are {', '.join(daemon.keepers)}"
        raise OrderRefused(f'"{str(name)[:40]}" is not a tunnel of this site{cure}')
    keeper, trouble = daemon.keepers[name], ""
    words = f"held down by {user.login} at {rfc3339(datetime.now(UTC))}; zonegate tunnel up {name}"
    if what == "tunnel-down":
        daemon.held.down(name, words)
        keeper.hold_down(words)
    try:
        async with daemon.held.changing:
            if what == "tunnel-down":
                if daemon.held.over(name) != words:  # an order before this one has let it go meanwhile
                    daemon.held.down(name, words)
                    keeper.hold_down(words)
                await asyncio.to_thread(daemon.held.save)
            else:
                others = tuple(other for other in daemon.keepers if other != name)
                await asyncio.to_thread(daemon.held.up, name, others)
                keeper.let_go()
    except OSError as error:
        trouble = f"it does not outlive the daemon: {error.strerror or error}"
        if what == "tunnel-up":
            trouble = f"it stays held down: {error.strerror or error}"
    return {"tunnel": name, "held": daemon.held.over(name), "trouble": trouble}
