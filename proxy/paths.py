"""Where things lie: the daemon's socket and state, a user's homes inside zones.

Root's daemon serves the machine and lies in the system's places; an ordinary user's serves that user
and lies in that user's. Reads the environment, opens nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_RUN, SYSTEM_STATE = Path("/run/zonegate"), Path("/var/lib/zonegate")
SOCKET = "admin.sock"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a daemon keeps its socket and what outlives it."""

    run: Path
    state: Path

    @classmethod
    def of(
        cls, run: Path | None, state: Path | None, environment: Mapping[str, str], uid: int | None = None
    ) -> Places:
        """The places that its site names, or those of this user, or of another one."""
        uid = os.geteuid() if uid is None else uid
        return cls(run or run_directory(uid, environment), state or state_directory(uid, environment))


def run_directory(uid: int, environment: Mapping[str, str]) -> Path:
    """Where a daemon of this user keeps its socket: gone at the next boot."""
    if uid == 0:
        return SYSTEM_RUN
    runtime = _named(environment, "XDG_RUNTIME_DIR")
    return runtime / "zonegate" if runtime else Path(f"/tmp/zonegate-{uid}")


def state_directory(uid: int, environment: Mapping[str, str]) -> Path:
    """Where a daemon of this user keeps what outlives it: names, audit."""
    if uid == 0:
        return SYSTEM_STATE
    return (_named(environment, "XDG_STATE_HOME") or _home(environment) / ".local/state") / "zonegate"


def zone_home(zone: str, environment: Mapping[str, str]) -> Path:
    """The home directory that this user's programs have in a zone; kept between bubbles.

    ValueError where `zone` is no name but leads elsewhere.
    """
    if zone in ("", ".", "..") or "/" in zone or "\0" in zone:
        raise ValueError(f'"{zone}" is no name of a zone')
    data = _named(environment, "XDG_DATA_HOME") or _home(environment) / ".local/share"
    return data / "zonegate" / "zones" / zone / "home"


def admin_sockets(uid: int, environment: Mapping[str, str]) -> list[Path]:
    """Where a command looks for its daemon: where it was told, or the user's own place, then the system's."""
    told = environment.get("ZONEGATE_SOCKET", "")
    if told:
        return [Path(told)]
    own = run_directory(uid, environment) / SOCKET
    system = SYSTEM_RUN / SOCKET
    return [own] if own == system else [own, system]


def site_file(told: Path | None, uid: int, environment: Mapping[str, str]) -> Path:
    """The site file: the one that was named, or this directory's, or the user's or the machine's own."""
    if told is not None:
        return told
    here = Path("zonegate.yaml")
    if here.exists():
        return here
    if uid == 0:
        return Path("/etc/zonegate/zonegate.yaml")
    settings = _named(environment, "XDG_CONFIG_HOME") or _home(environment) / ".config"
    return settings / "zonegate" / "zonegate.yaml"


def _named(environment: Mapping[str, str], variable: str) -> Path | None:
    """The directory of a variable; one that is relative is to be ignored (XDG base directories)."""
    path = Path(environment.get(variable, ""))
    return path if path.is_absolute() else None


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())
