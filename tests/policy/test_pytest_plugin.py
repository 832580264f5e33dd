"""The plugin as an author of policies meets it, and as a foreign suite does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

POLICY = """\
policy: 1
name: tiny
define: {zones: [corporate], destinations: {code: [git.corp.example]}}
guards:
  - {id: proof, match: {}, unless: {tunnel: attested}, at_most: block, because: proof first}
rules:
  - {id: code, match: {to: code, protocol: https, method: GET}, verdict: tunnel}
"""
TESTS = """\
policy_test: 1
policy: tiny.policy.yaml
given: {tunnel: attested, method: GET}
tests:
  - {id: code opens, flow: {host: git.corp.example}, expect: tunnel, by: code}
  - {id: others do not, each: {host: [a.test, b.test]}, expect: block}
  - {id: no proof, flow: {host: git.corp.example, tunnel: stale}, expect: block, by: proof}
prove:
  - {id: never direct, never: direct}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "tiny.policy.yaml").write_text(POLICY)
    (tmp_path / "tiny.test.yaml").write_text(TESTS)
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """pytest in a process of its own, with the plugin as it is installed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_tests_and_claims_pass_and_the_coverage_is_told(suite: Path) -> None:
    code, out = run(suite, "-v", "--policy-cov-fail-under=100")
    assert code == 0, out
    assert "tiny.test.yaml::others do not[host=a.test] PASSED" in out
    assert "tiny.test.yaml::prove::never direct PASSED" in out
    assert "tiny: 2 of 2 rules and guards, 100%" in out


def test_a_failure_is_told_in_the_words_of_the_policy_without_a_traceback(suite: Path) -> None:
    text = TESTS.replace("expect: tunnel, by: code", "expect: direct, by: proof")
    (suite / "tiny.test.yaml").write_text(text)
    code, out = run(suite)
    assert code == 1
    assert "expected direct, got tunnel, by rule code" in out
    assert "expected it by proof, it was by rule code" in out
    assert "corporate: somebody to git.corp.example:443 by https" in out
    assert "guard proof: lifted by its exception" in out
    assert "tiny.policy.yaml:7:5" in out
    assert "Traceback" not in out and "def runtest" not in out


def test_a_claim_that_does_not_hold_shows_a_flow(suite: Path) -> None:
    (suite / "tiny.test.yaml").write_text(TESTS.replace("never: direct", "never: tunnel"))
    code, out = run(suite)
    assert code == 1
    assert "this flow gets tunnel, by rule code" in out and "git.corp.example" in out


def test_a_rule_without_a_test_lowers_the_coverage_and_an_example_is_offered(suite: Path) -> None:
    kept = [line for line in TESTS.splitlines() if "id: no proof" not in line]
    (suite / "tiny.test.yaml").write_text("\n".join(kept))
    assert run(suite)[0] == 0
    code, out = run(suite, "--policy-cov-fail-under=100")
    assert code == 1
    assert "guard proof decided no test flow" in out and "by: proof}" in out


def test_a_mutant_that_no_test_kills_is_named(suite: Path) -> None:
    kept = [line for line in TESTS.splitlines() if "id: no proof" not in line]
    (suite / "tiny.test.yaml").write_text("\n".join(kept))
    code, out = run(suite, "--policy-mutants")
    assert code == 1
    assert 'lifting guard "proof" survives: block becomes tunnel' in out
    (suite / "tiny.test.yaml").write_text(TESTS)
    assert run(suite, "--policy-mutants")[0] == 0


def test_a_broken_policy_is_one_error_with_its_place(suite: Path) -> None:
    (suite / "tiny.policy.yaml").write_text(POLICY.replace("verdict: tunnel", "verdict: allow"))
    code, out = run(suite)
    assert code == 2
    assert "tiny.policy.yaml:7:" in out and 'verdict "allow" is not a verdict' in out
    assert "Traceback" not in out


def test_workers_of_xdist_report_the_same_coverage(suite: Path) -> None:
    code, out = run(suite, "-n2", "--policy-cov-fail-under=100")
    assert code == 0, out
    assert "tiny: 2 of 2 rules and guards, 100%" in out


def test_junit_carries_what_decided(suite: Path) -> None:
    run(suite, "--junitxml=out.xml")
    text = (suite / "out.xml").read_text()
    assert '<property name="policy_decided_by" value="code"' in text and "policy_hash" in text


def test_the_difference_to_a_revision_is_told_at_the_end(suite: Path) -> None:
    git = ["git", "-C", str(suite), "-c", "user.name=a", "-c", "user.email=a@b.test"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (suite / "tiny.policy.yaml").write_text(POLICY.replace(", method: GET", ""))
    code, out = run(suite, "--policy-diff=HEAD")
    assert code == 0, out
    assert "since HEAD:" in out and "looser: yes, 1 of 1 changes" in out
    assert "+ block by default -> tunnel by code" in out


def test_a_foreign_suite_is_left_alone(tmp_path: Path) -> None:
    """Its own `*.test.yaml` is not collected, nothing is printed, and hardly anything is imported."""
    (tmp_path / "other.test.yaml").write_text("stages:\n  - name: not ours\n")
    (tmp_path / "test_own.py").write_text(
        "import os, pathlib, sys\n"
        "def test_own():\n"
        "    pathlib.Path(os.environ['SEEN']).write_text('\\n'.join(sys.modules))\n"
    )
    seen = {}
    for name, arguments in (("with", ()), ("without", ("-p", "no:zonegate"))):
        os.environ["SEEN"] = str(tmp_path / name)
        code, out = run(tmp_path, *arguments)
        assert code == 0, out
        assert "1 passed" in out and "policy" not in out
        seen[name] = set((tmp_path / name).read_text().split())
    del os.environ["SEEN"]
    assert seen["with"] - seen["without"] == {"proxy", "proxy.policy", "proxy.policy.pytest_plugin"}
