"""`zonegate tunnel`: tunnels told, held down and taken up; and one read from a wg-quick file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import folding
from proxy.cli.ask import ask, order, value_of
from proxy.cli.completing import tunnels
from proxy.cli.errors import fail, warn
from proxy.cli.status import tunnel_table
from proxy.messages.admin import Ask

if TYPE_CHECKING:
    from proxy.wg_quick import Imported

MOST = 1 << 20  # characters of a wg-quick file
_NAME = click.argument("name", shell_complete=tunnels)
_JSON = click.option("--json", "as_json", is_flag=True, help="The answer, for programs.")


@click.group("tunnel", short_help="list, show, hold down, take up and import tunnels")
def command() -> None:
    """The tunnels of the site: what is proved of them, and by hand down and up.

    \b
    zonegate tunnel list
    zonegate tunnel down hq
    zonegate tunnel import wg0.conf --name hq
    """


def _told() -> dict[str, Any]:
    found: dict[str, Any] = value_of(ask(Ask("status", "{}")))["tunnels"]
    return found


def _one(name: str) -> dict[str, Any]:
    told = _told()
    if name not in told:
        fail(f'"{name}" is not a tunnel of this site; the site has {", ".join(told)}')
    one: dict[str, Any] = told[name]
    return one


@command.command("list", short_help="all, and what is proved of them")
@_JSON
def list_tunnels(as_json: bool) -> None:
    """Every tunnel and what is proved of it. Exit code 1 when one is not attested.

    \b
    zonegate tunnel list
    """
    told = _told()
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        console = folding.console()
        console.print(tunnel_table(told, console.width))
    sys.exit(0 if all(one["attested"] for one in told.values()) else 1)


@command.command("show", short_help="one in full")
@_NAME
@_JSON
def show(name: str, as_json: bool) -> None:
    """One tunnel. Exit code 1 when it is not attested.

    \b
    zonegate tunnel show hq
    """
    one = _one(name)
    if as_json:
        click.echo(json.dumps(one, indent=2))
    else:
        packets = one["packets"] or {}
        probe = packets.get("probe")
        rows = {
            "kind": one["kind"],
            "endpoint": one["gateway"],
            "state": one["state"],
            "because": one["words"],
            "peer": one["peer"],
            "last proof": f"{one['proof_age_s']} s ago" if one["proof_age_s"] is not None else "",
            "zones": ", ".join(one["zones"]),
            "addresses": ", ".join(packets.get("addresses", ())),
            "resolvers": ", ".join(packets.get("resolvers", ())),
            "probe": f"{probe['kind']} {probe['address']}" if probe else "",
        }
        for key, value in rows.items():
            if value:
                folding.tell(f"{key:<12}{value}")
    sys.exit(0 if one["attested"] else 1)


@command.command("down", short_help="take one down and hold it there")
@_NAME
@_JSON
def down(name: str, as_json: bool) -> None:
    """Take a tunnel down; its flows are cut, and it stays down until `zonegate tunnel up`.

    It outlives the daemon. Exit code 1 when that could not be written.

    \b
    zonegate tunnel down hq
    """
    done = order("tunnel-down", tunnel=name)
    _say(done, as_json, f"{name} is held down")


@command.command("up", short_help="let one come up again")
@_NAME
@_JSON
def up(name: str, as_json: bool) -> None:
    """Let a tunnel that is held down come up again.

    \b
    zonegate tunnel up hq
    """
    done = order("tunnel-up", tunnel=name)
    _say(done, as_json, f"{name} may come up; see zonegate tunnel show {name}")


def _say(done: dict[str, Any], as_json: bool, words: str) -> None:
    if done["trouble"]:
        warn(done["trouble"])
    click.echo(json.dumps(done, indent=2) if as_json else words)
    sys.exit(1 if done["trouble"] else 0)


@command.command("import", short_help="take one from a wg-quick file")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default="", help="What the tunnel is called; else the name of the file.")
@click.option(
    "--keys",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its keys go; else beside the site file, or here.",
)
@click.option(
    "--into",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the tunnel into this site file.",
)
@click.option("--zone", default="", help="With --into: the zone that takes it, where there are several.")
@click.option("--probe", default="", help='What is asked every second, such as "icmp 10.8.0.1".')
def import_file(file: Path, name: str, keys: Path | None, into: Path | None, zone: str, probe: str) -> None:
    """Read a wg-quick file: its keys go to files of mode 0600, its tunnel is printed for the site file.

    With --into it is put there, as the last of its zone; a file that would not load then is left as it is.
    Nothing in the file is run: one that has PostUp or the like is refused. No daemon is needed.

    \b
    zonegate tunnel import wg0.conf --name hq --into zonegate.yaml
    """
    from proxy.config import is_name

    name = name or file.stem.lower()
    if not is_name(name):
        fail(f'"{name}" is no name of a tunnel; say --name, of a-z, 0-9 and -, at most 32')
    found = _read(file)
    if not (found.dns or probe):
        fail(f'{file} names no resolver; say what answers behind the peer: --probe "icmp ADDRESS"')
    directory = keys or (into.parent if into is not None else Path())
    private, preshared = directory / f"{name}.key", directory / f"{name}.psk"
    written = {
        private: found.private_key,
        **({preshared: found.preshared_key} if found.preshared_key else {}),
    }
    entry = found.snippet(name, _named(private, into), _named(preshared, into), probe)
    _must_load(entry, file)
    with contextlib.ExitStack() as undo:
        for path, key in written.items():
            _write_key(path, key, undo)
        said = _put(into, name, entry, zone) if into is not None else ""
        undo.pop_all()
    for note in found.notes:
        warn(note)
    shown = " and ".join(map(str, written))
    if into is not None:
        click.echo(f"{said}\nits keys are in {shown}")
        click.echo("next: zonegate reload, or zonegate up; what would change: zonegate reload --check")
        return
    click.echo(
        f"# keys are in {shown}; this goes below tunnels: of the site file, and {name} into the tunnels"
    )
    click.echo("# of a zone. To have that done, remove the keys and say: --into zonegate.yaml")
    click.echo(entry, nl=False)


def _read(file: Path) -> Imported:
    from proxy.wg_quick import NotImported, decoded, read

    try:
        with file.open("rb") as opened:
            return read(decoded(opened.read(MOST), str(file)), str(file))
    except NotImported as error:
        fail(str(error))
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}; name a wg-quick file")


def _must_load(entry: str, file: Path) -> None:
    """Fail where no site file could have this tunnel."""
    from proxy.config import read_site
    from proxy.policy.source import Problems

    name = entry.split(":")[0].strip()
    site = f"zonegate: 1\npolicy: policy.yaml\nzones: {{any: {{tunnels: [{name}]}}}}\ntunnels:\n{entry}"
    try:
        read_site(site.encode(), file)
    except Problems as error:
        fail("\n".join(f"{file}: {problem.message}" for problem in error.problems))


def _put(into: Path, name: str, entry: str, zone: str) -> str:
    from proxy.cli.inserting import NotPut, put_into

    try:
        return put_into(into, name, entry, zone)
    except NotPut as error:
        fail(str(error))


def _named(path: Path, into: Path | None) -> str:
    """How a site file names a file: by itself where both lie together."""
    if into is None:
        return str(path.absolute())
    here, found = into.resolve().parent, path.resolve()
    return str(found.relative_to(here) if found.is_relative_to(here) else found)


def _write_key(path: Path, key: str, undo: contextlib.ExitStack) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(path.unlink, missing_ok=True)
        with os.fdopen(fd, "w") as file:
            file.write(key + "\n")
    except FileExistsError:
        fail(f"{path} is there already; remove it, or say another --name")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
