"""docs/threats.md is true: every test that it names exists, and every row of this slice names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from lab import red
from lab.kernel import REPOSITORY
from lab.weakened import BY_THE_LAB, WEAKENINGS

TEXT = (REPOSITORY / "docs/threats.md").read_text()
ROW = re.compile(r"^\| ([A-Z]\d+) \|(.*)\|$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w./]+?)(?:::(\w+))?`")
ROWS = {
    *(f"N{n}" for n in range(1, 14)), *(f"D{n}" for n in range(1, 7)), *(f"T{n}" for n in range(1, 8)),
    *(f"L{n}" for n in range(1, 8)), *(f"B{n}" for n in range(1, 13)), *(f"I{n}" for n in range(1, 12)),
    "R1", "R2", "A1", "P1", "U1", "S1",
}  # fmt: skip
# The rows that have to be shown red, each by a switch.
RED = {
    *(f"N{n}" for n in range(1, 14)), *(f"D{n}" for n in range(1, 7)), *(f"T{n}" for n in range(1, 6)),
    "L1", "L2", "L3", "L4", "L7", "B5", "B11", "B12", "I10",
}  # fmt: skip
SLICE = {*RED, *(f"B{n}" for n in (1, 2, 3, 4, 6, 7, 8, 9)), "I3"}
# Switches that make no row red by themselves: they are one lock of several, or a tool of another control.
HELPERS = {"expiry-check"}


def functions_of(file: Path) -> set[str]:
    """The test functions of a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_row_is_there_once() -> None:
    """The table has all rows, each once."""
    found = [row for row, _ in ROW.findall(TEXT)]
    assert sorted(found) == sorted(ROWS)


def test_every_test_that_is_named_exists() -> None:
    """A test that was renamed or never written is no cover."""
    missing = [
        f"{file}::{test}"
        for file, test in NAMED.findall(TEXT)
        if not (REPOSITORY / file).exists() or (test and test not in functions_of(REPOSITORY / file))
    ]
    assert not missing


def test_every_row_of_the_slice_names_a_test() -> None:
    """And every other row names one or says plainly that it is not yet, or not applicable."""
    for row, line in ROW.findall(TEXT):
        named = [test for _, test in NAMED.findall(line) if test]
        if row in SLICE:
            assert named and "not yet" not in line, f"{row} names no test"
        else:
            assert NAMED.search(line) or "not yet" in line, f"{row} neither names a test nor says why not"


def test_every_row_that_is_shown_red_names_its_test_and_its_switch() -> None:
    """And that test is named in the row itself. `make lab-red` runs them."""
    shown = red.told()
    assert {one.row for one in shown} == RED
    lines = dict(ROW.findall(TEXT))
    for one in shown:
        file, _, test = one.test.partition("::")
        assert test in functions_of(REPOSITORY / file), one
        assert set(one.switches) <= WEAKENINGS.keys() | BY_THE_LAB, one
        assert f"`{one.test}`" in lines[one.row], one


def test_every_switch_is_told() -> None:
    """The table of switches is the lab's own."""
    told = set(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE))
    assert told == (WEAKENINGS.keys() | BY_THE_LAB) - HELPERS
