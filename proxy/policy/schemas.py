"""The JSON Schemas for editors, made of the same tables of keys that the loader checks.

`python -m proxy.policy.schemas` writes them beside this file; a test holds them to the tables.
"""

from __future__ import annotations

import json
from pathlib import Path

from proxy.policy.examples import SUITE
from proxy.policy.grammar import POLICY, schema

FOLDER = Path(__file__).parent / "schema"


def texts() -> dict[str, str]:
    """The text of each schema file by its name."""
    made = {
        "policy-1.json": schema(POLICY, "zonegate policy, version 1", "policy-1.json"),
        "policy-test-1.json": schema(SUITE, "zonegate policy test, version 1", "policy-test-1.json"),
    }
    return {name: json.dumps(value, indent=1) + "\n" for name, value in made.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
