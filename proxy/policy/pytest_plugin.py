"""pytest collects policy tests: every `*.test.yaml` that says `policy_test`, and no other file.

The plugin is installed with zonegate and does nothing in a suite that has no such file. What it needs is
imported when the first one is found. A failure is told in the words of the policy, without a traceback.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from proxy.policy.examples import Case, Claim, Suite

_DECIDED, _POLICY = "policy_decided_by", "policy_file"


class PolicyTestFailed(Exception):
    """The text is the whole story."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("zonegate", "policy tests (zonegate)")
    group.addoption(
        "--policy-cov-fail-under",
        type=float,
        default=None,
        metavar="PERCENT",
        help="fail if fewer of a policy's rules and guards decided a test flow",
    )
    group.addoption(
        "--policy-mutants",
        action="store_true",
        help="also put small faults into each policy and fail for each that no test notices",
    )
    group.addoption(
        "--policy-diff",
        default=None,
        metavar="REF",
        help="tell at the end what changed in each policy's verdicts since a git revision",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Summary(config), "zonegate-policy-summary")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not file_path.name.endswith(".test.yaml"):
        return None
    return PolicyTestFile.from_parent(parent, path=file_path) if _is_suite(file_path) else None


def _is_suite(path: Path) -> bool:
    """Whether a `*.test.yaml` is ours: it says `policy_test`. Nothing is imported to find out."""
    try:
        head = path.read_bytes()[:65536]
    except OSError:
        return False
    return any(line.lstrip(b"{ ").startswith(b"policy_test") for line in head.splitlines())


class PolicyTestFile(pytest.File):
    """One test file."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        from proxy.policy.files import load_suite
        from proxy.policy.source import Problems

        try:
            suite = load_suite(self.path)
        except Problems as problems:
            raise self.CollectError(problems.render()) from None
        for case in suite.cases:
            yield CaseItem.from_parent(self, name=case.id, suite=suite, case=case)
        if suite.claims:
            yield Claims.from_parent(self, name="prove", suite=suite)
        if self.config.getoption("--policy-mutants"):
            yield MutantsItem.from_parent(self, name="mutants", suite=suite)


class _Item(pytest.Item):
    """What the items of a policy test have in common."""

    def __init__(self, *, suite: Suite, line: int = 1, **more: Any) -> None:
        super().__init__(**more)
        self.suite, self._line = suite, line
        self.user_properties.append((_POLICY, suite.policy.model.file))
        self.user_properties.append(("policy_hash", suite.policy.hash))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self._line - 1, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, PolicyTestFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)


class CaseItem(_Item):
    """One example flow."""

    def __init__(self, *, case: Case, **more: Any) -> None:
        super().__init__(line=case.at.line, **more)
        self.case = case

    def runtest(self) -> None:
        from proxy.policy.examples import describe, run, word

        result = run(self.suite.policy, self.case)
        self.user_properties.append((_DECIDED, result.because.id))
        self.user_properties.append(("policy_verdict", word(result.decision.verdict)))
        if result.failures:
            raise PolicyTestFailed(describe(self.suite.policy, self.case))


class Claims(pytest.Collector):
    """The claims of a file, under `prove`."""

    def __init__(self, *, suite: Suite, **more: Any) -> None:
        super().__init__(**more)
        self.suite = suite

    def collect(self) -> Iterable[pytest.Item]:
        for claim in self.suite.claims:
            yield ClaimItem.from_parent(self, name=claim.id, suite=self.suite, claim=claim)


class ClaimItem(_Item):
    """One claim over all flows."""

    def __init__(self, *, claim: Claim, **more: Any) -> None:
        super().__init__(line=claim.at.line, **more)
        self.claim = claim

    def runtest(self) -> None:
        from proxy.policy.prove import Prover
        from proxy.policy.telling import tell_finding

        findings = Prover(self.suite.policy, [self.claim]).check(self.claim)
        if findings:
            told = "\n".join(tell_finding(finding) for finding in findings)
            raise PolicyTestFailed(f"{self.claim.at}: {self.claim.id}\n{told}")


class MutantsItem(_Item):
    """The faults that no test of a file notices."""

    def runtest(self) -> None:
        from proxy.policy.mutants import survivors

        found = list(survivors(self.suite))
        if found:
            raise PolicyTestFailed("\n".join(map(str, found)))


class _Summary:
    """The end of the run: coverage, and the difference that was asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.decided: dict[str, set[str]] = {}
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Reports come from this process or from a worker of xdist alike."""
        found = dict(report.user_properties)
        if report.when == "call" and isinstance(path := found.get(_POLICY), str) and path:
            ids = self.decided.setdefault(path, set())
            if _DECIDED in found:
                ids.add(str(found[_DECIDED]))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.decided or hasattr(self.config, "workerinput"):
            return
        self.lines = list(self._tell())
        limit = self.config.getoption("--policy-cov-fail-under")
        if limit is not None and any(percent < limit for percent in self._percents.values()):
            self.lines.append(f"policy coverage is below {limit:g}%")
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _tell(self) -> Iterator[str]:
        from proxy.policy.coverage import measure
        from proxy.policy.files import load_policy

        self._percents: dict[str, float] = {}
        for path, ids in sorted(self.decided.items()):
            policy = load_policy(Path(path))
            coverage = measure(policy, ids)
            self._percents[path] = coverage.percent
            name = policy.model.name
            yield f"{name}: {coverage.decided} of {coverage.total} rules and guards, {coverage.percent:.0f}%"
            yield from (f"  {gap}" for gap in coverage.gaps)
            if ref := self.config.getoption("--policy-diff"):
                # the command floor knows git; the judge's floor must not import it
                differences = importlib.import_module("proxy.cli.revisions").tell_since
                yield from (f"  {line}" for line in differences(Path(path), ref))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.lines:
            terminalreporter.section("policy coverage")
            for line in self.lines:
                terminalreporter.write_line(line)
