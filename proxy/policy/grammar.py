"""The table of keys: what may be written where. The loader checks against it, the schema is made of it.

A form is a fragment of JSON Schema (draft-07) for editors. The loader is stricter than any form: it
reads every scalar as text and types it itself; an editor, which has YAML's own types, must accept a
number where a number may be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.flow import Protocol, Transfer
from proxy.policy.model import BUILT_IN_PATTERNS, QUOTA_EVERY, QUOTA_PER, TUNNEL_STATES

type Form = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a map: what its value looks like, and a line for the person who writes it."""

    form: Form
    doc: str
    required: bool = False


type Table = Mapping[str, Key]


def text(pattern: str = "", **more: Any) -> Form:
    return {"type": "string", "minLength": 1, **({"pattern": pattern} if pattern else {}), **more}


def choice(*words: str) -> Form:
    return {"enum": list(words)}


def many(form: Form) -> Form:
    """One, or a list of one and more."""
    return {"anyOf": [form, {"type": "array", "items": form, "minItems": 1, "uniqueItems": True}]}


def listed(form: Form) -> Form:
    return {"type": "array", "items": form}


def named(form: Form, pattern: str) -> Form:
    """A map whose keys are free names."""
    return {"type": "object", "propertyNames": {"pattern": pattern}, "additionalProperties": form}


def table(keys: Table) -> Form:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, key in keys.items() if key.required],
        "properties": {name: {**key.form, "description": key.doc} for name, key in keys.items()},
    }


_NAME = "^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}$"
_ID = "^[a-z0-9][a-z0-9._-]{0,63}$"
_AMOUNT = r"(0|[1-9][0-9]*) ?(B|KiB|MiB|GiB|TiB)$"
_SIZE = rf"^(<=|>=|<|>) ?{_AMOUNT}"
_PORTS = r"^(0|[1-9][0-9]{0,4})(-(0|[1-9][0-9]{0,4}))?$"
_WINDOW = "^[a-z,-]+ [0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}$"
_NAMES = many(text(_NAME))
_PORT = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, text(_PORTS)]}
_FACT = {"anyOf": [{"type": "boolean"}, {"type": "number"}, text()]}
_TEXT = text()

MATCH: Table = {
    "zone": Key(_NAMES, "zones of the clients; any of them"),
    "user": Key(_NAMES, "users; any of them"),
    "group": Key(_NAMES, "groups, of which a user may be in several; any of them"),
    "device": Key(_NAMES, "devices; any of them"),
    "posture": Key(_NAMES, "postures that the device meets; any of them"),
    "to": Key(many(_TEXT), "destinations, apps, domains, *.domains, networks, addresses; any of them"),
    "port": Key(many(_PORT), "ports and ranges of ports; any of them"),
    "protocol": Key(many(choice(*(p.value for p in Protocol))), "protocols; each includes its narrower ones"),
    "window": Key(_NAMES, "time windows; any of them"),
    "tunnel": Key(_NAMES, f"the state of the tunnel ({', '.join(TUNNEL_STATES)}) or a tunnel's name"),
    "method": Key(many(text("^[A-Z][A-Z0-9_-]{0,31}$")), "HTTP methods, in capitals; any of them"),
    "path": Key(many(text("^/")), "HTTP paths with all that is below them; any of them"),
    "content_type": Key(many(text("^[^/ ]+/[^/ ]+$")), "media types of the body, or type/*; any of them"),
    "transfer": Key(many(choice(*(t.value for t in Transfer))), "the direction of the body or the flow"),
    "size": Key(text(_SIZE), 'bytes of one transfer, such as ">10MiB"'),
}

