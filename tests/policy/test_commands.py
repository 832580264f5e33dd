"""check, test, prove, diff and explain, as typed."""

# ruff: noqa: E501  # a policy in a test is written as it would be

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import zonegate
from proxy.policy.schemas import FOLDER, texts

POLICIES = Path(__file__).parents[2] / "policies"
OLD = """\
policy: 1
name: p
define: {zones: [corporate], groups: [eng], destinations: {code: [git.corp.example]}}
rules:
  - {id: code, match: {to: code, group: eng, protocol: https}, verdict: tunnel}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(zonegate, list(arguments), catch_exceptions=False)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "p.policy.yaml"
    path.write_text(OLD)
    return path


def test_check_shows_the_line_and_ends_with_1_for_an_error(old: Path) -> None:
    assert run("check", str(old)).exit_code == 0
    old.write_text(OLD.replace("group: eng", "grup: eng"))
    told = run("check", str(old))
    assert told.exit_code == 1
    assert 'unknown key "grup" in match of rule "code"; did you mean "group"?' in told.output
    assert "\n    " in told.output and "^" in told.output
    line = run("check", "--format", "line", str(old)).output
    assert line.startswith(f"{old}:5:34: error: unknown key")
    assert run("check", "--format", "github", str(old)).output.startswith(
        f"::error file={old},line=5,col=34::"
    )
    found = json.loads(run("check", "--json", str(old)).output)
    assert [(problem["line"], problem["severity"]) for problem in found] == [(5, "error")]


def test_check_names_the_rules_that_shadow_a_dead_one(old: Path) -> None:
    more = "  - {id: in, match: {group: eng}, verdict: tunnel}\n  - {id: dead, match: {to: code, group: eng}, verdict: block}\n"
    old.write_text(OLD + more)
    told = run("check", str(old))
    assert told.exit_code == 1
    assert 'p.policy.yaml:7:5: error: rule "dead" can never decide: shadowed by "in"' in told.output


def test_check_warns_of_what_the_site_cannot_do(old: Path) -> None:
    old.write_text(OLD.replace("protocol: https", "protocol: https, method: GET"))
    told = run("check", "--no-inspection", "corporate", str(old))
    assert told.exit_code == 0 and '"code" needs method and zone corporate has no inspection' in told.output


def test_a_guard_that_stops_nothing_yet_is_a_note_and_one_that_never_can_a_warning(old: Path) -> None:
    """A safety net is no fault: a newcomer's first check of the seed cries no wolf."""
    seed = str(POLICIES / "corporate.policy.yaml")
    told = run("check", seed)
    assert told.exit_code == 0
    assert told.output.count(": note: guard ") == told.output.count(
        "(harmless: it guards against later rules)"
    )
    assert told.output.endswith("1 file, 0 errors, 0 warnings, 2 notes\n")
    assert {found["severity"] for found in json.loads(run("check", "--json", seed).output)} == {"note"}
    assert run("check", "--format", "github", seed).output.startswith("::notice file=")
    told = run("prove", seed)
    assert told.exit_code == 0 and "note no-public-sharing (idle-guard)" in told.output
    assert "warning" not in told.output and "harmless: it guards" in told.output
    kinds = [found["kind"] for found in json.loads(run("prove", "--json", seed).output)["findings"]]
    assert kinds == ["idle-guard", "idle-guard"]
    dead = "guards:\n  - {id: never, match: {protocol: ssh, method: GET}, at_most: block}\n"
    old.write_text(OLD.replace("rules:", dead + "rules:"))
    said = 'guard "never" can never bite: no flow has what it matches; mend or remove it'
    assert f":5:5: warning: {said}" in run("check", str(old)).output
    assert said in run("prove", str(old)).output and run("prove", str(old)).exit_code == 0


def test_an_unstable_route_is_refused_at_load(old: Path) -> None:
    more = "  - {id: get, match: {to: code, method: GET}, verdict: direct}\n"
    old.write_text(OLD.replace("rules:\n", "rules:\n" + more))
    told = run("check", str(old))
    assert told.exit_code == 1 and "one connection could take two ways" in told.output


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "no such file" in run("check", str(tmp_path / "x.policy.yaml")).output
    assert run("check", str(tmp_path / "x.policy.yaml")).exit_code == 1


