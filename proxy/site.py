"""Everything a daemon needs from files, read once at the start: site, policy, certificates, keys.

Refuses what would not keep the law: a key that others can read, a zone that the policy does not know, a
policy that needs addresses behind a gateway that is not trusted with them. Knows no process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.config import Site, Tunnel, read_site
from proxy.policy import Policy, Problems, load

MAX_FILE_BYTES = 4 << 20


class SiteError(Exception):
    """The site cannot be used; every line says one thing that is wrong, where, and the cure."""


class Secret:
    """Bytes that no log and no traceback shows."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __repr__(self) -> str:
        return "Secret(...)"

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._content


@dataclass(frozen=True, slots=True)
class TunnelFiles:
    """What a tunnel's holder and the workers are handed: CA, client certificate and key, PEM."""

    ca: bytes
    certificate: bytes
    key: Secret


@dataclass(frozen=True, slots=True)
class Loaded:
    """A site with the content of its files."""

    site: Site
    policy_text: bytes
    policy: Policy
    files: Mapping[str, TunnelFiles]


def load_site(file: Path) -> Loaded:
    """Read a site file and all that it names. Raises SiteError with every problem found."""
    try:
        site = read_site(_read(file, "site file"), file)
        policy_text = _read(site.policy, "policy")
        policy = load(policy_text, str(site.policy))
    except Problems as error:
        raise SiteError(str(error)) from error
    problems = [*_zones(site, policy)]
    files: dict[str, TunnelFiles] = {}
    for name, tunnel in site.tunnels.items():
        try:
            files[name] = _tunnel_files(tunnel)
        except SiteError as error:
            problems.append(str(error))
    if problems:
        raise SiteError("\n".join(problems))
    return Loaded(site, policy_text, policy, files)


def _zones(site: Site, policy: Policy) -> list[str]:
    problems = []
    for name, zone in site.zones.items():
        if name not in policy.zones:
            known = ", ".join(policy.zones)
            problems.append(f'{site.file}: zone "{name}" is not in policy {site.policy}, which has {known}')
            continue
        blind = [tunnel for tunnel in zone.tunnels if not site.tunnels[tunnel].judges_addresses]
        if blind and policy.needs_addresses(name):
            problems.append(
                f'{site.file}: the policy of zone "{name}" blocks addresses; tunnel "{blind[0]}" resolves '
                "names at its gateway; set judges_addresses: true if that gateway is trusted to judge them"
            )
    return problems


def _tunnel_files(tunnel: Tunnel) -> TunnelFiles:
    return TunnelFiles(
        _read(tunnel.ca, f'ca of tunnel "{tunnel.name}"'),
        _read(tunnel.certificate, f'certificate of tunnel "{tunnel.name}"'),
        Secret(_read(tunnel.key, f'key of tunnel "{tunnel.name}"', secret=True)),
    )


def _read(path: Path, what: str, *, secret: bool = False) -> bytes:
    """A regular file of reasonable size; a device or a pipe as a configuration is a mistake or an attack.

    A secret must be ours alone; what is looked at is the open file, whatever its name means later.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise SiteError(f"{path}: the {what} is not a regular file")
            if secret and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SiteError(f"{path} can be read by others; make it yours alone: chmod 600 {path}")
            if secret and found.st_uid not in (0, os.geteuid()):
                raise SiteError(f"{path} belongs to another user; make it yours: chown $USER {path}")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SiteError(f"{path}: the {what} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise SiteError(f"{path}: the {what} is longer than {MAX_FILE_BYTES >> 20} MiB")
    return content
