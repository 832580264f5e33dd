"""The schemas for editors, against good files and bad ones, by a validator of the few words they use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_source import WORDS

from proxy.policy.schemas import texts

POLICIES = Path(__file__).parents[2] / "policies"
SCHEMAS = {name: json.loads(text) for name, text in texts().items()}


class _AsEditor(yaml.SafeLoader):
    """YAML as editors read it (1.2 core): words such as `no` stay words, and so do dates."""


_AsEditor.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def is_valid(value: Any, schema: Any) -> bool:
    """JSON Schema draft-07, as far as the schemas of policies go; a word beyond that fails the test."""
    known = {"type", "enum", "anyOf", "items", "minItems", "uniqueItems", "properties", "required"}
    known |= {"additionalProperties", "propertyNames", "pattern", "minLength", "minimum", "maximum"}
    known |= {"description", "$schema", "$id", "title"}
    assert set(schema) <= known, set(schema) - known
    if "anyOf" in schema and not any(is_valid(value, option) for option in schema["anyOf"]):
        return False
    if "enum" in schema and not any(value == o and type(value) is type(o) for o in schema["enum"]):
        return False
    if "type" in schema and not is_type(value, schema["type"]):
        return False
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        unique = len({json.dumps(item) for item in value}) == len(value) or not schema.get("uniqueItems")
        items = schema.get("items", {})
        return unique and len(value) >= schema.get("minItems", 0) and all(is_valid(v, items) for v in value)
    return not isinstance(value, dict) or is_valid_map(value, schema)


def is_valid_map(value: dict[str, Any], schema: Any) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", ())):
        return False
    for name, member in value.items():
        if not is_valid(name, schema.get("propertyNames", {})):
            return False
        form = properties.get(name, others)
        if form is False or (isinstance(form, dict) and not is_valid(member, form)):
            return False
    return True


def is_type(value: Any, kind: str) -> bool:
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    raise AssertionError(kind)


def as_editor(text: str) -> Any:
    return yaml.load(text, Loader=_AsEditor)  # the safe loader with fewer words


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.name)
def test_what_ships_is_valid(path: Path) -> None:
    schema = SCHEMAS["policy-test-1.json" if path.name.endswith(".test.yaml") else "policy-1.json"]
    assert is_valid(as_editor(path.read_text()), schema)


# What a schema can see: keys, closed sets of words, shapes. What a word refers to, only the loader knows.
SEEN = (
    "a mistyped key",
    "a verdict of another product",
    "a size without a comparison",
    "a port beyond",
    "a protocol",
    "a method in small letters",
    "a media type",
    "a date",
    "a mode",
    "a guard that allows direct",
    "an empty list",
    "a value twice",
    "no verdict",
    "a version",
    "a window",
    "a list where a map is",
)


@pytest.mark.parametrize("bad", [bad for bad in WORDS if bad.id in SEEN], ids=lambda bad: bad.id)
def test_an_editor_underlines_what_the_loader_refuses(bad: Any) -> None:
    assert not is_valid(as_editor(bad.text), SCHEMAS["policy-1.json"])


def test_every_row_that_an_editor_should_see_is_in_the_corpus() -> None:
    assert set(SEEN) <= {bad.id for bad in WORDS}
