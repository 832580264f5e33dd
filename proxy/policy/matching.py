"""From nodes to tests: what may stand in `match`, `unless`, and in the claims of a proof.

Every word is held against the vocabulary of the policy; a word that nobody defined is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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

    def name(self, node: Node, what: str) -> str | None:
        word = self.r.word(node, what)
        if word and not NAME.fullmatch(word.text):
            self.r.problem(
                word, f'{what} "{word.text}" has other than letters, digits and _ . @ + -; rename it'
            )
        return word.text if word else None

    def names(self, node: Node, what: str) -> tuple[str, ...]:
        return tuple(word.text for word in self.r.words(node, what) if self.name(word, what))

    def to(self, node: Node, what: str, *, names_known: bool = True) -> To:
        names: dict[str, None] = {}
        networks: dict[Any, None] = {}
        words = self.r.words(node, what)
        for word in words:
            defined = (
                self.v.destinations.get(word.text) or self.v.apps.get(word.text) if names_known else None
            )
            to = defined.to if defined else self._place(word, names_known)
            if len(words) == 1:
                return to
            names.update(dict.fromkeys(to.names))
            networks.update(dict.fromkeys(to.networks))
        return To(tuple(names), tuple(networks))

    def _place(self, word: Scalar, names_known: bool) -> To:
        """A domain or network that is written out; remembered, since rebinding is judged by it."""
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
        values = {key: self._test(key, value, f"{key} in {what}") for key, value in found.items()}
        return Match(**values)

    def _test(self, key: str, node: Node, what: str) -> Any:
        r = self.r
        match key:
            case "zone":
                return self._known(node, what, "zone", self.v.zones)
            case "group":
                return self._known(node, what, "group", self.v.groups)
            case "posture":
                return self._known(node, what, "posture", self.v.postures)
            case "window":
                return self._known(node, what, "window", self.v.windows)
            case "user" | "device":
                return self.names(node, what)
            case "to":
                return self.to(node, what)
            case "port":
                return self._each(node, what, parse_port)
            case "protocol":
                return tuple(Protocol(text) for text in self._known(node, what, "protocol", tuple(Protocol)))
            case "tunnel":
                return tuple(word.text for word in r.words(node, what) if self.tunnel(word))
            case "method":
                return self._shaped(node, what, TOKEN, "a method; write it in capitals, such as GET")
            case "path":
                return self._each(node, what, parse_path)
            case "content_type":
                return self._shaped(
                    node, what, MEDIA, "a media type; write it in lower case, as in text/html"
                )
            case "transfer":
                return tuple(Transfer(text) for text in self._known(node, what, "transfer", tuple(Transfer)))
            case "size":
                return r.parsed(node, "size", parse_size_test)
        raise AssertionError(f"{key} is in the table of keys and has no reader")

    def _known(self, node: Node, what: str, kind: str, known: Iterable[str]) -> tuple[str, ...]:
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
        values = (self.r.parsed(word, what.partition(" ")[0], parse) for word in self.r.words(node, what))
        return tuple(value for value in values if value is not None)

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
        cure = did_you_mean(word.text, (*TUNNEL_STATES, *(self.v.tunnels or ())))
        if (self.v.tunnels is not None and word.text not in self.v.tunnels) or (
            self.v.tunnels is None and cure
        ):
            cure = cure or f"; use one of {', '.join(self.v.tunnels or ())}, or define it"
            self.r.problem(word, f'"{word.text}" is not a tunnel or a state of one{cure}')
            return False
        return self.name(word, "a tunnel") is not None