@pytest.mark.parametrize("command", ["check", "prove"])
def test_a_folder_without_policies_is_not_a_good_one(command: str, tmp_path: Path) -> None:
    told = run(command, str(tmp_path))
    assert told.exit_code == 2
    assert told.output == "zonegate: no policy there; name *.policy.yaml files or a folder of them\n"


def test_a_file_of_another_kind_gets_one_line_that_says_what_it_is(old: Path) -> None:
    site, gateway, test = (old.with_name(name) for name in ("zonegate.yaml", "gateway.yaml", "p.test.yaml"))
    site.write_text("policy: p.policy.yaml\nzonegate: 1\nzones: {}\ntunnels: {}\n")
    gateway.write_text("gateway: 1\nlisten: x\n")
    test.write_text("policy_test: 1\npolicy: p.policy.yaml\n")
    its_check = f"{site}:2:1: this is a site file; check it with: zonegate up --check -c {site}"
    for command in ("check", "prove", "test"):
        told = run(command, str(site)).output
        assert its_check in told and told.count("yaml:") == 1
    assert "zonegate gateway -c" in run("check", str(gateway)).output
    assert "this is a policy; name its *.test.yaml" in run("test", str(old)).output
    assert f"zonegate test {test}" in run("explain", "--policy", str(test), "--to", "a.test").output
    test.write_text("polcy_test: 1\npolicy: p.policy.yaml\n")  # a path there is no policy's version
    assert 'did you mean "policy_test"?' in run("test", str(test)).output


def test_a_policy_that_is_not_there_is_an_error_of_the_test_that_names_it(old: Path) -> None:
    test = old.with_name("p.test.yaml")
    test.write_text("policy_test: 1\npolicy: q.policy.yaml\n")
    for command in ("check", "test", "prove"):
        assert f'{test}:2:9: there is no policy "q.policy.yaml"; write' in run(command, str(test)).output


def test_a_misspelt_key_is_told_once(old: Path) -> None:
    old.write_text(OLD.replace("policy: 1", "polcy: 1"))
    told = run("check", "--format", "line", str(old)).output
    assert told == f'{old}:1:1: error: unknown key "polcy" in the policy; did you mean "policy"?\n'
    old.write_text(OLD.replace("policy: 1", "policy: 1\nzzz: 1").replace("name: p\n", ""))
    told = run("check", "--format", "line", str(old)).output
    assert 'the policy has no "name"; add it' in told and 'unknown key "zzz"' in told


