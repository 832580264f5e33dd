"""`zonegate init`: a new site, from nothing to a working gate and gateway."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from proxy.cli.errors import fail
from proxy.new_site import DEVICE, GATEWAY, InitError, make_site, next_steps


@click.command("init", short_help="make the files of a new site")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    help="Where machines will reach the corporate end.  [default: on this machine, to try it]",
)
def command(directory: Path, gateway: str | None) -> None:
    """Make DIRECTORY with everything for a first tunnel: an authority, both ends' files, a policy and tests.

    It says what to type next. A directory that holds anything is refused.

    \b
    zonegate init corp                                 both ends on this machine
    zonegate init corp --gateway gw.corp.example:8443  the corporate end elsewhere
    """
    try:
        site = make_site(directory, gateway, datetime.now(UTC))
    except InitError as error:
        fail(str(error))
    for folder, what in (
        ("authority", "issues the tunnels' certificates; whoever has its key can too: keep it offline"),
        (GATEWAY, "for the corporate end: gateway.yaml, its certificate and key"),
        (DEVICE, "for this machine: zonegate.yaml, the policy and its tests, certificate and key"),
    ):
        click.echo(f"made {directory / folder}/  {what}")
    click.echo("\nnext:\n" if not site.here else "\nnext, both ends on this machine:\n")
    for line in next_steps(site):
        click.echo(f"    {line}")
