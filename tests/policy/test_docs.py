"""The guide, run: its files are written, its commands typed, its outputs compared word for word."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import zonegate

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EDIT = re.compile(r"s/(.*?)/(.*?)/")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind it on the fence, and its lines."""

    kind: str
    about: str
    text: str


def blocks(name: str) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall((DOCS / name).read_text())]


def typed(command: str) -> str:
    """What a person sees: standard output and standard error in their order."""
    words = shlex.split(command)
    assert words[0] == "zonegate"
    return CliRunner().invoke(zonegate, words[1:], catch_exceptions=False).output


def test_the_guide_can_be_followed_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = 0
    for block in blocks("policy-guide.md"):
        if block.kind == "yaml" and block.about:
            Path(block.about).write_text(block.text)
            continue
        if block.kind != "console":
            continue
        policy = Path("acme.policy.yaml")
        kept = policy.read_text()
        if edit := _EDIT.search(block.about):
            assert edit[1] in kept, block.about
            edited = kept.replace(edit[1], edit[2])
            target = Path(block.about.partition(" ")[0]) if "=" in block.about else policy
            target.write_text(edited)
        command, *wanted = block.text.rstrip("\n").split("\n")
        assert typed(command.removeprefix("$ ")).rstrip("\n").split("\n") == wanted, command
        policy.write_text(kept)
        commands += 1
    assert commands >= 7


def test_the_script_of_the_ci_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = next(block for block in blocks("policy-ci.md") if block.about == "ci.sh")
    (tmp_path / "policies").mkdir()
    for block in blocks("policy-guide.md"):
        if block.kind == "yaml" and block.about:
            (tmp_path / "policies" / block.about).write_text(block.text)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.test"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setenv("BASE", "HEAD")
    monkeypatch.chdir(tmp_path)
    for line in script.text.splitlines():
        words = shlex.split(line.partition(">")[0])
        if words[0] == "zonegate":
            arguments = ["HEAD" if word == "$BASE" else word for word in words[1:]]
            ran = CliRunner().invoke(zonegate, arguments, catch_exceptions=False)
            assert ran.exit_code == 0, (line, ran.output)


def test_the_ci_page_names_options_that_exist() -> None:
    text = (DOCS / "policy-ci.md").read_text()
    plugin = (DOCS.parent / "proxy" / "policy" / "pytest_plugin.py").read_text()
    named = set(re.findall(r"--policy-[a-z-]+", text))
    assert named and all(f'"{option}"' in plugin for option in named)
