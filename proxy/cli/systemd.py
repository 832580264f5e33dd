"""`zonegate systemd`: units with which systemd starts, reloads and restarts the daemon."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path

import click

from proxy import units
from proxy.cli.errors import fail
from proxy.config import Tunnel
from proxy.gateway.service import load
from proxy.paths import Places, site_file
from proxy.policy import Problems
from proxy.site import SiteError, load_site

SYSTEM = Path("/etc/systemd/system")


@click.group("systemd", short_help="units with which systemd runs the daemon")
def command() -> None:
    """Print or install a hardened unit: for the machine, or with --user for you alone.

    \b
    zonegate systemd show
    sudo zonegate systemd install -c /etc/zonegate/zonegate.yaml
    zonegate systemd install --user
    sudo zonegate systemd install --gateway -c /etc/zonegate/gateway.yaml
    """


_config = click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="The site file, or the gateway's configuration."
)
_user = click.option("--user", is_flag=True, help="For you alone, without root.")
_gateway = click.option("--gateway", is_flag=True, help="Of the corporate end; as who owns its key.")


@command.command("show", short_help="print the unit")
@_config
@_user
@_gateway
def show(config: Path | None, user: bool, gateway: bool) -> None:
    """Print the unit.

    \b
    zonegate systemd show
    """
    click.echo(_text(config, user=user, gateway=gateway), nl=False)


@command.command("install", short_help="write it, and say what to type next")
@_config
@_user
@_gateway
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Where units lie.  [default: systemd's own]"
)
def install(config: Path | None, user: bool, gateway: bool, directory: Path | None) -> None:
    """Write the unit and say what to type next. Nothing is started.

    The unit is what the site's tunnels need: write it again when it gets the first one with a device.
    `systemctl reload zonegate` is `zonegate reload`; a restart cuts flows and keeps programs.

    \b
    sudo zonegate systemd install -c /etc/zonegate/zonegate.yaml
    zonegate systemd install --user
    """
    text = _text(config, user=user, gateway=gateway)
    place = directory or (_users_own() if user else SYSTEM)
    name = units.GATEWAY if gateway else units.NAME
    draft = place / f".{name}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(place / name)
    except OSError as error:
        cure = (
            "as root, or with --user for you alone" if isinstance(error, PermissionError) else error.strerror
        )
        fail(f"{place}: the unit cannot be written there: {cure}")
    systemctl = "systemctl --user" if user else "systemctl"
    click.echo(
        f"wrote {place / name}; now: {systemctl} daemon-reload && {systemctl} enable --now {Path(name).stem}"
    )


def _text(config: Path | None, *, user: bool, gateway: bool) -> str:
    if not gateway:
        return _unit(config, user=user)
    if user:
        fail("a gateway's unit is the machine's; leave out --user")
    file = (config or Path("/etc/zonegate/gateway.yaml")).absolute()
    try:
        found = load(file)
    except Problems as problems:
        fail(str(problems))
    try:
        owner = pwd.getpwuid(found.key.path.stat().st_uid).pw_name
        return units.gateway_unit(_zonegate(), file, found.log.path.absolute(), owner)
    except (OSError, KeyError) as error:
        fail(f"{found.key.path}: the gateway is to run as who owns its key: {error}")
    except units.UnitError as error:
        fail(str(error))


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
