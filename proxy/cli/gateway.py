"""`zonegate gateway`: the corporate end of an mtls tunnel."""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from proxy.cli.errors import fail_at
from proxy.gateway.service import run
from proxy.policy.source import Problems


@click.command("gateway")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.yaml"),
    show_default=True,
    help="What it listens on, whom it lets in, and what it connects to.",
)
def command(config: Path) -> None:
    """Serve as the corporate end of mtls tunnels, until SIGTERM.

    The configuration is described in docs/gateway.md. Certificates are revoked without a restart, by the
    file that clients.revoked names. SIGHUP goes on in a new log file.

    \b
    zonegate gateway -c gateway.yaml
    """
    try:
        uvloop.run(run(config))
    except Problems as problems:
        fail_at(problems.render())
