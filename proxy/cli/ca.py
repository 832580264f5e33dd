"""`zonegate ca`: the inspection CA that programs in inspecting zones trust."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from proxy import inspection_ca
from proxy.certificates import fingerprint
from proxy.cli.errors import fail
from proxy.inspection_ca import Authority, CaError
from proxy.paths import site_file
from proxy.policy import Policy, Problems, files
from proxy.policy.inspected import inspected

_directory = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Where the CA lies.  [default: inspection, beside the site file]",
)


@click.group("ca", short_help="the inspection CA: create, show, rotate")
def command() -> None:
    """The CA of inspection. Its root signs for an inspector what is short-lived and bound to names.

    \b
    zonegate ca create                       once, beside the site file
    zonegate ca show --policy acme.policy.yaml
    zonegate ca rotate                       a new root; programs that run go on
    """


@command.command("create", short_help="make one, once")
@_directory
@click.option("--name", default="zonegate inspection", show_default=True, help="The name that programs show.")
def create(directory: Path | None, name: str) -> None:
    """Make a CA in a directory of its own, which must be empty or not there yet.

    Name it in the site file under inspection, and say which zones are inspected: inspect: true.

    \b
    zonegate ca create --name "acme inspection"
    """
    found = _find(directory)
    try:
        _tell(inspection_ca.create(found, name, datetime.now(UTC)), found, None)
        words = f"inspection: {found}, and inspect: true in a zone; then zonegate up"
        click.echo(f"next         in the site file {words}")
    except CaError as error:
        fail(str(error))


@command.command("show", short_help="until when, and for which names")
@_directory
@click.option("--policy", type=click.Path(path_type=Path), help="Say which names this policy binds it to.")
@click.option("--json", "as_json", is_flag=True, help="The roots, for programs.")
def show(directory: Path | None, policy: Path | None, as_json: bool) -> None:
    """Say whose root it is, until when, its fingerprint, and which names are signed for.

    \b
    zonegate ca show --policy acme.policy.yaml
    """
    found = _find(directory)
    try:
        authority = inspection_ca.read(found)
        if as_json:
            click.echo(json.dumps([_as_value(root) for root in authority.trusted], indent=2))
            return
        _tell(authority, found, files.load_policy(policy) if policy else None)
    except CaError as error:
        fail(str(error))
    except Problems as problems:
        fail(str(problems))


@command.command("rotate", short_help="a new root; the old key is destroyed")
@_directory
@click.option("--distrust", is_flag=True, help="The old root is trusted no longer: its key may be known.")
def rotate(directory: Path | None, distrust: bool) -> None:
    """Make a new root and destroy the key of the old one.

    Programs that run trust the old root and accept what the new one signs; those that start later trust both.
    With --distrust bubbles that run must be started again. A daemon takes the new root at its next start or
    reload.

    \b
    zonegate ca rotate
    """
    found = _find(directory)
    try:
        _tell(inspection_ca.rotate(found, datetime.now(UTC), distrust=distrust), found, None)
    except CaError as error:
        fail(str(error))


def _find(directory: Path | None) -> Path:
    return directory or site_file(None, os.geteuid(), os.environ).parent / "inspection"


def _as_value(root: x509.Certificate) -> dict[str, str]:
    return {
        "name": inspection_ca.name_of(root),
        "until": root.not_valid_after_utc.isoformat(),
        "fingerprint": fingerprint(root.public_bytes(Encoding.DER)),
    }


def _tell(authority: Authority, directory: Path, policy: Policy | None) -> None:
    for line in _lines(authority, directory, policy):
        click.echo(line)


def _lines(authority: Authority, directory: Path, policy: Policy | None) -> Iterator[str]:
    now = datetime.now(UTC)
    yield f"directory    {directory}"
    for i, root in enumerate(authority.trusted):
        until = root.not_valid_after_utc
        state = "signs" if i == 0 else "trusted, no longer signs"
        yield f"root         {inspection_ca.name_of(root)} ({state if until > now else 'expired'})"
        yield f"  until      {until:%Y-%m-%d}, {max(0, (until - now).days)} days"
        yield f"  sha256     {fingerprint(root.public_bytes(Encoding.DER)).removeprefix('sha256:')}"
    yield f"signs        for inspectors, {inspection_ca.INTERMEDIATE_DAYS} days at a time"
    if policy is not None:
        scope = inspected(policy.model, policy.zones)
        if not scope:
            yield "names        none: nothing that this policy grants is inspected"
        elif (constraints := inspection_ca.name_constraints(scope)) is None:
            yield "names        any: the policy inspects what it does not list by name, or too many names"
        else:
            found = [str(one.value) for one in constraints.permitted_subtrees or ()]
            yield f"names        {', '.join(found)}, each with all below it"
