"""The systemd units that ship, filled in for one machine. Reads templates of the package, writes nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from proxy.paths import Places

_TEMPLATES = Path(__file__).parent / "systemd"
_PLAIN = re.compile(r"/[A-Za-z0-9/._@+-]+")  # what means itself in a unit
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
NAME, GATEWAY = "zonegate.service", "zonegate-gateway.service"


class UnitError(Exception):
    """No unit can be written; one line with the cure."""


def unit(zonegate: Path, site: Path, places: Places, *, user: bool, devices: bool) -> str:
    """The unit's text; with `devices`, of a daemon whose tunnels are network devices. Raises UnitError."""
    _check(zonegate, site, places.run, places.state)
    values = {
        "ZONEGATE": str(zonegate),
        "SITE": str(site),
        "PLACES": f"-{places.run} -{places.state}",
        "MORE": " CAP_NET_ADMIN" if devices else "",
        "DEVICES": "DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw" if devices else "PrivateDevices=yes",
        "HOME": _homes(zonegate, site),
    }
    return filled((_TEMPLATES / ("zonegate.user.service" if user else NAME)).read_text(), values)


def gateway_unit(zonegate: Path, config: Path, log: Path, user: str) -> str:
    """The text of a gateway's unit; `user` is who its key belongs to. Raises UnitError."""
    _check(zonegate, config, log)
    values = {
        "ZONEGATE": str(zonegate),
        "CONFIG": str(config),
        "LOGS": str(log.parent),
        "USER": user,
        "HOME": _homes(zonegate, config, log),
    }
    return filled((_TEMPLATES / GATEWAY).read_text(), values)


def _check(*paths: Path) -> None:
    for path in paths:
        if not _PLAIN.fullmatch(str(path)):
            raise UnitError(f'"{path}" cannot stand in a unit; use a path of letters, digits and . _ - + @')


def _homes(*paths: Path) -> str:
    """What of people's homes is to be seen: nothing, unless something that is needed lies there."""
    needed = (*paths, Path(sys.prefix), Path(sys.base_prefix))
    return "read-only" if any(path.is_relative_to(home) for path in needed for home in _HOMES) else "yes"


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its @WORDS@ replaced; one that has no value is an error."""
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], template)
