"""`zonegate ca`: what it makes, what it says, and the one line when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from proxy import inspection_ca
from proxy.certificates import fingerprint
from proxy.cli import zonegate

POLICY = """
policy: 1
name: p
define: {zones: [corporate]}
rules:
  - {id: read, match: {to: "*.dropzone.example", method: GET}, verdict: tunnel}
  - {id: rest, match: {to: git.corp.example}, verdict: tunnel}
"""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(zonegate, ["ca", *map(str, arguments)])


def test_a_ca_is_made_shown_and_rotated(tmp_path: Path) -> None:
    policy = tmp_path / "a.policy.yaml"
    policy.write_text(POLICY)
    directory = tmp_path / "inspection"
    made = call("create", "--directory", directory, "--name", "acme")
    assert made.exit_code == 0 and "acme (root 1) (signs)" in made.output
    root = inspection_ca.read(directory).root.certificate
    (told,) = json.loads(call("show", "--directory", directory, "--json").output)
    assert (told["name"], told["until"]) == ("acme (root 1)", root.not_valid_after_utc.isoformat())
    shown = call("show", "--directory", directory, "--policy", policy)
    assert shown.exit_code == 0
    assert fingerprint(root.public_bytes(Encoding.DER)).removeprefix("sha256:") in shown.output
    assert "names        dropzone.example, each with all below it" in shown.output
    assert f"{root.not_valid_after_utc:%Y-%m-%d}" in shown.output
    rotated = call("rotate", "--directory", directory)
    assert "acme (root 2) (signs)" in rotated.output and "acme (root 1) (trusted" in rotated.output
    distrusted = call("rotate", "--directory", directory, "--distrust")
    assert "acme (root 3) (signs)" in distrusted.output and "root 2" not in distrusted.output


@pytest.mark.parametrize("words", [("show",), ("rotate",)])
def test_without_a_ca_the_cure_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    found = call(*words, "--directory", tmp_path / "none")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "zonegate ca create" in found.stderr and found.stderr.count("\n") == 1


def test_a_second_ca_is_not_made_over_the_first(tmp_path: Path) -> None:
    call("create", "--directory", tmp_path / "ca")
    again = call("create", "--directory", tmp_path / "ca")
    assert again.exit_code == 2 and "zonegate ca rotate" in again.stderr
