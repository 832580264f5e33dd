"""A new site: every file that both ends of a first tunnel need, made in a directory of its own.

    SITE/authority/   the CA of its tunnels (see `authority`)
    SITE/gateway/     the corporate end: gateway.yaml, certificate, key, list of revocations
    SITE/laptop/      this machine: zonegate.yaml, policy and its tests, certificate, key

It writes and replaces nothing. It knows no clock, and starts nothing.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import proxy
from proxy.addresses import parse_host
from proxy.authority import Authority, AuthorityError, Kind
from proxy.certificates import write_new

POLICIES = Path(proxy.__file__).parent.parent / "policies"
GATEWAY, DEVICE = "gateway", "laptop"
HERE, HERE_NAME, PAGE_PORT = "127.0.0.1:8443", "gw.corp.example", 8080
_ENDPOINT = re.compile(r"(.+):([0-9]{1,5})")

_SITE = """\
# What leaves this machine's corporate zone, and by which tunnel. Every key: docs/site.md
# After an edit:  zonegate up -c zonegate.yaml --check
zonegate: 1

# What may leave. After an edit: zonegate check, zonegate test and zonegate prove say what it does.
policy: corporate.policy.yaml

zones:
  corporate: {{tunnels: [hq]}} # several tunnels are tried in their order

tunnels:
  hq:
    kind: mtls
    gateway: {gateway} # where the corporate end answers
    server_name: {name} # the name in its certificate
    ca: ca.crt # who issued that certificate; no other authority is trusted
    # The keys that the gateway may have. List its next key here before it gets it.
    pins: ["{pin}"]
    certificate: {device}.crt # who this machine is; before it expires: zonegate cert renew {device}
    key: {device}.key # 0600, or the daemon refuses it
    # judges_addresses: true # where the policy blocks networks: the gateway is trusted to judge addresses

# Who may start programs in which zone.
people:
  "{person}": {{zones: [corporate]}} # a login name
  # "@contractors": {{zones: [corporate]}} # a group of the system
  # "#1001": {{zones: [corporate]}} # a user's number
  # "*": {{zones: [corporate]}} # everybody
"""

_GATEWAY = """\
# The corporate end: who may come, and what may be reached. Every key: docs/gateway.md
gateway: 1
listen: "{listen}"
certificate: gateway.crt
key: gateway.key # 0600
clients:
  ca: ca.crt # who issued the certificates that are let in
  revoked: revoked.txt # read again whenever it changes: zonegate cert revoke NAME

# What may be reached; what no entry admits is refused. Put your own names and networks here.
allow:
{allow}
log: gateway.log
"""

_NOT_FOR_GIT = "# Keys are nobody else's; the policy and its tests are worth keeping.\n*.key\n/authority/\n"

_ALLOW_HERE = f"""\
  # Both ends on one machine, to begin with: the intranet is a server on loopback, which must be named.
  - {{names: [intranet.corp.example], networks: [127.0.0.0/8], ports: {PAGE_PORT}}}
  # - {{names: ["*.corp.example"], networks: [10.20.0.0/16], ports: [22, 80, 443]}}

# Where names lead. `system` asks the resolver of this machine; `hosts` has this table and nothing else.
resolver: hosts
hosts: {{intranet.corp.example: 127.0.0.1}}
"""
_ALLOW_THERE = """\
  - {names: ["*.corp.example"], networks: [10.20.0.0/16], ports: [22, 80, 443]}
  # - {networks: [10.20.0.0/16], ports: 22, clients: [admin-laptop]} # literal addresses, for one client

# Where names lead. `system` asks the resolver of this machine; `hosts` has a table here and nothing else.
resolver: system
"""

_FIRST_TRY = f"""\
  - id: first-try # for the page that zonegate init tells you to look at: take it out after that
    match: {{zone: corporate, to: intranet, protocol: http, port: {PAGE_PORT}}}
    verdict: tunnel
"""
_FIRST_TRY_TEST = f"""\
  - {{id: the page of the first try, flow: {{host: intranet.corp.example, protocol: http, port: {PAGE_PORT}}},
     expect: tunnel, by: first-try}}

