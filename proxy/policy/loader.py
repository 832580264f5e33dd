"""From the tree of a file to a model: every key checked, every word typed, every problem collected.

Pure but for the time zone, whose rules the standard library reads from the system's tables.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from proxy.flow import Verdict
from proxy.policy import grammar
from proxy.policy.duties import check_opaque, scan_guard
from proxy.policy.duty_reader import DutyReader
from proxy.policy.kinds import refuse_other_kinds
from proxy.policy.matching import MatchReader, Vocabulary
from proxy.policy.model import (
    RESERVED_IDS,
    App,
    Destination,
    Guard,
    Match,
    Mode,
    Model,
    Posture,
    Rule,
    To,
    Window,
)
from proxy.policy.reading import Reading, one_of
from proxy.policy.source import Map, Node, Scalar, release
from proxy.policy.values import (
    ID,
    domain_matches,
    merge_spans,
    parse_condition,
    parse_date,
    parse_window,
)

_VERDICTS = {"block": Verdict.BLOCK, "tunnel": Verdict.TUNNEL, "direct": Verdict.DIRECT}
_CEILINGS = {"block": Verdict.BLOCK, "tunnel": Verdict.TUNNEL}
_ENTRIES = {
    "guard": (grammar.GUARD, grammar.required(grammar.GUARD)),
    "rule": (grammar.RULE, grammar.required(grammar.RULE)),
}


def read_model(text: bytes, filename: str) -> Model:
    """The model of a policy file. Raises Problems with all that is wrong with it."""
    with _uncollected():
        reading = Reading(text, filename)
        refuse_other_kinds(reading, "policy")
        model = _Loader(reading).model()
        reading.finish()
        release(reading.root)
    assert model is not None
    return model


@contextmanager
def _uncollected() -> Iterator[None]:
    """Many small values are made and none is garbage: a walk over them, again and again, finds nothing."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Loader:
    """What has been defined so far, while the file is read from the top."""

    def __init__(self, reading: Reading) -> None:
        self.r = reading
        self.v = Vocabulary()
        self.m = MatchReader(reading, self.v)
        self.places = DutyReader(reading)
        self.ids: dict[str, int] = {}

    def model(self) -> Model | None:
        r = self.r
        top = r.mapping(r.root, "the policy", grammar.POLICY, grammar.required(grammar.POLICY))
        if version := top.get("policy"):
            r.choice(version, "the version of the language", ("1",))
        name = self.m.name(top["name"], "the policy's name") if "name" in top else None
        timezone = self._timezone(top.get("timezone"))
        self._check_order(top)
        if define := top.get("define"):
            self._define(define)
        if apps := top.get("apps"):
            self._apps(apps)
        guards = [self._guard(node) for node in self._list(top, "guards")]
        rules = [self._rule(node) for node in self._list(top, "rules")]
        if r.problems or name is None or timezone is None:
            return None
        implied = map(scan_guard, self.v.destinations.values())
        model = Model(
            file=r.filename,
            name=name,
            timezone=timezone,
            zones=self.v.zones,
            groups=self.v.groups,
            tunnels=self.v.tunnels or (),
            postures=tuple(self.v.postures.values()),
            destinations=(*self.v.destinations.values(), *self.v.inline.values()),
            windows=tuple(self.v.windows.values()),
            apps=tuple(self.v.apps.values()),
            guards=tuple(guard for guard in (*guards, *implied) if guard),
            rules=tuple(rule for rule in rules if rule),
            patterns=tuple(self.v.patterns.values()),
        )
        check_opaque(r, model)
        return model

    def _check_order(self, top: dict[str, Node]) -> None:
        """A file that was cut short at the end must not have lost its guards."""
        if "guards" in top and "rules" in top and list(top).index("guards") > list(top).index("rules"):
            message = "guards stand below rules, and a file cut short would lose them; move them above"
            self.r.problem(top["guards"], message)

    def _list(self, top: dict[str, Node], key: str) -> tuple[Node, ...]:
        return self.r.items(top[key], f'"{key}"') if key in top else ()

    def _timezone(self, node: Node | None) -> ZoneInfo | None:
        word = self.r.word(node, "the time zone") if node else None
        if node and not word:
            return None
        try:
            return ZoneInfo(word.text if word else "UTC")
        except (ValueError, OSError):  # a key that is no path or not in the tables; ZoneInfoNotFoundError
            pass
        except KeyError:
            pass
        assert word
        self.r.problem(word, f'"{word.text}" is not a time zone; write it as in Europe/Berlin')
        return None

    def _define(self, node: Node) -> None:
        found = self.r.mapping(node, '"define"', grammar.DEFINE, grammar.required(grammar.DEFINE))
        if "zones" in found:
            self.v.zones = self.m.names(found["zones"], "a zone")
        if "groups" in found:
            self.v.groups = self.m.names(found["groups"], "a group")
        if "tunnels" in found:
            self.v.tunnels = self.m.names(found["tunnels"], "a tunnel")
            for word in self.r.words(found["tunnels"], "a tunnel"):
                self.m.tunnel(word)
        for key, value in self._entries(found, "postures", "a posture"):
            self.v.postures[key.text] = self._posture(key, value)
        for key, value in self._entries(found, "patterns", "a pattern"):
            self.v.patterns[key.text] = self.places.pattern(key, value)
        for key, value in self._entries(found, "destinations", "a destination"):
            if "." in key.text:
                self.r.problem(key, f'destination "{key.text}" reads as a domain; name it without a dot')
            self.v.destinations[key.text] = self._destination(key, value)
        for key, value in self._entries(found, "windows", "a window"):
            spans = [
                span
                for word in self.r.words(value, f'window "{key.text}"')
                for span in self.r.parsed(word, "window", parse_window) or ()
            ]
            self.v.windows[key.text] = Window(key.text, merge_spans(spans), key.at)

    def _destination(self, key: Scalar, value: Node) -> Destination:
        what = f'destination "{key.text}"'
        if not isinstance(value, Map):
            return Destination(key.text, self.m.to(value, what, names_known=False), key.at)
        found = self.r.mapping(value, what, grammar.DESTINATION, grammar.required(grammar.DESTINATION))
        to = self.m.to(found["to"], what, names_known=False) if "to" in found else To()
        scan = self.places.scan(found["scan"], what, self.v.patterns) if "scan" in found else None
        quotas = self.places.quotas(key.text, found["quota"], what) if "quota" in found else ()
        opaque = self.r.boolean(found["opaque"], f"opaque of {what}") if "opaque" in found else False
        return Destination(key.text, to, key.at, scan, quotas, opaque or False)

    def _entries(self, found: dict[str, Node], key: str, what: str) -> tuple[tuple[Scalar, Node], ...]:
        if key not in found:
            return ()
        entries = self.r.entries(found[key], f'"{key}"')
        return tuple((name, value) for name, value in entries if self.m.name(name, what))

    def _posture(self, key: Scalar, value: Node) -> Posture:
        what = f'posture "{key.text}"'
        needs = []
        for fact, node in self.r.entries(value, what):
            need = self.r.parsed(node, what, lambda text, fact=fact: parse_condition(fact.text, text))  # type: ignore[misc]  # a default of a lambda is not inferred
            if need:
                needs.append(need)
        if isinstance(value, Map) and not value.entries:
            self.r.problem(value, f"{what} needs nothing and any device would meet it; write what it needs")
        return Posture(key.text, tuple(needs), key.at)

    def _apps(self, node: Node) -> None:
        for key, value in self.r.entries(node, '"apps"'):
            what = f'app "{key.text}"'
            found = self.r.mapping(value, what, grammar.APP, grammar.required(grammar.APP))
            if not self.m.name(key, "an app") or len(found) < len(grammar.APP):
                continue
            to = self.m.to(found["to"], what)
            title, url = self.r.text(found["title"], f"title of {what}"), self.r.text(found["url"], what)
            if url and not _leads_to(url, to):
                self.r.problem(
                    found["url"], f'{what} opens "{url}", which its "to" does not hold; correct one'
                )
            named = self.v.destinations.get(key.text)
            if named and named.to != to:
                self.r.problem(key, f'{what} and destination "{key.text}" differ; rename one of them')
            self.v.apps[key.text] = App(key.text, title or "", url or "", to, key.at)

    def _entry(self, node: Node, kind: str) -> tuple[str, dict[str, Node]] | None:
        """The id and the values of a rule or guard; None where it is of no use."""
        given = node.get("id") if isinstance(node, Map) else None
        label = f'{kind} "{given.text}"' if isinstance(given, Scalar) else kind
        found = self.r.mapping(node, label, *_ENTRIES[kind])
        word = self.r.word(found["id"], f"the id of a {kind}") if "id" in found else None
        if word is None:
            return None
        if not ID.fullmatch(word.text):
            self.r.problem(word, f'id "{word.text}" has other than lower case, digits and . _ -; rename it')
        elif word.text in RESERVED_IDS:
            self.r.problem(word, f'id "{word.text}" is a built-in reason; choose another')
        elif word.text in self.ids:
            self.r.problem(word, f'id "{word.text}" is taken on line {self.ids[word.text]}; choose another')
        self.ids.setdefault(word.text, word.at.line)
        return label, found

    def _guard(self, node: Node) -> Guard | None:
        entry = self._entry(node, "guard")
        if entry is None:
            return None
        label, found = entry
        at_most = self._verdict(found.get("at_most"), "at_most", _CEILINGS)
        match = self.m.match(found.get("match"), f"match of {label}")
        unless = self.m.match(found["unless"], f"unless of {label}") if "unless" in found else None
        if unless == Match():
            self.r.problem(
                found["unless"], f"unless of {label} holds always, so the guard never bites; remove it"
            )
        if at_most is None or match is None:
            return None
        return Guard(**self._common(node, label, found, match), unless=unless, at_most=at_most)

    def _rule(self, node: Node) -> Rule | None:
        entry = self._entry(node, "rule")
        if entry is None:
            return None
        label, found = entry
        verdict = self._verdict(found.get("verdict"), "verdict", _VERDICTS)
        match = self.m.match(found.get("match"), f"match of {label}")
        via = self.m.names(found["via"], f"via of {label}") if "via" in found else None
        for word in self.r.words(found["via"], f"via of {label}") if "via" in found else ():
            self.m.tunnel(word, name_only=True)
        mode = self.r.choice(found["mode"], "mode", ("enforce", "report")) if "mode" in found else "enforce"
        if via is not None and verdict in (Verdict.BLOCK, Verdict.DIRECT):
            self.r.problem(found["via"], f"{label} has via and no tunnel verdict; remove via or write tunnel")
        if verdict is None or match is None or mode is None:
            return None
        return Rule(**self._common(node, label, found, match), verdict=verdict, via=via, mode=Mode(mode))

    def _common(self, node: Node, label: str, found: dict[str, Node], match: Match) -> dict[str, Any]:
        because = self.r.text(found["because"], f"because of {label}") if "because" in found else ""
        owner = self.r.text(found["owner"], f"owner of {label}") if "owner" in found else ""
        expires = self.r.parsed(found["expires"], "expires", parse_date) if "expires" in found else None
        return {
            "id": self.r.text(found["id"], label),
            "match": match,
            "at": node.at,
            "because": because,
            "owner": owner,
            "expires": expires,
        }

    def _verdict(self, node: Node | None, key: str, known: Mapping[str, Verdict]) -> Verdict | None:
        word = self.r.word(node, key) if node else None
        if word is None:
            return None
        if word.text not in known:
            self.r.problem(word, f'{key} "{word.text}" is not a verdict; write {one_of(known)}')
        return known.get(word.text)


def _leads_to(url: str, to: To) -> bool:
    """Whether a URL is plain http or https and its host is among the destinations."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    plain = parts.scheme in ("http", "https") and not parts.username and not parts.password
    return plain and any(domain_matches(pattern, host) for pattern in to.names)
