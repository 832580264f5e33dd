"""`zonegate cert`: the certificates of a site's tunnels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from proxy.authority import CA_DAYS, LEAF_DAYS, Authority, AuthorityError, Kind, Record, State
from proxy.cli.errors import fail

_COLOURS = {State.VALID: "green", State.SOON: "yellow", State.REPLACED: "bright_black"}
_SITE = click.option(
    "--site",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The directory that `zonegate init` made.  [default: this one]",
)
_DAYS = click.option(
    "--days",
    type=click.IntRange(1, CA_DAYS),
    default=LEAF_DAYS,
    show_default=True,
    help="How long it is valid.",
)


@click.group("cert", short_help="issue, renew, revoke and list tunnel certificates")
def command() -> None:
    """The certificates by which machines and gateways know each other.

    \b
    zonegate cert issue laptop-7               files for a machine, in laptop-7/
    zonegate cert issue gw2 --kind gateway --host gw2.corp.example
    zonegate cert list                         what there is, and until when
    zonegate cert renew laptop-7               taken into use without a restart
    zonegate cert revoke laptop-7              out within half a second
    zonegate cert crl > revoked.pem            the same for other gateways
    """


@command.command("issue", short_help="a certificate and key, in a folder")
@click.argument("name")
@click.option("--kind", type=click.Choice([str(kind) for kind in Kind]), default="client", show_default=True)
@click.option("--host", "hosts", multiple=True, help="A gateway's name or address; NAME if left out.")
@_DAYS
@_SITE
def issue(name: str, kind: str, hosts: tuple[str, ...], days: int, site: Path) -> None:
    """Issue a certificate with a key of its own, and put both into the folder NAME.

    \b
    zonegate cert issue laptop-7 --site corp
    zonegate cert issue gw2 --kind gateway --host gw2.corp.example
    """

    def do(now: datetime) -> None:
        made = Authority(site).issue(name, Kind(kind), now, hosts=hosts, days=days)
        click.echo(f"made {site / name}/: {name}.crt (until {made.until:%Y-%m-%d}), {name}.key, ca.crt")
        if made.kind is Kind.GATEWAY:
            click.echo(f"its pin, for the site files of machines: {made.pin}")
        else:
            click.echo(f"for the machine: move it there, and leave no {name}.key behind")

    _attempt(do)


@command.command("renew", short_help="a new certificate for the same key")
@click.argument("name")
@click.option(
    "--new-key", is_flag=True, help="With another key. A gateway's new pin must be listed beforehand."
)
@_DAYS
@_SITE
def renew(name: str, new_key: bool, days: int, site: Path) -> None:
    """Put a new certificate in the place of NAME's; its key stays, and so does a gateway's pin.

    Daemons and gateways take it into use by themselves once it lies where the old one did.

    \b
    zonegate cert renew laptop-7 --site corp
    """

    def do(now: datetime) -> None:
        made = Authority(site).renew(name, now, days=days, new_key=new_key)
        click.echo(f"renewed {site / name / name}.crt, until {made.until:%Y-%m-%d}")
        if new_key and made.kind is Kind.GATEWAY:
            click.echo(f"its pin is {made.pin}; machines that do not list it refuse this gateway")
        elif new_key:
            click.echo("the key before still counts; zonegate cert list has its serial number for revoke")

    _attempt(do)


@command.command("revoke", short_help="end a machine's certificates")
@click.argument("what", metavar="NAME|SERIAL")
@_SITE
def revoke(what: str, site: Path) -> None:
    """End a machine's certificates: all of NAME, or the one with a serial number.

    Every gateway's list in this directory gets a line for each; a running gateway reads it at once.

    \b
    zonegate cert revoke laptop-7 --site corp
    """

    def do(now: datetime) -> None:
        authority = Authority(site)
        for one in authority.revoke(what, now):
            click.echo(f"revoked {one.name}, {one.fingerprint}")
        for path in authority.lists():
            click.echo(f"in {path}; copy it to the gateway if that is elsewhere")

    _attempt(do)


@command.command("crl", short_help="what is revoked, for other gateways")
@_DAYS
@_SITE
def crl(days: int, site: Path) -> None:
    """Print what is revoked as a CRL (PEM), for a gateway that is not zonegate's.

    Such a gateway refuses everybody once the list is older than --days.

    \b
    zonegate cert crl --site corp > crl.pem
    """
    _attempt(lambda now: click.echo(Authority(site).revocation_list(now, days=days), nl=False))


@command.command("list", short_help="what was issued, and until when")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_SITE
def list_all(as_json: bool, site: Path) -> None:
    """List what was issued, the latest of each name first.

    Exit code 1 when something in use has expired or will within 30 days.

    \b
    zonegate cert list --site corp
    """

    def do(now: datetime) -> None:
        authority = Authority(site)
        records = authority.records(now)
        if as_json:
            click.echo(json.dumps([_as_value(one) for one in records], indent=2))
        else:
            click.echo(f"authority, until {authority.certificate().not_valid_after_utc:%Y-%m-%d}")
            _show(records, now)
        latest = {one.name: one.state for one in reversed(records)}
        if {State.SOON, State.EXPIRED} & set(latest.values()):
            sys.exit(1)

    _attempt(do)


def _show(records: list[Record], now: datetime) -> None:
    """A line for each; a serial number is there to be copied, and is never broken."""
    width = max([len("name"), *(len(one.name) for one in records)])
    click.secho(f"{'name':<{width}}  kind     state         until       days  serial", dim=True)
    for one in records:
        state = click.style(f"{one.state:<12}", fg=_COLOURS.get(one.state, "red"))
        days = max(0, (one.until - now).days)
        line = f"{one.until:%Y-%m-%d}  {days:>4}  {one.serial}"
        click.echo(f"{one.name:<{width}}  {one.kind:<7}  {state}  {line}")


def _as_value(one: Record) -> dict[str, Any]:
    return {
        "name": one.name,
        "kind": one.kind,
        "state": one.state,
        "until": one.until.isoformat(),
        "serial": one.serial,
        "fingerprint": one.fingerprint,
        "pin": one.pin,
    }


def _attempt(do: Callable[[datetime], None]) -> None:
    try:
        do(datetime.now(UTC))
    except AuthorityError as error:
        fail(str(error))
    except OSError as error:
        fail(f'"{error.filename}" cannot be written: {error.strerror}')
