"""Policy and test files on disk, for the commands and the pytest plugin. The judge never imports this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from proxy.policy import Policy, load
from proxy.policy.examples import Suite, policy_path, read_suite
from proxy.policy.source import MAX_BYTES, Problem, Problems

POLICY_SUFFIX, TEST_SUFFIX = ".policy.yaml", ".test.yaml"
NOTHING_HERE = "there is no folder policies here; name files, or a folder of them"
NO_POLICY = "no policy there; name *.policy.yaml files or a folder of them"


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; of a huge one enough to say so. Raises Problems where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise Problems([Problem(str(path), 1, 1, f"{reason.lower()}; check the path")]) from None


def load_policy(path: Path) -> Policy:
    """The policy of a file. Raises Problems."""
    return load(read_bytes(path), str(path))


def load_suite(path: Path) -> Suite:
    """The tests of a file, with the policy that it names beside it. Raises Problems."""
    text = read_bytes(path)
    named = policy_path(text, str(path))
    beside = path.parent / named.text
    if not beside.exists():
        message = f'there is no policy "{named.text}"; write its path from the folder of this file'
        raise Problems([Problem(*named.at, message)], text.decode())
    return read_suite(text, str(path), load_policy(beside))


def find(paths: Iterable[Path], suffix: str) -> Iterator[Path]:
    """The files given, and those below the folders given whose names end so, in order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob(f"*{suffix}") if found.is_file())
        else:
            yield path
