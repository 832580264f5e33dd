"""From words to a flow: what a policy test or `explain` says of a flow, as the judge takes it.

What is not said is filled in as a client would: the port from the protocol and the protocol from the
port. A name without an address is one whose address changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from proxy.addresses import parse_host
from proxy.flow import NEVER, Flow, Protocol, Transfer, TunnelFact, TunnelState
from proxy.policy.model import TUNNEL_STATES, Model
from proxy.policy.reading import did_you_mean, one_of, parse_size
from proxy.policy.values import DAYS, NAME

type Facts = Mapping[str, tuple[str, ...]]

PORTS: Mapping[Protocol, int] = {
    Protocol.HTTPS: 443,
    Protocol.HTTP: 80,
    Protocol.SSH: 22,
    Protocol.DNS: 53,
    Protocol.QUIC: 443,
    Protocol.TLS: 443,
    Protocol.ICMP: 0,
}
_BY_PORT = {443: Protocol.HTTPS, 80: Protocol.HTTP, 22: Protocol.SSH}

# What may be said of a flow, for people.
KEYS: Mapping[str, str] = {
    "zone": "the zone of the client",
    "user": "the user",
    "group": "the groups of the user, all of them, or none",
    "device": "the device",
    "posture": "the postures that the device meets, all of them, or none",
    "host": "the destination: a name or a literal address",
    "address": "the address that the name resolves to",
    "port": "the port",
    "protocol": "what the bytes turn out to be",
    "time": 'the local time, such as "wed 10:00" or "2026-03-29 10:00"',
    "tunnel": "the state of the only tunnel, the name of an attested one, or none",
    "tunnels": "the zone's tunnels in their order, each with its state, such as hq=attested",
    "method": "the HTTP method",
    "path": "the HTTP path",
    "content_type": "the media type of the body",
    "transfer": "upload or download",
    "size": "the bytes of the transfer, such as 11MiB",
}
ANYBODY = "somebody"  # the user who is not said
ANY_TUNNEL = "tunnel"  # the tunnel of which only the state is said
MANY = ("group", "posture", "tunnels")

# A Monday in a week without a change of summer time anywhere: tests do not depend on the day they run.
_MONDAY = datetime(2026, 1, 5)  # noqa: DTZ001  # a local time, which the policy's time zone makes complete
# A login, or the number of a user who has none in the user database.
_USER = re.compile(rf"{NAME.pattern}|#[0-9]{{1,10}}")
_TIME = re.compile(r"(?:(mon|tue|wed|thu|fri|sat|sun)|([0-9]{4}-[0-9]{2}-[0-9]{2})) ([0-9]{2}:[0-9]{2})")


@dataclass(frozen=True, slots=True)
class Situation:
    """A flow, and the tunnels of its zone in their order."""

    flow: Flow
    candidates: tuple[TunnelFact, ...]


class FactError(ValueError):
    """A fact that is no fact; `key` says which."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def make_situation(model: Model, facts: Facts) -> Situation:
    """The flow that is meant. Raises FactError with the cure."""
    words = _Words(model, facts)
    zone = words.known("zone", model.zones) if "zone" in facts else _only(model.zones)
    host = words.one("host", parse_host)
    if host is None:
        raise FactError("host", "the flow has no host; say where it goes")
    protocol, port = _protocol_and_port(words)
    name: Any = host if isinstance(host, str) else NEVER
    address = words.one("address", _literal)
    if not isinstance(host, str) and address is not None:
        raise FactError("address", f'host "{host}" is an address; remove the other one')
    # what is not said stays as a new flow has it: not known yet
    said: dict[str, Any] = {
        "device": words.one("device", _name),
        "method": words.one("method", str),
        "path": words.one("path", str),
        "content_type": words.one("content_type", str),
        "transfer": words.one("transfer", lambda text: Transfer(_word(text, tuple(Transfer)))),
        "size": words.one("size", _size),
    }
    flow = Flow(
        zone=zone,
        user=words.one("user", _user) or ANYBODY,
        port=port,
        at=words.one("time", lambda text: _time(text, model)) or _time("wed 10:00", model),
        groups=frozenset(words.all_known("group", model.groups)),
        postures=frozenset(words.all_known("posture", [p.name for p in model.postures])),
        name=name,
        address=(address or NEVER) if isinstance(host, str) else host,
        protocol=protocol,
        transport=_transport(protocol),
        **{key: value for key, value in said.items() if value is not None},
    )
    return Situation(flow, _candidates(words, model))