prove:
"""


class InitError(Exception):
    """No site was made; one line with the cure."""


@dataclass(frozen=True, slots=True)
class NewSite:
    """What was made. `here` says that both ends are on this machine, for a first try."""

    directory: Path
    gateway: str
    here: bool


def make_site(directory: Path, gateway: str | None, now: datetime) -> NewSite:
    """Make a site for a corporate end at `gateway` (`host:port`), or None for one on this machine.

    Raises InitError; a directory that holds anything is left as it is.
    """
    host, port = _endpoint(gateway or HERE)
    name = host if gateway else HERE_NAME
    policy, tests = _policy(here=gateway is None)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if next(directory.iterdir(), None) is not None:
            raise InitError(f'"{directory}" is not empty; name a directory that is not there yet')
        directory.chmod(0o700)
        authority = Authority.create(directory, "zonegate tunnels", now)
        end = authority.issue(GATEWAY, Kind.GATEWAY, now, hosts=[name])
        authority.issue(DEVICE, Kind.CLIENT, now)
        listen = HERE if gateway is None else f"0.0.0.0:{port}"
        allow = _ALLOW_HERE if gateway is None else _ALLOW_THERE
        site = _SITE.format(
            gateway=f'"{gateway}"' if gateway else HERE,
            name=name,
            pin=end.pin,
            device=DEVICE,
            person=_person(),
        )
        for path, text in (
            (Path(GATEWAY, "gateway.yaml"), _GATEWAY.format(listen=listen, allow=allow)),
            (Path(DEVICE, "zonegate.yaml"), site),
            (Path(DEVICE, "corporate.policy.yaml"), policy),
            (Path(DEVICE, "corporate.test.yaml"), tests),
            (Path(".gitignore"), _NOT_FOR_GIT),
        ):
            write_new(directory / path, text.encode(), 0o600)
    except AuthorityError as error:
        raise InitError(str(error)) from None
    except OSError as error:
        raise InitError(f'"{error.filename or directory}" cannot be made: {error.strerror}') from None
    return NewSite(directory, gateway or HERE, gateway is None)


def next_steps(site: NewSite) -> list[str]:
    """What to type now: commands, and what they are for after #."""
    at = shlex.quote(str(site.directory))
    if not site.here:
        return [
            f"zonegate test {at}/{DEVICE}    # the policy and what it is to do: put your own names in",
            f"scp -r {at}/{GATEWAY} THERE:    # to the corporate end; its gateway.yaml needs your names",
            "zonegate gateway -c gateway/gateway.yaml    # there",
            f"zonegate up -c {at}/{DEVICE}/zonegate.yaml    # here",
            "zonegate status",
        ]
    url = f"http://intranet.corp.example:{PAGE_PORT}/"
    return [
        f"zonegate test {at}/{DEVICE}",
        f"mkdir {at}/page && echo hello > {at}/page/index.html",
        f"python3 -m http.server {PAGE_PORT} --bind 127.0.0.1 --directory {at}/page 2> {at}/page.log &",
        f"zonegate gateway -c {at}/{GATEWAY}/gateway.yaml &    # the corporate end",
        f"zonegate up -c {at}/{DEVICE}/zonegate.yaml &    # the gate",
        "until zonegate status; do sleep 1; done",
        f"zonegate run -- curl -sS {url}    # says hello, through the tunnel",
        "zonegate run -- curl -sS http://198.51.100.1/    # is blocked, and says why",
        "zonegate stop; kill %2 %1",
    ]


def _endpoint(text: str) -> tuple[str, int]:
    found = _ENDPOINT.fullmatch(text)
    try:
        if found is None or not 0 < int(found[2]) < 65536:
            raise ValueError(f'"{text}" is no gateway; write host:port, such as gw.corp.example:8443')
        host = found[1]
        return str(parse_host(host[1:-1] if host.startswith("[") else host)), int(found[2])
    except ValueError as error:
        raise InitError(str(error)) from None


def _policy(*, here: bool) -> tuple[str, str]:
    """The corporate policy and its tests as they ship, with a rule for the page of the first try."""
    try:
        policy, tests = (
            (POLICIES / f"corporate.{kind}.yaml").read_text("utf-8") for kind in ("policy", "test")
        )
    except OSError as error:
        cure = "run zonegate from a checkout, which has the policies"
        raise InitError(f'"{error.filename}" cannot be read; {cure}') from None
    if not here:
        return policy, tests
    return policy.rstrip() + "\n" + _FIRST_TRY, tests.replace("\nprove:\n", _FIRST_TRY_TEST, 1)


def _person() -> str:
    """Who works here: also where root is only borrowed."""
    uid = int(os.environ.get("SUDO_UID", "") or os.getuid()) if os.getuid() == 0 else os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