def test_test_runs_what_ships() -> None:
    told = run("test", str(POLICIES), "--mutants", "--cov-fail-under", "100", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert found["failed"] == [] and found["passed"] > 180
    assert {policy["percent"] for policy in found["coverage"]} == {100.0}


@pytest.mark.parametrize("engine", ["boxes", "z3"])
def test_prove_holds_for_what_ships(engine: str) -> None:
    told = run("prove", str(POLICIES), "--engine", engine)
    assert told.exit_code == 0, told.output
    assert "0 failed" in told.output


def test_each_shipped_policy_has_tests_enough() -> None:
    from proxy.policy.files import load_suite

    for path in POLICIES.glob("*.policy.yaml"):
        suite = load_suite(path.with_name(path.name.replace(".policy.", ".test.")))
        assert len(suite.cases) >= 25, path
        assert any(len(case.facts.get("group", ())) > 1 for case in suite.cases), path
        assert any("direct" in claim.id for claim in suite.claims), path


def test_explain_tells_the_verdict_the_reason_and_the_carrier() -> None:
    policy = str(POLICIES / "contractor.policy.yaml")
    common = ("--policy", policy, "--group", "contractors", "--posture", "healthy", "--time", "wed 10:00")
    told = run("explain", *common, "--to", "https://git.corp.example/")
    assert told.exit_code == 0
    assert "verdict  undetermined" in told.output and "carrier  inspection: " in told.output
    settled = run("explain", *common, "--to", "https://git.corp.example/", "--method", "GET", "--json")
    found = json.loads(settled.output)
    assert (found["verdict"], found["because"]["id"], found["carrier"]) == ("tunnel", "code-read", "relay")
    stale = run("explain", *common, "--to", "tracker.corp.example:443", "--tunnel", "stale")
    assert "block" in stale.output and "proof-or-nothing" in stale.output
    assert run("explain", *common, "--to", "0x7f.1").exit_code == 2


def suite(old: Path, given: str, *cases: str) -> Path:
    test = old.with_name("p.test.yaml")
    rows = "".join(f"  - {{{case}}}\n" for case in cases)
    test.write_text(f"policy_test: 1\npolicy: p.policy.yaml\ngiven: {{{given}}}\ntests:\n{rows}")
    return test


def test_a_fact_that_is_wrong_for_all_is_said_once_where_it_is_given(old: Path) -> None:
    cases = [f"id: n{i}, flow: {{host: git.corp.example}}, expect: tunnel" for i in range(150)]
    test = suite(old, "zone: corporat, group: eng", *cases)
    told = run("test", str(test))
    said = f'{test}:3:15: given: "corporat" is not a zone of this policy; did you mean "corporate"?'
    assert (told.exit_code, told.output.splitlines()[0]) == (2, f"zonegate: {said}")
    assert len(told.output.splitlines()) == 3, "the problem, its line and a caret"
    test = suite(old, "zone: corporate", "id: a, flow: {host: git.corp.example, group: enk}, expect: tunnel")
    assert run("test", str(test)).output.startswith(f'zonegate: {test}:5:51: test "a": "enk" is not a group')


def test_failures_of_one_cause_are_summed_up(old: Path) -> None:
    code, other = "{host: git.corp.example, group: eng}", "{host: 192.0.2.1}"
    cases = [f"id: n{i}, flow: {code}, expect: tunnel, by: code" for i in range(5)]
    test = suite(old, "tunnel: attested", *cases, f"id: no, flow: {other}, expect: direct")
    old.write_text(OLD.replace("git.corp", "git.crop"))
    told = run("test", str(test)).output
    assert told.count("FAILED") == told.count("the way to it") == 2
    assert "  and 4 more alike, expected tunnel, got block, by default (no rule matches):\n" in told
    assert [line for line in told.splitlines() if line.endswith(": n3")] == [f"    {test}:8:5: n3"]
    assert "0 passed, 6 failed" in told
    assert len(json.loads(run("test", "--json", str(test)).output)["failed"]) == 6
    old.write_text(OLD)
    told = run("test", str(test)).output
    assert "1 failed" in told and "more alike" not in told


def test_a_file_without_end_is_read_so_far_as_to_be_refused() -> None:
    told = run("check", "/dev/zero")
    assert told.exit_code == 1 and "has more than 1048576 bytes; split it" in told.output


@pytest.mark.parametrize("place", ["http://[::1", "x:99999", "a b:c", ""])
def test_a_place_that_is_none_is_told_with_how_to_write_one(old: Path, place: str) -> None:
    told = run("explain", "--policy", str(old), "--to", place)
    assert told.exit_code == 2 and told.output.startswith(f'zonegate: "{place}" ')
    assert "write it as in https://git.corp.example/ or" in told.output


@pytest.mark.parametrize("command", ["test", "prove"])
def test_without_a_folder_of_policies_files_are_asked_for(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(command)
    assert told.exit_code == 2 and "no folder policies here; name files" in told.output


def test_a_mistyped_state_is_not_the_name_of_an_attested_tunnel(old: Path) -> None:
    """It would lift the guard of every zone, and the answer would be the opposite of the truth."""
    asked = ("explain", "--policy", str(old), "--to", "https://git.corp.example", "--group", "eng")
    told = run(*asked, "--tunnel", "donw")
    assert told.exit_code == 2
    assert '"donw" is not a state of a tunnel; did you mean "down"?' in told.output
    assert "as hq=attested" in run(*asked, "--tunnel", "hq").output
    assert '"" is not a state' in run(*asked, "--tunnels", "hq").output
    test = old.with_name("p.test.yaml")
    case = "{id: a, flow: {group: eng, host: git.corp.example, tunnel: donw}, expect: block}"
    test.write_text(f"policy_test: 1\npolicy: p.policy.yaml\ntests:\n  - {case}\n")
    assert 'did you mean "down"?' in run("test", str(test)).output
    for named in (", tunnels: [hq]}", "}"):
        via = ", via: [hq]}" if named == "}" else "}"
        old.write_text(
            OLD.replace("eng], dest", f"eng]{named[:-1]}, dest").replace("tunnel}", "tunnel" + via)
        )
        assert "verdict  tunnel through hq" in run(*asked, "--tunnel", "hq").output
        assert 'did you mean "hq"?' in run(*asked, "--tunnel", "hqq").output


def test_explain_tells_the_state_of_the_tunnels_that_it_judged_by(old: Path) -> None:
    asked = ("explain", "--policy", str(old), "--to", "https://git.corp.example", "--group", "eng")
    assert (
        "tunnels  hq (stale), branch (attested)\nverdict  tunnel through branch"
        in run(*asked, "--tunnels", "hq=stale", "--tunnels", "branch=attested").output
    )
    assert "tunnels" not in run(*asked, "--tunnel", "none").output


def test_a_user_who_has_a_number_only_is_a_user(old: Path) -> None:
    asked = ("explain", "--policy", str(old), "--to", "https://git.corp.example", "--user")
    assert run(*asked, "#4321").output.startswith("corporate: #4321 to ")
    assert run(*asked, "#43x").exit_code == 2


@pytest.mark.parametrize("option", ["--user", "--group", "--tunnel", "--tunnels"])
def test_what_the_daemon_knows_is_not_pretended_to_it(option: str) -> None:
    told = run("explain", "--to", "https://git.corp.example", option, "x")
    assert told.exit_code == 2
    assert told.output == (
        f"zonegate: {option} is the daemon's to say; leave it out, or name a file with --policy\n"
    )


@pytest.mark.parametrize("command", ["test", "prove", "diff", "explain"])
def test_only_the_first_line_of_an_error_names_the_program(command: str, old: Path) -> None:
    more = {"diff": (str(old),), "explain": ("--to", "git.corp.example")}.get(command, ())
    policy = ("--policy",) if command == "explain" else ()
    missing = old.with_name("none.test.yaml" if command == "test" else "none.policy.yaml")
    if command != "diff":  # to which a name without a file is a revision
        told = run(command, *policy, str(missing), *more).output
        assert told == f"zonegate: {missing}:1:1: no such file or directory; check the path\n"
    old.write_text(OLD.replace("group: eng", "grup: eng"))
    named = old
    if command == "test":
        named = old.with_name("p.test.yaml")
        named.write_text("policy_test: 1\npolicy: p.policy.yaml\n")
    first, excerpt, caret = run(command, *policy, str(named), *more).output.rstrip("\n").split("\n")
    assert first.startswith("zonegate: ") and 'did you mean "group"?' in first
    assert excerpt.startswith("      - {id: code") and caret.strip() == "^"


def test_diff_says_first_whether_anything_is_looser(old: Path) -> None:
    new = old.with_name("new.policy.yaml")
    new.write_text(OLD.replace("group: eng, ", ""))
    told = run("diff", str(old), str(new))
    assert told.exit_code == 0
    assert told.output.splitlines()[0] == "looser: yes, 1 of 1 changes"
    assert "+ block by default -> tunnel by code" in told.output
    assert run("diff", str(old), str(new), "--fail-looser").exit_code == 1
    assert run("diff", str(new), str(old), "--fail-looser").exit_code == 0
    assert json.loads(run("diff", str(old), str(new), "--json").output)["looser"] is True
    assert run("diff", str(old), str(old)).output == "no flow gets another verdict\n"


def test_diff_reads_git_revisions(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git = ["git", "-C", str(old.parent), "-c", "user.name=a", "-c", "user.email=a@b.test"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    old.write_text(OLD.replace("group: eng, ", ""))
    told = run("diff", "HEAD", str(old))
    assert told.exit_code == 0 and told.output.startswith("looser: yes")
    assert run("diff", f"HEAD:{old}", str(old)).output == told.output
    assert run("diff", "nowhere", str(old)).exit_code == 2
    assert run("diff", "--output=x", str(old)).exit_code == 2


def test_diff_with_a_revision_needs_a_repository(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(old.parents[1]))
    monkeypatch.delenv("GIT_DIR", raising=False)
    told = run("diff", "main", str(old))
    assert told.exit_code == 2 and "this folder is in no git repository" in told.output


def test_the_schemas_are_those_of_the_tables() -> None:
    """`python -m proxy.policy.schemas` writes them."""
    for name, text in texts().items():
        assert (FOLDER / name).read_text() == text
        assert run("check", "--schema", name.removesuffix(".json")).output == text
