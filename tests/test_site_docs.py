"""docs/site.md is true: it names every key that a site file may have, and its file is read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from proxy import config, paths
from proxy.config import MAX_FLOWS, MAX_NAMES, Site, read_site

TEXT = (Path(__file__).parent.parent / "docs" / "site.md").read_text()


def keys() -> set[str]:
    """Every key that the reader of site files knows: what it passes to `mapping`, as words or as a table."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(Path(config.__file__).read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "mapping"
        ):
            table = node.args[2]
            found |= set(
                getattr(config, table.id) if isinstance(table, ast.Name) else ast.literal_eval(table)
            )
    return found


def read() -> Site:
    shown = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    return read_site(shown[1].encode(), Path("zonegate.yaml"))


@pytest.mark.parametrize("key", sorted(keys()))
def test_every_key_has_a_row(key: str) -> None:
    assert re.search(rf"^\| `{key}` \|", TEXT, re.MULTILINE)


def test_the_tables_of_the_reader_are_found() -> None:
    assert {"policy", "server_name", "audit", "groups", "flows"} <= keys()


def test_the_file_shows_every_key_and_the_defaults() -> None:
    site = read()
    assert (site.max_flows, site.max_names) == (MAX_FLOWS, MAX_NAMES)
    assert (site.run, site.state) == (paths.SYSTEM_RUN, paths.SYSTEM_STATE)
    assert [person.who for person in site.people] == ["alice", "#1001", "@contractors", "*"]
    shown = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    assert all(re.search(rf"\b{key}:", shown[1]) for key in keys())


def test_the_places_are_those_of_the_commands() -> None:
    environment = {"HOME": "~"}
    for uid in (0, 1000):
        assert f"`{paths.site_file(None, 0, {})}`" in TEXT
        assert str(paths.run_directory(uid, environment)).replace("1000", "UID") in TEXT
        assert str(paths.state_directory(uid, environment)).removesuffix("/zonegate") in TEXT
