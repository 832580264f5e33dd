"""`zonegate explain`: what a policy says of one flow, and why."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import click

from proxy.cli.ask import ask_json
from proxy.cli.completing import tunnels, zones
from proxy.cli.errors import fail, fail_at
from proxy.cli.folding import tell
from proxy.policy import files
from proxy.policy.facts import MANY, FactError, make_situation
from proxy.policy.source import Problems
from proxy.policy.telling import decision_value, tell_decision

_SCHEMES = {"http": "http", "https": "https", "ssh": "ssh", "wss": "https", "ws": "http"}
# What is not the asker's to say where a daemon answers.
_DAEMON_KNOWS = ("user", "group", "tunnel", "tunnels")


@click.command("explain", short_help="what a policy says of a flow, and why")
@click.option("--policy", "path", type=click.Path(path_type=Path), help="A policy file; else the daemon's.")
@click.option("--to", required=True, metavar="URL|HOST[:PORT]", help="Where the flow goes.")
@click.option("--zone", shell_complete=zones, help="The zone; not needed where the policy has one only.")
@click.option("--user", help="The user; of a daemon, you.")
@click.option("--group", multiple=True, help="A group of the user; may be given several times.")
@click.option("--device", help="The device.")
@click.option("--posture", multiple=True, help="A posture that the device meets; may be given several times.")
@click.option("--protocol", help="What the bytes turn out to be; else from the URL or the port.")
@click.option("--address", help="The address that the name resolves to.")
@click.option(
    "--tunnel",
    shell_complete=tunnels,
    metavar="STATE",
    help="attested, stale or down; a tunnel's name, as attested; or none. Of a daemon: as it is now.  "
    "[default with --policy: attested]",
)
@click.option(
    "--tunnels",
    multiple=True,
    metavar="NAME=STATE",
    help="A tunnel's name and its state, in the zone's order; in place of --tunnel.",
)
@click.option("--method", help="The HTTP method.")
@click.option("--content-type", help="The media type of the body.")
@click.option("--transfer", type=click.Choice(["upload", "download"]), help="The direction of the transfer.")
@click.option("--size", help="The size of the transfer, such as 11MiB.")
@click.option("--time", help='The local time of the policy, such as "wed 10:00".')
@click.option("--json", "as_json", is_flag=True, help="The whole answer, for programs.")
def command(path: Path | None, to: str, as_json: bool, **given: str | tuple[str, ...] | None) -> None:
    """Say what becomes of a flow, and why: by a policy file, or by the daemon as things stand now.

    Of the daemon, zone and tunnels are the live ones, and user and groups yours. Facts of a request that
    are not given are not known yet.

    \b
    zonegate explain --to https://git.corp.example/
    zonegate explain --policy acme.policy.yaml --group hr --to pay.corp.example
    """
    facts = {key: (value,) if isinstance(value, str) else value for key, value in given.items() if value}
    if path is None and (told := [key for key in _DAEMON_KNOWS if key in facts]):
        fail(f"--{told[0]} is the daemon's to say; leave it out, or name a file with --policy")
    if "tunnels" not in facts:
        facts.setdefault("tunnel", ("attested",))
    try:
        facts = {**_destination(to), **facts}
        if path is None:
            facts.pop("tunnel", None)
            _ask_daemon({key: value for key, value in facts.items() if value}, as_json=as_json)
            return
        policy = files.load_policy(path)
        situation = make_situation(policy.model, {k: v for k, v in facts.items() if v or k in MANY})
    except Problems as problems:
        fail_at(problems.render())
    except (FactError, ValueError) as error:
        fail(str(error))
    decision = policy.decide(situation.flow, situation.candidates, trace=True)
    if as_json:
        click.echo(json.dumps(decision_value(situation.flow, decision), indent=2))
        return
    for line in tell_decision(policy, situation.flow, decision, situation.candidates):
        tell(line)


def _ask_daemon(facts: dict[str, tuple[str, ...]], *, as_json: bool) -> None:
    """The daemon's own answer."""
    found = ask_json("explain", **facts)
    if as_json:
        click.echo(json.dumps(found["decision"], indent=2))
    else:
        tell("\n".join(found["lines"]))


def _destination(to: str) -> dict[str, tuple[str, ...]]:
    """Host, port, protocol and path of a URL or of `host:port`. Raises ValueError."""
    cure = "write it as in https://git.corp.example/ or git.corp.example:22"
    try:
        parts = urlsplit(to if "://" in to else f"//{to}")
        port = parts.port
    except ValueError:
        raise ValueError(f'"{to}" is no URL, and no host and port; {cure}') from None
    if not parts.hostname:
        raise ValueError(f'"{to}" has no host; {cure}')
    found: dict[str, tuple[str, ...]] = {"host": (parts.hostname,)}
    if port is not None:
        found["port"] = (str(port),)
    if parts.scheme:
        if parts.scheme not in _SCHEMES:
            raise ValueError(f'"{parts.scheme}" is not known; write http, https or ssh, or --protocol')
        found["protocol"] = (_SCHEMES[parts.scheme],)
        if parts.path and parts.scheme != "ssh":
            found["path"] = (parts.path,)
    return found