_ENTRY: Table = {
    "id": Key(text(_ID), "its name in answers, records, tests and proofs", required=True),
    "match": Key(table(MATCH), "what must hold, all of it; {} holds always", required=True),
    "because": Key(_TEXT, "the reason that a refused user reads"),
    "owner": Key(_TEXT, "who answers for it"),
    "expires": Key(text("^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), "its last day; a grant does not match after it"),
}

GUARD: Table = {
    **_ENTRY,
    "unless": Key(table(MATCH), "the exception, all of it"),
    "at_most": Key(choice("block", "tunnel"), "the verdict that no rule may exceed here", required=True),
}

RULE: Table = {
    **_ENTRY,
    "verdict": Key(choice("block", "tunnel", "direct"), "what becomes of the flow", required=True),
    "via": Key(_NAMES, "the tunnels that may carry it; all of the zone where it is not given"),
    "mode": Key(choice("enforce", "report"), "report: evaluated and recorded, never enforced"),
}

APP: Table = {
    "title": Key(_TEXT, "what a person is shown", required=True),
    "url": Key(text("^https?://"), "where it opens", required=True),
    "to": Key(many(_TEXT), "its destinations", required=True),
}

SCAN: Table = {
    "block": Key(_NAMES, "patterns that end a transfer before they have gone"),
    "report": Key(_NAMES, "patterns that are recorded, and go"),
}

QUOTA: Table = {
    "upload": Key(text(f"^{_AMOUNT}"), "bytes that may go there in a period, such as 1GiB"),
    "download": Key(text(f"^{_AMOUNT}"), "bytes that may come from there in a period"),
    "per": Key(choice(*QUOTA_PER), "whom it is for: each user, or all of a zone together", required=True),
    "every": Key(choice(*QUOTA_EVERY), "the period, in the policy's time zone", required=True),
}

DESTINATION: Table = {
    "to": Key(many(_TEXT), "domains, *.domains, networks", required=True),
    "scan": Key(
        {"anyOf": [many(text(_NAME)), table(SCAN)]},
        f"what is looked for in what goes there: {', '.join(BUILT_IN_PATTERNS)}, or a pattern of define",
    ),
    "quota": Key(many(table(QUOTA)), "how much may go there or come from there"),
    "opaque": Key({"enum": [True, False, "true", "false"]}, "true: never looked into; for what pins keys"),
}

PATTERN: Table = {
    "words": Key(many(_TEXT), "words or phrases, in any case of letters", required=True),
}

DEFINE: Table = {
    "zones": Key(_NAMES, "the classes of clients that this policy speaks of", required=True),
    "groups": Key(_NAMES, "the groups of users that it speaks of"),
    "tunnels": Key(_NAMES, "the tunnels that it speaks of; given, no other name is accepted"),
    "postures": Key(named({"type": "object", "additionalProperties": _FACT}, _NAME), "what a device must be"),
    "patterns": Key(named(table(PATTERN), _NAME), "names for words that `scan` looks for"),
    "destinations": Key(
        named({"anyOf": [many(_TEXT), table(DESTINATION)]}, _NAME),
        "names for places: domains, *.domains, networks; or a map, with what else is asked of them",
    ),
    "windows": Key(named(many(text(_WINDOW)), _NAME), "parts of the week, such as mon-fri 07:00-19:00"),
}

POLICY: Table = {
    "policy": Key({"enum": [1, "1"]}, "the version of this language", required=True),
    "name": Key(text(_NAME), "the name of the policy", required=True),
    "timezone": Key(_TEXT, "the time zone of windows and dates, such as Europe/Berlin; UTC if not given"),
    "define": Key(table(DEFINE), "the words that rules use", required=True),
    "apps": Key(named(table(APP), _NAME), "the catalogue"),
    "guards": Key(listed(table(GUARD)), "ceilings, unordered: the strictest that matches wins"),
    "rules": Key(listed(table(RULE)), "ordered: the first that matches decides; none: block", required=True),
}


def required(keys: Table) -> tuple[str, ...]:
    """The keys that must be given."""
    return tuple(name for name, key in keys.items() if key.required)


def schema(keys: Table, title: str, identity: str) -> dict[str, Any]:
    """The draft-07 JSON Schema of a file whose top is this table."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": identity,
        "title": title,
        **table(keys),
    }
