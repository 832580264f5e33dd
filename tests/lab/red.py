"""Every row of docs/threats.md that names a switch, with its defence taken out: `red.py [ROW ...]`.

Each named test is run as `make test` runs it, with LAB_WITHOUT, and has to fail: fail, not end in an error of
the lab's own. Prints a line for each, and exits 1 where one stays green.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass

from lab.kernel import REPOSITORY

LINE = re.compile(r"^\| `(tests/[\w/.]+::\w+)` \| (`[\w-]+`(?:, `[\w-]+`)*) \| ([A-Z]\d+) \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Red:
    """A row, its test and the switches that make it red."""

    row: str
    test: str
    switches: tuple[str, ...]


def told() -> list[Red]:
    """What the document says."""
    found = LINE.findall((REPOSITORY / "docs/threats.md").read_text())
    return [Red(row, test, tuple(re.findall(r"[\w-]+", switches))) for test, switches, row in found]


def failures(red: Red) -> list[str]:
    """What pytest says of the cases that fail; where cases are named after rows, only those of this row."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", red.test],
        cwd=REPOSITORY,
        env={**os.environ, "LAB_WITHOUT": ",".join(red.switches), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    of_rows = re.search(r"\[\w+-[A-Z]\d+ ", done.stdout)
    return [line for line in lines if not of_rows or f"-{red.row} " in line]


def main() -> None:
    """Run them one after the other."""
    wanted = set(sys.argv[1:])
    green = 0
    for red in told():
        if wanted and red.row not in wanted:
            continue
        failed = failures(red)
        green += not failed
        why = failed[0].partition(" - ")[2] if failed else "GREEN"
        print(
            f"{red.row:4} {red.test.rpartition('::')[2]}, without {', '.join(red.switches)}: {why}",
            flush=True,
        )
    sys.exit(green > 0)


if __name__ == "__main__":
    main()