class _Words:
    """The facts as they were said."""

    def __init__(self, model: Model, facts: Facts) -> None:
        self.facts = facts
        for key, values in facts.items():
            if key not in KEYS:
                raise FactError(key, f'"{key}" is not a fact of a flow{did_you_mean(key, KEYS)}')
            if len(values) != 1 and key not in MANY:
                raise FactError(key, f"{key} has {len(values)} values; a flow has one, use each for several")

    def one[T](self, key: str, parse: Callable[[str], T]) -> T | None:
        if key not in self.facts:
            return None
        try:
            return parse(self.facts[key][0])
        except ValueError as error:
            raise FactError(key, f"{key} {error}") from None

    def known(self, key: str, known: tuple[str, ...]) -> str:
        return _word(self.facts[key][0], known, key)

    def all_known(self, key: str, known: object) -> list[str]:
        assert isinstance(known, tuple | list)
        said = [text for text in self.facts.get(key, ()) if text != "none" or text in known]
        return [_word(text, tuple(known), key) for text in said]


def _only(zones: tuple[str, ...]) -> str:
    if len(zones) == 1:
        return zones[0]
    raise FactError("zone", f"the flow has no zone; say {one_of(zones)}")


def _word(text: str, known: tuple[str, ...], key: str = "") -> str:
    if text in known:
        return text
    cure = did_you_mean(text, known) or f"; say {one_of(known) if known else 'none, the policy has none'}"
    raise FactError(key, f'"{text}" is not a {key or "word"} of this policy{cure}')


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f'"{text}" has other than letters, digits and _ . @ + -')
    return text


def _user(text: str) -> str:
    return text if _USER.fullmatch(text) else _name(text)


def _literal(text: str) -> IPv4Address | IPv6Address:
    host = parse_host(text)
    if isinstance(host, str):
        raise ValueError(f'"{text}" is a name; write an address')
    return host


def _size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else parse_size(text)
    if size is None:
        raise ValueError(f'"{text}" is not a size; write it as in 11MiB')
    return size


def _time(text: str, model: Model) -> datetime:
    found = _TIME.fullmatch(text)
    try:
        if not found:
            raise ValueError
        clock = datetime.strptime(found[3], "%H:%M")  # noqa: DTZ007  # the time zone is the policy's
        day = datetime.fromisoformat(found[2]) if found[2] else _MONDAY + timedelta(days=DAYS.index(found[1]))
    except ValueError:
        raise ValueError(f'"{text}" is not a time; write "wed 10:00" or "2026-03-29 10:00"') from None
    local = day.replace(hour=clock.hour, minute=clock.minute, tzinfo=model.timezone)
    return local.astimezone(UTC)


def _protocol_and_port(words: _Words) -> tuple[Protocol, int]:
    protocol = words.one("protocol", lambda text: Protocol(_word(text, tuple(Protocol), "protocol")))
    port = words.one("port", _port)
    if protocol is None:
        protocol = _BY_PORT.get(443 if port is None else port, Protocol.TCP)
    return protocol, PORTS.get(protocol, 443) if port is None else port


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536):
        raise ValueError(f'"{text}" is not a port; write a number to 65535')
    return int(text)


def _transport(protocol: Protocol) -> Protocol:
    while (parent := protocol.parent) is not None:
        protocol = parent
    return protocol


def _candidates(words: _Words, model: Model) -> tuple[TunnelFact, ...]:
    states = {state.value: state for state in TunnelState}
    if "tunnels" in words.facts:
        if "tunnel" in words.facts:
            raise FactError("tunnel", "a flow has tunnel or tunnels, not both; remove one")
        pairs = [text.partition("=") for text in words.facts["tunnels"]]
        return tuple(TunnelFact(name, states[_state("tunnels", state, states)]) for name, _, state in pairs)
    text = words.facts.get("tunnel", ("none",))[0]
    if text == "none":
        return ()
    if text in states:
        return (TunnelFact(ANY_TUNNEL, states[text]),)
    return (
        TunnelFact(_state("tunnel", text, states, (*known_tunnels(model), "none")), TunnelState.ATTESTED),
    )


def _state(key: str, text: str, states: Collection[str], more: Collection[str] = ()) -> str:
    """A mistyped state must not pass for the name of an attested tunnel: it would lift the guard."""
    if text in states or text in more:
        return text
    cure = did_you_mean(text, (*states, *more)) or f"; say {one_of((*TUNNEL_STATES, *more))}"
    both = " (a tunnel by its name and state: tunnels, as hq=attested)" if more else ""
    raise FactError(key, f'"{text}" is not a state of a tunnel{cure}{both}')


def known_tunnels(model: Model) -> tuple[str, ...]:
    """The tunnels that a policy names: where it defines them, and in its rules and guards."""
    entries = (*model.guards, *model.rules)
    matches = [entry.match for entry in entries] + [guard.unless for guard in model.guards if guard.unless]
    named = [name for match in matches for name in match.tunnel or () if name not in TUNNEL_STATES]
    vias = [name for rule in model.rules for name in rule.via or ()]
    return tuple(dict.fromkeys((*model.tunnels, *named, *vias)))
