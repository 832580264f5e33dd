"""Policies as they were at a git revision."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from proxy.policy import Policy, load
from proxy.policy.diff import compare
from proxy.policy.files import load_policy
from proxy.policy.source import Problem, Problems
from proxy.policy.telling import tell_changes

_PATIENCE_S = 30
_OPTIONS = ("-e", "--git-dir")


def policy_at(path: Path, revision: str) -> Policy | None:
    """The policy of a file as it was at a revision, None where it was not there. Raises Problems."""
    name = f"{path}@{revision}"
    if _git(path, "rev-parse", "--git-dir") is None:
        message = f'this folder is in no git repository, and there is no file "{revision}"; write a file'
        raise Problems([Problem(name, 1, 1, message)])
    text = _git(path, "cat-file", "-e", f"{revision}^{{commit}}")
    if text is None:
        raise Problems([Problem(name, 1, 1, f'"{revision}" is not a git revision here; check its name')])
    found = _git(path, "show", f"{revision}:./{path.name}")
    return None if found is None else load(found, name)


def load_either(what: str, path: Path | None) -> Policy:
    """The policy of a file, or of `REV:FILE`. Raises Problems."""
    if Path(what).exists():
        return load_policy(Path(what))
    revision, colon, name = what.partition(":")
    file = Path(name) if colon else path
    if file is None:
        raise Problems([Problem(what, 1, 1, "no such file; write a file, or REVISION:FILE")])
    found = policy_at(file, revision)
    if found is None:
        raise Problems([Problem(what, 1, 1, f"{file} is not in {revision}; check the name")])
    return found


def tell_since(path: Path, revision: str) -> Iterator[str]:
    """What changed in the verdicts of a policy since a revision, line by line."""
    try:
        old = policy_at(path, revision)
    except Problems as problems:
        yield str(problems)
        return
    yield f"since {revision}:"
    if old is None:
        yield "  the policy is new"
        return
    yield from (f"  {line}" for line in tell_changes(compare(old, load_policy(path))))


def _git(path: Path, *arguments: str) -> bytes | None:
    """What git says in the folder of a file, None where it fails. Revisions never count as options."""
    folder = path.parent if path.parent.is_dir() else Path()
    if any(argument.startswith("-") and argument not in _OPTIONS for argument in arguments):
        return None
    try:
        ran = subprocess.run(  # no shell, and no argument can be an option
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
