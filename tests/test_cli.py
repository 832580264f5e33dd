"""The commands: their help, their exit codes, and one line for each thing that is wrong."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from gates import Gate, gate, gone

from proxy import sandbox
from proxy.cli import COMMANDS, zonegate


def call(*arguments: str) -> Result:
    return CliRunner().invoke(zonegate, arguments)


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where no daemon listens."""
    monkeypatch.setenv("ZONEGATE_SOCKET", str(tmp_path / "admin.sock"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def there() -> Iterator[Gate]:
    with gate() as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[Gate]:
    """A daemon for those that only ask."""
    with gate() as made:
        made.up()
        made.workers()
        yield made


# -- help --------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_a_line(nobody: Path) -> None:
    for flag in ("--help", "-h"):
        found = call(flag)
        assert found.exit_code == 0
        for name, (_, line) in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(line[:40])}", found.output, re.MULTILINE), name


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_has_help(name: str) -> None:
    found = call(name, "--help")
    assert found.exit_code == 0
    usage, _, words = found.output.partition("\n")
    assert usage.startswith(f"Usage: zonegate {name}")
    assert words.strip() and "--help" in words


def commands(found: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command, or those below it."""
    if not isinstance(found, click.Group):
        yield name, found
        return
    context = click.Context(found)
    for one in found.list_commands(context):
        below = found.get_command(context, one)
        assert below is not None
        yield from commands(below, f"{name} {one}".strip())


def test_each_command_shows_an_example_that_can_be_typed(nobody: Path) -> None:
    """And the help fits a terminal of 80 columns."""
    for name, found in commands(zonegate, ""):
        shown = [line.strip() for line in (found.help or "").splitlines()]
        begin = (f"zonegate {name} ", f"sudo zonegate {name} ")
        examples = [line for line in shown if f"{line} ".startswith(begin) or f"-- zonegate {name}" in line]
        assert examples, f"zonegate {name} --help shows no example"
        for line in examples:
            words = re.split(r" {2,}| (?:&&|>>?|#|\|) ", line.removeprefix("sudo "))[0]
            options = shlex.split(re.sub(r"\$\(.*?\)", "4711", words).removeprefix(f"zonegate {name}"))
            with contextlib.suppress(click.BadParameter):  # a file may not be here
                found.make_context(name, options)
        text = call(*name.split(), "--help").output
        assert not [line for line in text.splitlines() if len(line) > 80], name


@pytest.mark.parametrize("name", ["tunnel", "audit", "cert", "ca", "systemd"])
def test_a_list_of_commands_is_not_cut_short(name: str) -> None:
    text = call(name, "--help").output
    listed = text[text.index("Commands:") :]
    assert "..." not in listed and len(listed.splitlines()) > 2


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys; from proxy.cli import zonegate; zonegate(['--help'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('proxy.') and name != 'proxy.cli'])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


def test_the_version_is_said() -> None:
    assert re.fullmatch(r"zonegate, version \d+\.\d+\.\d+\n", call("--version").output)


MISTYPED = (
    "nonsense", "status --nonsense", "status --jsn", "explain", "up more", "completion", "gateway -c /",
    "check", "tunnel nonsense", "tunnel down", "lock --zone",
)  # fmt: skip


@pytest.mark.parametrize("typed", MISTYPED)
def test_what_is_mistyped_is_one_line_with_its_cure(typed: str) -> None:
    found = call(*typed.split())
    assert (found.exit_code, found.stdout) == (2, "")
    assert re.fullmatch(r"zonegate: [^A-Z\n][^\n]*; [^\n]+\n", found.stderr), found.stderr


# -- one line for each thing that is wrong -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoDaemon:
    arguments: tuple[str, ...]
    code: int

    def __str__(self) -> str:
        return self.arguments[0]


@pytest.mark.parametrize(
    "case",
    [
        NoDaemon(("status",), 2),
        NoDaemon(("status", "--json"), 2),
        NoDaemon(("stop",), 2),
        NoDaemon(("explain", "--to", "site.example"), 2),
        NoDaemon(("run", "--", "true"), 125),
    ],
    ids=str,
)
def test_without_a_daemon_the_cure_is_said(nobody: Path, case: NoDaemon) -> None:
    found = call(*case.arguments)
    assert found.exit_code == case.code
    said = f"zonegate: no daemon listens on {nobody / 'admin.sock'}; start one: zonegate up"
    assert (found.stdout, found.stderr.splitlines()[-1]) == ("", said)


def test_without_a_site_file_the_cure_is_said(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nobody)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(nobody))
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    found = call("up")
    assert (found.exit_code, found.stdout) == (2, "")
    assert (
        f"none at {nobody}/zonegate/zonegate.yaml; name one with -c, or make one: zonegate init"
        in found.stderr
    )


@pytest.mark.parametrize("zone", ["../../etc", "a/b", ".", "", "a b"])
def test_what_is_no_name_of_a_zone_makes_no_directory(nobody: Path, zone: str) -> None:
    found = call("run", "--zone", zone, "--", "true")
    assert (found.exit_code, found.stderr) == (2, f'zonegate: "{zone}" is no name of a zone\n')
    assert list(nobody.iterdir()) == []


@dataclass(frozen=True, slots=True)
class Wrong:
    """`change` makes something wrong in the directory of a good site; `said` begins the one line."""

    sentence: str
    change: Callable[[Path], object]
    said: str

    def __str__(self) -> str:
        return self.sentence


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        path = directory / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def remove(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


SITE, KEY = "zonegate.yaml", "laptop.key"
WRONG = [
    Wrong("an unknown key", edit(SITE, "kind: mtls", "kynd: mtls\n    kind: mtls"), f"{SITE}:9:5: .*kynd"),
    Wrong("a tunnel that is not there", edit(SITE, "[hq]", "[hk]"), f'{SITE}:6:25: "hk" is not a tunnel'),
    Wrong("no YAML", lambda at: (at / SITE).write_text("a: [\n"), rf"{SITE}:\d+:\d+: "),
    Wrong("a key that others can read", lambda at: (at / KEY).chmod(0o640), f"{KEY} .*by others.*chmod 600"),
    Wrong("a key that is not there", remove(KEY), f"{KEY}: .* cannot be read: No such file"),
    Wrong("no site file", remove(SITE), f"{SITE}: the site file cannot be read: No such file"),
]


@pytest.mark.parametrize("check", [True, False], ids=["with --check", "for real"])
@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_daemon_that_cannot_start_says_why_in_one_line(there: Gate, case: Wrong, check: bool) -> None:
    case.change(there.directory)
    found = call("up", "-c", str(there.config), *(["--check"] if check else []))
    assert found.exit_code == 2
    lines = found.stderr.splitlines()
    assert len(lines) == 1 and re.match(rf"zonegate: (.*/)?{case.said}", lines[0]), found.stderr
    assert not there.socket.exists()


def test_a_site_in_which_nothing_is_wrong_is_checked_and_not_started(there: Gate) -> None:
    found = call("up", "--check", "-c", str(there.config))
    assert (found.exit_code, found.stderr) == (0, "")
    assert not there.socket.exists()


def test_a_machine_that_cannot_keep_programs_in_is_refused_with_both_cures(
    there: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: ["nft is not installed; apt-get install nftables"])
    found = call("up", "-c", str(there.config))
    assert found.exit_code == 2
    first, second = found.stderr.splitlines()
    assert "apt-get install nftables" in first and "--cooperative" in second


# -- a daemon that runs ------------------------------------------------------------------------------


def test_status_for_programs_has_these_fields_and_its_code_says_whether_all_is_well(running: Gate) -> None:
    code, out, err = running.run("status", "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")  # the tunnel leads nowhere
    assert set(found) >= {
        "enforcement", "since", "site", "policy", "zones", "tunnels", "workers", "bubbles", "trouble",
    }  # fmt: skip
    assert set(found["tunnels"]["hq"]) >= {
        "kind", "gateway", "state", "attested", "words", "peer", "proof_age_s",
    }  # fmt: skip
    assert (found["tunnels"]["hq"]["attested"], found["tunnels"]["hq"]["proof_age_s"]) == (False, None)
    assert found["enforcement"] == "structural"


def test_status_for_people(running: Gate) -> None:
    code, out, err = running.run("status")
    assert (code, err) == (1, "")
    for words in ("corporate", "structural", "hq", "no bubble; start a program in one"):
        assert words in out


def test_explain_is_the_daemons_own_answer(running: Gate) -> None:
    code, out, _ = running.run("explain", "--to", "http://intranet.corp.example/")
    assert code == 0
    assert "verdict  block" in out and "proof-or-nothing" in out
    code, _, err = running.run("explain", "--to", "site.example", "--tunnel", "attested")
    assert (code, err.count("\n")) == (2, 1)
    assert "--tunnel is the daemon's to say" in err
    code, out, _ = running.run("explain", "--to", "http://intranet.corp.example/", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "block")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--to", "//"], "has no host"),
        (["--to", "gopher://site.example/"], '"gopher" is not known'),
        (["--to", "site.example", "--zone", "garden"], "name one zone with --zone"),
        (["--to", "site.example", "--protocol", "telnet"], "telnet"),
    ],
)
def test_a_flow_that_cannot_be_is_one_line(running: Gate, arguments: list[str], words: str) -> None:
    code, out, err = running.run("explain", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_zone_that_is_not_there_is_named_with_those_that_are(running: Gate) -> None:
    code, _, err = running.run("run", "--zone", "garden", "--", "true")
    assert code == 125
    assert err.splitlines()[-1] == 'zonegate: there is no zone "garden" here; there is corporate'


def test_cleanup_leaves_a_living_daemon_alone(running: Gate) -> None:
    code, _, err = running.run("cleanup")
    assert code == 2
    assert err == "zonegate: a daemon is running; to end it and its bubbles: zonegate stop\n"
    assert running.run("status", "--json")[0] == 1


def test_cleanup_ends_what_a_killed_daemon_left(there: Gate) -> None:
    there.up()
    bubble = there.start("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert bubble.stdout is not None and bubble.stdout.readline() == "ready\n"
    assert len(there.status()["bubbles"]) == 1
    assert there.status()["bubbles"][0]["pid"] == bubble.pid
    there.daemon.kill()
    there.daemon.wait()
    assert not gone(bubble.pid), "the bubble stays, shut in"
    assert there.run("cleanup") == (0, "ended 1 bubble\n", "")
    assert bubble.wait(90) != 0
    assert list((there.directory / "run").iterdir()) == []
    assert there.run("cleanup") == (0, "ended 0 bubbles\n", "")


def test_the_exit_code_of_a_program_is_the_commands(there: Gate) -> None:
    there.up()
    assert there.run("run", "--", "sh", "-c", "exit 7")[0] == 7


# -- words that were mistyped, programs that are not there, completion --------------------------------


@pytest.mark.parametrize(
    "word, said",
    [
        ("flws", 'did you mean "flows"?'),
        ("relaod", 'did you mean "reload"?'),
        ("x" * 9999, "zonegate --help"),
    ],
)
def test_a_mistyped_command_is_told_what_was_meant(word: str, said: str) -> None:
    found = call(word)
    assert found.exit_code == 2
    assert said in found.stderr and "is no command" in found.stderr


@pytest.mark.parametrize(
    "program, code, said",
    [
        ("nosuchprog", 127, 'there is no program "nosuchprog" in zone corporate'),
        ("./nosuchprog", 127, "to have a file of yours there: --share ./nosuchprog"),
        ("/srv/nosuchprog", 127, "--share /srv/nosuchprog"),
        ("/usr/bin/nosuchprog", 127, "is not there"),
        ("/etc/passwd", 126, "is not an executable file"),
        ("/usr/bin", 126, "is not an executable file"),
    ],
)
def test_a_program_that_is_not_there_is_told_in_our_own_words(
    nobody: Path, program: str, code: int, said: str
) -> None:
    found = call("run", "--", program)
    assert found.exit_code == code
    assert said in found.stderr and "bwrap" not in found.stderr


def completed(environment: dict[str, str], *words: str) -> list[str]:
    asked = {
        "_ZONEGATE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    command = [sys.executable, "-c", "from proxy.cli import main; main()"]
    told = subprocess.check_output(command, env=environment | asked, text=True)
    return [line.removeprefix("plain,") for line in told.splitlines() if line]


def test_a_shell_completes_commands_options_and_what_the_daemon_knows(running: Gate, nobody: Path) -> None:
    environment = running.environment
    assert completed(environment, "zonegate", "lo") == ["lock"]
    assert completed(environment, "zonegate", "reload", "--ch") == ["--check"]
    for command, option, known in (("lock", "--zone", "corporate"), ("explain", "--tunnel", "hq")):
        while (found := completed(environment, "zonegate", command, option, "")) != [known]:
            assert found == [], "a daemon that is slow is not waited for; asked again, it answers"
    assert completed(environment, "zonegate", "kill", "") == []
    alone = environment | {"ZONEGATE_SOCKET": str(nobody / "admin.sock")}
    assert completed(alone, "zonegate", "lock", "--zone", "") == [], "and no complaint"


def test_the_script_is_one_that_bash_takes() -> None:
    script = call("completion", "bash").stdout
    told = subprocess.check_output(["bash", "-c", f"{script}\ncomplete -p zonegate"], text=True)
    assert "_zonegate_completion" in told
    for shell, mark in (("zsh", "#compdef zonegate"), ("fish", "complete --no-files --command zonegate")):
        assert mark in call("completion", shell).stdout


@pytest.mark.parametrize(
    ("typed", "code", "out", "said"),
    [
        ("kill nonsense", 1, "0 flows cut\n", "zonegate: no open flow fits; see: zonegate flows\n"),
        ("leaktest --row ZZ", 2, "", 'zonegate: no attempt is of row "ZZ"; there are N'),
        ("tunnel show nope", 2, "", 'zonegate: "nope" is not a tunnel of this site; the site has hq\n'),
    ],
)
def test_what_a_daemon_does_not_know_is_told_with_what_there_is(
    running: Gate, typed: str, code: int, out: str, said: str
) -> None:
    found = running.run(*typed.split())
    assert found[:2] == (code, out) and found[2].startswith(said) and found[2].count("\n") == 1, found
