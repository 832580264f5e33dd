"""`zonegate systemd`: units with which systemd starts, reloads and restarts the daemon."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from proxy import units
from proxy.cli.errors import fail
from proxy.config import Tunnel
from proxy.paths import Places, site_file
from proxy.site import SiteError, load_site

SYSTEM = Path("/etc/systemd/system")


@click.group("systemd", short_help="units with which systemd runs the daemon")
def command() -> None:
    """Print or install a hardened unit: for the machine, or with --user for you alone.

    \b
    zonegate systemd show
    sudo zonegate systemd install -c /etc/zonegate/zonegate.yaml
    zonegate systemd install --user
    """


_config = click.option("-c", "--config", type=click.Path(path_type=Path), help="The site file.")
_user = click.option("--user", is_flag=True, help="For you alone, without root.")


@command.command("show")
@_config
@_user
def show(config: Path | None, user: bool) -> None:
    """Print the unit.

    \b
    zonegate systemd show
    """
    click.echo(_unit(config, user=user), nl=False)


@command.command("install")
@_config
@_user
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Where units lie.  [default: systemd's own]"
)
def install(config: Path | None, user: bool, directory: Path | None) -> None:
    """Write the unit and say what to type next. Nothing is started.

    The unit is what the site's tunnels need: write it again when it gets the first one with a device.
    `systemctl reload zonegate` is `zonegate reload`; a restart cuts flows and keeps programs.

    \b
    sudo zonegate systemd install -c /etc/zonegate/zonegate.yaml
    zonegate systemd install --user
    """
    text = _unit(config, user=user)
    place = directory or (_users_own() if user else SYSTEM)
    draft = place / f".{units.NAME}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(place / units.NAME)
    except OSError as error:
        cure = (
            "as root, or with --user for you alone" if isinstance(error, PermissionError) else error.strerror
        )
        fail(f"{place}: the unit cannot be written there: {cure}")
    systemctl = "systemctl --user" if user else "systemctl"
    click.echo(
        f"wrote {place / units.NAME}; now: {systemctl} daemon-reload && {systemctl} enable --now zonegate"
    )


def _unit(config: Path | None, *, user: bool) -> str:
    uid = os.getuid() if user else 0
    if user and uid == 0:
        fail("root's daemon is the machine's; leave out --user")
    site = site_file(config, uid, os.environ).absolute()
    places, devices = Places.of(None, None, os.environ, uid), False
    if site.exists():
        try:
            found = load_site(site).site
        except SiteError as error:
            fail(str(error))
        places = Places.of(found.run, found.state, os.environ, uid)
        devices = not all(isinstance(tunnel, Tunnel) for tunnel in found.tunnels.values())
    try:
        return units.unit(_zonegate(), site, places, user=user, devices=devices)
    except units.UnitError as error:
        fail(str(error))


def _zonegate() -> Path:
    """The program that was called."""
    called = Path(sys.argv[0])
    found = called if called.name == "zonegate" and called.exists() else shutil.which("zonegate")
    if not found:
        fail("this was not called as a program named zonegate, and none is on the path")
    return Path(found).absolute()


def _users_own() -> Path:
    settings = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (settings if settings.is_absolute() else Path.home() / ".config") / "systemd/user"
