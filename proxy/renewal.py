"""New certificates of tunnels, taken into use while everything goes on.

It looks at a tunnel's files. What is half written, does not fit together or is not valid changes nothing;
what does is proved at the gateway by the keeper before it counts. It says what it did and what will expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from proxy import expiry
from proxy.config import AnyTunnel, Tunnel
from proxy.site import SiteError, TunnelFiles, TunnelKeys, client_problems, tunnel_files
from proxy.stamps import Stamps, look
from proxy.tunnels.keeper import Keeper

LOOK_S = 1.0
AGAIN_S = 10.0
REMIND_S = 24 * 3600.0


class Renewal:
    """The files of one tunnel as they were when they were looked at last."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._paths = (tunnel.ca, tunnel.certificate, tunnel.key)
        self._stamps: Stamps | None = None
        self._found: TunnelFiles | None = None
        self.trouble = ""
        """What is wrong with the files as they are now, "" where nothing is."""

    def wanted(self, in_use: TunnelKeys, now: datetime) -> TunnelFiles | None:
        """The files as they are, if they differ from those in use and are whole, fitting and valid."""
        stamps = look(self._paths)
        if stamps != self._stamps:
            found, trouble = self._read(now)
            if stamps != look(self._paths):
                return None  # they are being written: the next look sees more
            self._stamps, self._found, self.trouble = stamps, found, trouble
        if self._found is None or _same(self._found, in_use):
            return None
        return self._found

    def _read(self, now: datetime) -> tuple[TunnelFiles | None, str]:
        try:
            files = tunnel_files(self._tunnel)
            problems = client_problems(self._tunnel, files, now)
        except SiteError as error:
            return None, str(error)
        except Exception as error:  # whatever somebody writes there, the daemon goes on with what it has
            return None, f"{self._tunnel.certificate}: it cannot be read: {error!r:.200}"
        return (None, problems[0]) if problems else (files, "")


async def follow(
    tunnel: AnyTunnel, keeper: Keeper, renewed: Callable[[Keeper], None], say: Callable[[str], None]
) -> None:
    """Keep a tunnel's certificate as its files are, for ever; `renewed` is called when another is in use."""
    if not isinstance(tunnel, Tunnel):
        return
    renewal, loop = Renewal(tunnel), asyncio.get_running_loop()
    said = ""
    remind_at = try_at = 0.0
    tried: TunnelFiles | None = None
    while True:
        if loop.time() >= remind_at:
            remind_at = loop.time() + REMIND_S
            for line in expiry.warnings(tunnel.name, keeper.certificate, keeper.shown, datetime.now(UTC)):
                say(line)
        await asyncio.sleep(LOOK_S)
        files = renewal.wanted(keeper.files, datetime.now(UTC))
        trouble = renewal.trouble
        if files is not None and (files is not tried or loop.time() >= try_at):
            tried, trouble = files, await keeper.renew(files)
            try_at = loop.time() + AGAIN_S
            if not trouble:
                renewed(keeper)
                say(f"tunnel {tunnel.name} has its new certificate in use")
        elif files is not None:
            trouble = said
        if trouble and trouble != said:
            say(f"tunnel {tunnel.name} keeps the certificate that it has: {trouble}")
        said = trouble


def ahead(files: Mapping[str, TunnelKeys]) -> list[str]:
    """What will expire of the certificates of tunnels, said 30 days ahead."""
    now = datetime.now(UTC)
    certificates = [(name, keys.certificate) for name, keys in files.items() if isinstance(keys, TunnelFiles)]
    return [
        line for name, certificate in certificates for line in expiry.warnings(name, certificate, "", now)
    ]


def _same(one: TunnelKeys, other: TunnelKeys) -> bool:
    return one.contents() == other.contents()
