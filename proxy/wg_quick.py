"""A wg-quick file, read for what a tunnel needs. Nothing in it is run, and nothing is left out silently.

Pure: text in, values out. wg-quick files carry shell commands; whoever hands one over must not thereby run
programs as the daemon's user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.wireguard_config import parse_endpoint, parse_inside, parse_interface, parse_key, parse_network

_COMMANDS = ("preup", "postup", "predown", "postdown")
# What has no meaning here, and why.
_DROPPED: Mapping[str, str] = {
    "listenport": "a port is taken that is free",
    "fwmark": "no rule of the host needs it",
    "table": "routes are made in the tunnel's own namespace",
    "saveconfig": "nothing is ever written back",
}
_INTERFACE = ("privatekey", "address", "dns", "mtu", *_DROPPED)
_PEER = ("publickey", "presharedkey", "allowedips", "endpoint", "persistentkeepalive")


class NotImported(ValueError):
    """The file cannot be used; every line says what is wrong, where, and the cure."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was found. `notes` tell what was left out, and why."""

    private_key: str
    preshared_key: str
    peer: str
    endpoint: str
    addresses: tuple[str, ...]
    allowed: tuple[str, ...]
    dns: tuple[str, ...]
    mtu: str
    keepalive: str
    notes: tuple[str, ...]

    def snippet(self, name: str, private_key: str, preshared_key: str, probe: str = "") -> str:
        """The tunnel's entry for a site file, below `tunnels:`; the keys are in the files named here."""
        rows = {
            "kind": "wireguard",
            "private_key": json.dumps(private_key),
            "preshared_key": json.dumps(preshared_key) if self.preshared_key else "",
            "peer": json.dumps(self.peer),
            "endpoint": json.dumps(self.endpoint),
            "addresses": json.dumps(self.addresses),
            "allowed": json.dumps(self.allowed) if self.allowed else "",
            "dns": json.dumps(self.dns) if self.dns else "",
            "mtu": self.mtu,
            "keepalive": self.keepalive,
            "probe": json.dumps(probe) if probe else "",
        }
        lines = [f"    {key}: {value}\n" for key, value in rows.items() if value]
        if not self.dns and not probe:
            lines.append("    probe: icmp ADDRESS    # an address behind the peer that answers\n")
        return f"  {name}:\n" + "".join(lines)


def read(text: str, filename: str) -> Imported:
    """What a wg-quick file says. Raises NotImported with every problem."""
    reading = _Reading(filename)
    for number, line in enumerate(text.splitlines(), 1):
        reading.line(number, line.partition("#")[0].strip())
    return reading.finish()


def _number(text: str) -> None:
    if text != "off" and not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise ValueError(f'"{text[:40]}" is no number')


class _Reading:
    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._section = ""
        self._peers = 0
        self._values: dict[str, list[str]] = {}
        self._notes: list[str] = []
        self._problems: list[str] = []

    def _problem(self, number: int, words: str) -> None:
        self._problems.append(f"{self._filename}:{number}: {words}")

    def line(self, number: int, line: str) -> None:
        if not line:
            return
        if line.startswith("["):
            self._section = line.lower()
            self._peers += self._section == "[peer]"
            if self._section not in ("[interface]", "[peer]"):
                self._problem(number, f'"{line[:40]}" is no section; there are [Interface] and [Peer]')
            elif self._peers > 1:
                self._problem(number, "there are several peers; a tunnel leads to one: make a file for each")
            return
        key, equals, value = (part.strip() for part in line.partition("="))
        known = {"[interface]": _INTERFACE, "[peer]": _PEER}.get(self._section, ())
        if key.lower() in _COMMANDS:
            self._problem(number, f"{key} is a command, and none is run from a file; remove the line")
        elif not equals or key.lower() not in known:
            self._problem(
                number, f'"{key[:40]}" has no place in {self._section or "a file before its sections"}'
            )
        elif key.lower() in _DROPPED:
            self._notes.append(f"{key} is left out: {_DROPPED[key.lower()]}")
        else:
            found = self._values.setdefault(key.lower(), [])
            found += [one.strip() for one in value.split(",") if one.strip()]

    def finish(self) -> Imported:
        values = self._values
        for key in ("privatekey", "address", "publickey", "endpoint"):
            if key not in values:
                self._problems.append(f"{self._filename}: there is no {key}; a tunnel needs one")
        checks: Mapping[str, Callable[[str], object]] = {
            "privatekey": parse_key,
            "presharedkey": parse_key,
            "publickey": parse_key,
            "endpoint": parse_endpoint,
            "mtu": _number,
            "persistentkeepalive": _number,
            "address": parse_interface,
            "allowedips": parse_network,
        }
        for key, parse in checks.items():
            for text in values.get(key, ()):
                try:
                    parse(text)
                except ValueError as error:
                    words = "is no WireGuard key" if key in ("privatekey", "presharedkey") else str(error)
                    self._problems.append(f"{self._filename}: {key} {words}")
        resolvers = [text for text in values.get("dns", ()) if self._is_resolver(text)]
        if self._problems:
            raise NotImported("\n".join(self._problems))
        allowed = tuple(values.get("allowedips", ()))
        everything = {"0.0.0.0/0", "::/0"} <= set(allowed)
        return Imported(
            private_key=values["privatekey"][0],
            preshared_key=values.get("presharedkey", [""])[0],
            peer=values["publickey"][0],
            endpoint=values["endpoint"][0],
            addresses=tuple(values["address"]),
            allowed=() if everything else allowed,
            dns=tuple(resolvers),
            mtu=values.get("mtu", [""])[0],
            keepalive=values.get("persistentkeepalive", [""])[0].replace("off", "0"),
            notes=tuple(self._notes),
        )

    def _is_resolver(self, text: str) -> bool:
        try:
            parse_inside(text)
        except ValueError:
            self._notes.append(
                f'DNS "{text[:60]}" is left out: there is no search list, and a resolver is an address'
            )
            return False
        return True
