"""From nodes to tests: what may stand in `match`, `unless`, and in the claims of a proof.

Every word is held against the vocabulary of the policy; a word that nobody defined is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.flow import Protocol, Transfer
from proxy.policy import grammar
from proxy.policy.model import (
    TUNNEL_STATES,
    App,
    Destination,
    Match,
    Model,
    Pattern,
    Posture,
    To,
    Window,
)
from proxy.policy.reading import Reading, did_you_mean
from proxy.policy.source import Node, Scalar
from proxy.policy.values import (
    MEDIA,
    NAME,
    TOKEN,
    looks_like_network,
    parse_domain,
    parse_network,
    parse_path,
    parse_port,
    parse_size_test,
)

_PROTOCOLS: Mapping[str, Protocol] = {protocol.value: protocol for protocol in Protocol}
_TRANSFERS: Mapping[str, Transfer] = {transfer.value: transfer for transfer in Transfer}
_METHOD = "a method; write it in capitals, such as GET"
_MEDIA_TYPE = "a media type; write it in lower case, as in text/html"


@dataclass(slots=True)
class Vocabulary:
    """The words that a policy defines. It grows while the policy is read."""

    zones: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    tunnels: tuple[str, ...] | None = None
    postures: dict[str, Posture] = field(default_factory=dict)
    destinations: dict[str, Destination] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    patterns: dict[str, Pattern] = field(default_factory=dict)
    apps: dict[str, App] = field(default_factory=dict)
    inline: dict[str, Destination] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> Vocabulary:
        """The words of a policy that is loaded."""
        return cls(
            zones=model.zones,
            groups=model.groups,
            tunnels=model.tunnels or None,
            postures={posture.name: posture for posture in model.postures},
            destinations={place.name: place for place in model.destinations},
            windows={window.name: window for window in model.windows},
            apps={app.name: app for app in model.apps},
        )


class MatchReader:
    """Reads tests of attributes from one file."""

    def __init__(self, reading: Reading, vocabulary: Vocabulary) -> None:
        self.r, self.v = reading, vocabulary
        self._good_tunnels: set[str] = set()  # many rules go the same way
        self._readers: Mapping[str, Callable[[Node, str], Any]] = {
            "zone": lambda node, what: self._known(node, what, "zone", self.v.zones),
            "user": self.names,
            "group": lambda node, what: self._known(node, what, "group", self.v.groups),
            "device": self.names,
            "posture": lambda node, what: self._known(node, what, "posture", self.v.postures),
            "to": self.to,
            "port": lambda node, what: self._each(node, what, parse_port),
            "protocol": lambda node, what: self._one_of(node, what, "protocol", _PROTOCOLS),
            "window": lambda node, what: self._known(node, what, "window", self.v.windows),
            "tunnel": self._tunnels,
            "method": lambda node, what: self._shaped(node, what, TOKEN, _METHOD),
            "path": lambda node, what: self._each(node, what, parse_path),
            "content_type": lambda node, what: self._shaped(node, what, MEDIA, _MEDIA_TYPE),
            "transfer": lambda node, what: self._one_of(node, what, "transfer", _TRANSFERS),
            "size": lambda node, what: self.r.parsed(node, "size", parse_size_test),
        }

    def name(self, node: Node, what: str) -> str | None:
        word = self.r.word(node, what)
        if word and not NAME.fullmatch(word.text):
            self.r.problem(
                word, f'{what} "{word.text}" has other than letters, digits and _ . @ + -; rename it'
            )
        return word.text if word else None

    def names(self, node: Node, what: str) -> tuple[str, ...]:
        return tuple([word.text for word in self.r.words(node, what) if self.name(word, what)])

    def to(self, node: Node, what: str, *, names_known: bool = True) -> To:
        places = [self._place(word, names_known) for word in self.r.words(node, what)]
        if len(places) == 1:
            return places[0]
        names = {name: None for to in places for name in to.names}
        networks = {network: None for to in places for network in to.networks}
        return To(tuple(names), tuple(networks))

    def _place(self, word: Scalar, names_known: bool) -> To:
        """A word of the policy, or a domain or network that is written out.

        The latter is remembered, since rebinding is judged by it.
        """
        if names_known:
            defined = self.v.destinations.get(word.text) or self.v.apps.get(word.text)
            if defined:
                return defined.to
        try:
            if looks_like_network(word.text):
                to = To((), (parse_network(word.text),))
            elif "." in word.text or "*" in word.text:
                to = To((parse_domain(word.text),), ())
            else:
                known = (*self.v.destinations, *self.v.apps) if names_known else ()
                kinds = "a destination, a domain or a CIDR" if names_known else "a domain or a CIDR"
                cure = did_you_mean(word.text, known) or "; define it, or write the whole name"
                raise ValueError(f'"{word.text}" is not {kinds}{cure}')
        except ValueError as error:
            self.r.problem(word, str(error))
            return To()
        if names_known:
            self.v.inline.setdefault(word.text, Destination(word.text, to, word.at))
        return to

    def match(self, node: Node | None, what: str) -> Match | None:
        if node is None:
            return None
        found = self.r.mapping(node, what, grammar.MATCH)
        read = self._readers
        return Match(**{key: read[key](value, f"{key} in {what}") for key, value in found.items()})

    def _tunnels(self, node: Node, what: str) -> tuple[str, ...]:
        return tuple([word.text for word in self.r.words(node, what) if self.tunnel(word)])

    def _one_of[T](self, node: Node, what: str, kind: str, known: Mapping[str, T]) -> tuple[T, ...]:
        return tuple([known[text] for text in self._known(node, what, kind, known)])

    def _known(self, node: Node, what: str, kind: str, known: Collection[str]) -> tuple[str, ...]:
        words = []
        for word in self.r.words(node, what):
            if word.text in known:
                words.append(word.text)
            else:
                cure = (
                    did_you_mean(word.text, known)
                    or f"; define it, or use one of {', '.join(known) or 'none'}"
                )
                self.r.problem(word, f'"{word.text}" is not a {kind} of this policy{cure}')
        return tuple(words)

    def _each[T](self, node: Node, what: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        kind = what.partition(" ")[0]
        values = [self.r.parsed(word, kind, parse) for word in self.r.words(node, what)]
        return tuple([value for value in values if value is not None])

    def _shaped(self, node: Node, what: str, shape: re.Pattern[str], wanted: str) -> tuple[str, ...]:
        words = self.r.words(node, what)
        for word in words:
            if not shape.fullmatch(word.text):
                self.r.problem(word, f'"{word.text}" is not {wanted}')
        return tuple(word.text for word in words)

    def tunnel(self, word: Scalar, *, name_only: bool = False) -> bool:
        """Whether a word is good as a tunnel's name, or as a state where states may stand."""
        if word.text in TUNNEL_STATES:
            if name_only:
                self.r.problem(word, f'"{word.text}" is a state of tunnels; write the name of one')
            return not name_only
        if word.text in self._good_tunnels:
            return True
        cure = did_you_mean(word.text, (*TUNNEL_STATES, *(self.v.tunnels or ())))
        if (self.v.tunnels is not None and word.text not in self.v.tunnels) or (
            self.v.tunnels is None and cure
        ):
            cure = cure or f"; use one of {', '.join(self.v.tunnels or ())}, or define it"
            self.r.problem(word, f'"{word.text}" is not a tunnel or a state of one{cure}')
            return False
        if NAME.fullmatch(word.text):
            self._good_tunnels.add(word.text)
        return self.name(word, "a tunnel") is not None
