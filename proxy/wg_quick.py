"""A wg-quick file, read for what a tunnel needs. Nothing in it is run, and nothing is left out silently.

Pure: text in, values out. wg-quick files carry shell commands; whoever hands one over must not thereby run
programs as the daemon's user.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proxy.policy.reading import did_you_mean
from proxy.wireguard_config import (
    MTU_LEAST,
    MTU_MOST,
    parse_endpoint,
    parse_inside,
    parse_interface,
    parse_key,
    parse_network,
)

_COMMANDS = ("preup", "postup", "predown", "postdown")
# What has no meaning here, and why.
_DROPPED: Mapping[str, str] = {
    "listenport": "a port is taken that is free",
    "fwmark": "no rule of the host needs it",
    "table": "routes are made in the tunnel's own namespace",
    "saveconfig": "nothing is ever written back",
}
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "[Interface]": ("PrivateKey", "Address", "DNS", "MTU", "ListenPort", "FwMark", "Table", "SaveConfig"),
    "[Peer]": ("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"),
}
_NEEDED: Mapping[str, str] = {
    **dict.fromkeys(("PrivateKey", "Address", "PublicKey", "Endpoint"), "a tunnel needs one"),
    "AllowedIPs": "nothing is sent to such a peer; for everything write AllowedIPs = 0.0.0.0/0, ::/0",
}
_LISTS = ("Address", "AllowedIPs", "DNS")
# What may be shown of a line that is not understood: the rest, or all of it, may be a key.
_WORD = re.compile(r"\[?[A-Za-z]{1,20}\]?(?=[\s:=]|$)")


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
        return f"  {name}:\n" + "".join(lines)


def decoded(raw: bytes, filename: str) -> str:
    """The text of a file, also as Windows writes it. Raises NotImported where it is none."""
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise NotImported(f"{filename}: it is no text; save it as UTF-8")
    return text


def read(text: str, filename: str) -> Imported:
    """What a wg-quick file says. Raises NotImported with every problem."""
    reading = _Reading(filename)
    for number, line in enumerate(text.splitlines(), 1):
        reading.line(number, line.partition("#")[0].strip())
    return reading.finish()


def _number(least: int, most: int, *others: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        is_number = text.isascii() and text.isdecimal() and len(text) <= 5
        if text not in others and not (is_number and least <= int(text) <= most):
            raise ValueError(f'"{_shown(text)}" is no number from {least} to {most}; write one of those')

    return check


def _shown(text: str) -> str:
    """As much of a line or a value as can be no key."""
    found = _WORD.match(text)
    return found[0] if found else text if len(text) < 20 else "…"


def _key(text: str) -> None:
    try:
        parse_key(text)
    except ValueError:  # which would show the key
        raise ValueError("is no WireGuard key; write what `wg genkey` or `wg genpsk` prints") from None


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "PrivateKey": _key,
    "PresharedKey": _key,
    "PublicKey": parse_key,
    "Endpoint": parse_endpoint,
    "MTU": _number(MTU_LEAST, MTU_MOST),
    "PersistentKeepalive": _number(0, 65_535, "off"),
    "Address": parse_interface,
    "AllowedIPs": parse_network,
}


class _Reading:
    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._section = ""
        self._peers = 0
        self._values: dict[str, list[str]] = {}
        self._notes: list[str] = []
        self._problems: list[str] = []
        self._whole = True

    def _problem(self, number: int, words: str) -> None:
        self._problems.append(f"{self._filename}:{number}: {words}")

    def line(self, number: int, line: str) -> None:
        if not line:
            return
        if line.startswith("["):
            self._begin(number, line)
            return
        if self._section not in _SECTIONS:
            if self._whole:
                self._whole = False  # what follows from it is not said as well
                self._problem(
                    number, f'"{_shown(line)}" stands before any section; write [Interface] above it'
                )
            return
        said, equals, value = (part.strip() for part in line.partition("="))
        known = {key.lower(): key for key in _SECTIONS[self._section]}
        key = known.get(said.lower(), "")
        if said.lower() in _COMMANDS:
            self._problem(number, f"{said} is a command, and none is run from a file; remove the line")
        elif not equals or not key:
            cure = did_you_mean(said.lower(), known) if equals else "; write KEY = VALUE"
            words = f'"{_shown(said)}" has no place in {self._section}{cure or "; remove the line"}'
            self._problem(number, words)
        elif key.lower() in _DROPPED:
            self._notes.append(f"{key} is left out: {_DROPPED[key.lower()]}")
        else:
            texts = value.split(",") if key in _LISTS else [value]
            self._take(number, key, [one.strip() for one in texts if one.strip()])

    def _begin(self, number: int, line: str) -> None:
        named = {section.lower(): section for section in _SECTIONS}
        self._section = named.get(line.lower(), line)
        self._peers += self._section == "[Peer]"
        if self._section not in _SECTIONS:
            self._whole = False
            self._problem(number, f'"{_shown(line)}" is no section; there are [Interface] and [Peer]')
        elif self._peers > 1:
            self._problem(number, "there are several peers; a tunnel leads to one: make a file for each")

    def _take(self, number: int, key: str, texts: Sequence[str]) -> None:
        if key in self._values and key not in _LISTS:
            self._problem(number, f"there is a second {key}; keep one of them")
        found = self._values.setdefault(key, [])
        if not texts:
            self._problem(number, f"{key} is empty; write what it is, or remove the line")
        for text in texts:
            try:
                _CHECKS.get(key, str)(text)
            except ValueError as error:
                self._problem(number, f"{key} {error}")
            if key != "DNS" or self._is_resolver(text):
                found.append(text)

    def finish(self) -> Imported:
        values = self._values
        for key, why in _NEEDED.items() if self._whole else ():
            if key not in values:
                self._problems.append(f"{self._filename}: there is no {key}; {why}")
        if self._problems:
            raise NotImported("\n".join(self._problems))
        allowed = tuple(values.get("AllowedIPs", ()))
        everything = {"0.0.0.0/0", "::/0"} <= set(allowed)
        return Imported(
            private_key=values["PrivateKey"][0],
            preshared_key=values.get("PresharedKey", [""])[0],
            peer=values["PublicKey"][0],
            endpoint=values["Endpoint"][0],
            addresses=tuple(values["Address"]),
            allowed=() if everything else allowed,
            dns=tuple(values.get("DNS", ())),
            mtu=values.get("MTU", [""])[0],
            keepalive=values.get("PersistentKeepalive", [""])[0].replace("off", "0"),
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
