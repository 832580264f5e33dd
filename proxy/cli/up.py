"""`zonegate up`: the daemon."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click

from proxy.admin import AdminError
from proxy.cli.errors import fail
from proxy.paths import Places, site_file
from proxy.renewal import ahead
from proxy.site import SiteError, load_site
from proxy.supervisor import supervise


@click.command("up", short_help="run the daemon")
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="The site file.  [default: zonegate.yaml]"
)
@click.option("--cooperative", is_flag=True, help="Go on where this machine cannot keep programs in; say so.")
@click.option("--check", is_flag=True, help="Read every file, say what is wrong, and end.")
def command(config: Path | None, cooperative: bool, check: bool) -> None:
    """Run the daemon: bring the tunnels up and serve bubbles, until SIGTERM.

    \b
    zonegate up                      the site of this directory, or of the machine
    zonegate up -c acme/zonegate.yaml
    """
    try:
        file = site_file(config, os.geteuid(), os.environ)
        if config is None and not file.exists():
            cure = "name one with -c, or make one: zonegate init DIR"
            fail(f"there is no site file here and none at {file}; {cure}")
        loaded = load_site(file)
        if check:
            click.echo("\n".join(["zonegate: nothing is wrong with these files", *ahead(loaded.files)]))
            return
        places = Places.of(loaded.site.run, loaded.site.state, os.environ)
        if not asyncio.run(supervise(loaded, places, cooperative=cooperative)):
            sys.exit(1)
    except (SiteError, AdminError) as error:
        fail(str(error))
