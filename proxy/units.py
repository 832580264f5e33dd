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
NAME = "zonegate.service"


class UnitError(Exception):
    """No unit can be written; one line with the cure."""


def unit(zonegate: Path, site: Path, places: Places, *, user: bool, devices: bool) -> str:
    """The unit's text; with `devices`, of a daemon whose tunnels are network devices. Raises UnitError."""
    for path in (zonegate, site, places.run, places.state):
        if not _PLAIN.fullmatch(str(path)):
            raise UnitError(f'"{path}" cannot stand in a unit; use a path of letters, digits and . _ - + @')
    interpreter = (Path(sys.prefix), Path(sys.base_prefix))
    in_homes = any(path.is_relative_to(home) for path in (zonegate, site, *interpreter) for home in _HOMES)
    values = {
        "ZONEGATE": str(zonegate),
        "SITE": str(site),
        "PLACES": f"-{places.run} -{places.state}",
        "MORE": " CAP_NET_ADMIN" if devices else "",
        "DEVICES": "DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw" if devices else "PrivateDevices=yes",
        "HOME": "read-only" if in_homes else "yes",
    }
    return filled((_TEMPLATES / ("zonegate.user.service" if user else NAME)).read_text(), values)


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its @WORDS@ replaced; one that has no value is an error."""
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], template)
