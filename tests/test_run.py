"""A program in a bubble: exit codes, signals, terminal and daemon, as a person and a script expect them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bubbles import LIMIT_S, PYTHON, Ground, Person, at_a_terminal, outside, send_when_ready

from proxy import namespaces, run
from proxy.inner import FORWARDED
from proxy.messages.admin import Leave

READY_THEN_SLEEP = "echo ready; exec sleep 1000"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    there = Ground(tmp_path)
    try:
        yield there
    finally:
        there.close()


# -- scripts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exit:
    sentence: str
    script: str
    code: int

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Exit("success is success", "true", 0),
        Exit("an exit code is passed on", "exit 7", 7),
        Exit("even one that bubblewrap might mean", "exit 255", 255),
        Exit("a program that is killed has 128 and the signal", "kill -KILL $$", 137),
        Exit("so has one that is terminated", "kill -TERM $$", 143),
        Exit("a broken pipe ends a writer as it does elsewhere", "yes | true; exit $PIPESTATUS", 141),
    ],
    ids=str,
)
def test_exit_codes(ground: Ground, case: Exit) -> None:
    ground.daemon()
    assert ground.run("bash", "-c", case.script)[0] == case.code


def test_a_program_that_does_not_exist_is_named(ground: Ground) -> None:
    ground.daemon()
    code, _, errors = ground.run("no-such-program")
    assert code != 0
    assert "no-such-program" in errors


def test_streams_are_the_callers_and_stay_apart(ground: Ground) -> None:
    ground.daemon()
    code, out, errors = ground.run("sh", "-c", "cat; echo trouble >&2", given=b"x" * 300_000)
    assert (code, out, errors) == (0, "x" * 300_000, "trouble\n")


def test_a_file_as_input_and_a_closed_output(ground: Ground) -> None:
    ground.daemon()
    file = ground.directory / "input"
    file.write_bytes(b"from a file")
    with file.open("rb") as given:
        started = ground.start("cat", stdin=given)
        assert started.communicate(timeout=LIMIT_S)[0] == b"from a file"
    command = shlex.join(ground.command(["sh", "-c", "cat; echo lost; exit 3"]))
    done = subprocess.run(
        ["sh", "-c", f"{command} <&- >&-"], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")


def test_files_as_streams_are_read_and_written_as_the_shell_does(ground: Ground) -> None:
    """What the program has not read is there for who comes next, and what it writes keeps its order."""
    ground.daemon()
    given, log = ground.directory / "input", ground.directory / "log"
    given.write_text("one\n" + "x" * 300_000 + "\ntwo\n")
    log.write_text("before\n")
    reads = shlex.join(ground.command(["sh", "-c", "read a; echo $a; echo trouble >&2; echo $(wc -c) after"]))
    leaves = shlex.join(ground.command(["sh", "-c", "read a; echo first $a"]))
    script = f"{{ {leaves}; head -c 10 >/dev/null; {reads}; }} <{given} >>{log} 2>&1"
    assert subprocess.run(["sh", "-c", script], timeout=LIMIT_S, check=False).returncode == 0
    assert log.read_text() == "before\nfirst one\n" + "x" * 299_990 + "\ntrouble\n4 after\n"


def test_output_that_a_file_does_not_take_is_no_success(ground: Ground) -> None:
    ground.daemon()
    out = ground.directory / "out"
    command = shlex.join(ground.command(["sh", "-c", "yes | head -c 20000; trap '' PIPE; exit 0"]))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; exec {command} >{out}"],
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1 and out.stat().st_size == 8192
    assert b"zonegate: not all that the program wrote could be written: File too large" in done.stderr


@pytest.mark.parametrize("kind", ["stream", "pair"])
def test_a_socket_as_input_and_output_is_not_given_to_the_program(ground: Ground, kind: str) -> None:
    """It could be asked for its peer, or passed on; its bytes and its ends go through."""
    ground.daemon()
    ours, theirs = socket.socketpair()
    if kind == "stream":
        ours.close()
        theirs.close()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
    script = "readlink /proc/self/fd/0 /proc/self/fd/1 | sed 's/:.*//'; cat"
    assert outside("import os;print(os.readlink('/proc/self/fd/0'))", stdin=theirs).startswith("socket:")
    started = ground.start("sh", "-c", script, stdin=theirs, stdout=theirs)
    theirs.close()
    with ours:
        ours.settimeout(LIMIT_S)
        ours.sendall(b"y" * 300_000)
        ours.shutdown(socket.SHUT_WR)
        got = b""
        while piece := ours.recv(65536):
            got += piece
    assert started.wait(LIMIT_S) == 0
    assert got == b"pipe\npipe\n" + b"y" * 300_000


def test_a_program_that_writes_to_a_socket_nobody_reads_any_more_is_told(ground: Ground) -> None:
    ground.daemon()
    ours, theirs = socket.socketpair()
    started = ground.start("sh", "-c", "trap '' PIPE; while echo; do :; done 2>&-; exit 9", stdout=theirs)
    theirs.close()
    assert ours.recv(1) == b"\n"
    ours.close()
    assert started.wait(LIMIT_S) == 9


# -- signals -----------------------------------------------------------------------------------------

# Says each signal that comes, and ends on the last of the list.
SAY_SIGNALS = """
import signal, sys
heard = {signal.Signals[name] for name in sys.argv[1:]}
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
print("ready", flush=True)
while True:
    number = signal.Signals(signal.sigwait(heard))
    print(number.name, flush=True)
    if number.name == sys.argv[-1]:
        sys.exit(5)
"""


@pytest.mark.parametrize("number", FORWARDED, ids=lambda number: number.name)
def test_a_signal_reaches_the_program(ground: Ground, number: signal.Signals) -> None:
    ground.daemon()
    started = ground.start(PYTHON, "-I", "-S", "-c", SAY_SIGNALS, number.name)
    send_when_ready(started, number)
    out, _ = started.communicate(timeout=LIMIT_S)
    assert (started.returncode, out.decode()) == (5, f"{number.name}\n")


def test_a_signal_to_the_whole_job_reaches_the_program_once(ground: Ground) -> None:
    """As Ctrl-C does where standard input is no terminal."""
    ground.daemon()
    started = ground.start(PYTHON, "-I", "-S", "-c", SAY_SIGNALS, "SIGINT", "SIGUSR1", start_new_session=True)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    os.killpg(started.pid, signal.SIGINT)
    assert started.stdout.readline() == b"SIGINT\n"
    started.send_signal(signal.SIGUSR1)
    assert started.communicate(timeout=LIMIT_S)[0] == b"SIGUSR1\n"


def test_a_signal_that_comes_before_the_program_is_not_lost(ground: Ground) -> None:
    daemon = ground.daemon()
    started = ground.start("sleep", "1000")
    daemon.entered.get(timeout=LIMIT_S)
    started.send_signal(signal.SIGTERM)
    # Before the outer process has begun to listen it is ended itself, and takes the bubble with it.
    assert started.wait(LIMIT_S) in (143, -signal.SIGTERM)


def test_a_program_without_handlers_dies_of_a_signal(ground: Ground) -> None:
    ground.daemon()
    started = ground.start("sh", "-c", READY_THEN_SLEEP)
    send_when_ready(started, signal.SIGTERM)
    assert started.wait(LIMIT_S) == 143


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["outer", "inner", "bubblewrap"])
def test_a_killed_process_takes_the_whole_bubble_with_it(ground: Ground, depth: int) -> None:
    ground.daemon()
    started = ground.start("sh", "-c", "sleep 1000 & setsid sleep 1000 & echo ready; wait")
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    os.kill(_descendant(started.pid, depth), signal.SIGKILL)
    assert started.stdout.read() == b""  # everybody who had the pipe is gone
    assert started.wait(LIMIT_S) == (137 if depth else -signal.SIGKILL)


def test_a_bubble_whose_init_was_stopped_is_ended_all_the_same(ground: Ground) -> None:
    """As a program can by ptrace; init then never sees the program end."""
    ground.daemon()
    started = ground.start("sh", "-c", READY_THEN_SLEEP, options={"grace_s": 0.1})
    assert started.stdout is not None and started.stdout.readline() == b"ready\n"
    os.kill(_descendant(started.pid, 3), signal.SIGSTOP)
    started.send_signal(signal.SIGTERM)
    assert started.wait(LIMIT_S) == 137


def _descendant(pid: int, depth: int) -> int:
    """The processes of a bubble, as the host sees them: outer, inner, bubblewrap, its init, the program."""
    for _ in range(depth):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid


# -- the daemon --------------------------------------------------------------------------------------


def test_a_daemon_that_denies_is_quoted_and_nothing_is_started(ground: Ground) -> None:
    daemon = ground.daemon(denies="zone corporate is not for you; ask")
    mark = ground.zone_home / "mark"
    assert ground.run("touch", str(ground.home / "mark")) == (
        125,
        "",
        "zonegate: zone corporate is not for you; ask\n",
    )
    assert not mark.exists()
    daemon.close()
    ground.daemon()
    assert ground.run("touch", str(ground.home / "mark"))[0] == 0
    assert mark.exists()


def test_without_a_daemon_nothing_is_started_and_the_cure_is_said(ground: Ground) -> None:
    code, _, errors = ground.run("touch", str(ground.home / "mark"))
    assert (code, errors) == (
        125,
        f"zonegate: no daemon listens on {ground.socket}; start one: zonegate up\n",
    )
    assert not (ground.zone_home / "mark").exists()


def test_a_daemon_that_goes_away_before_its_answer_starts_nothing(ground: Ground) -> None:
    daemon = ground.daemon(answers=False)
    started = ground.start("touch", str(ground.home / "mark"))
    daemon.entered.get(timeout=LIMIT_S)
    daemon.close()
    assert started.wait(LIMIT_S) == 125
    assert not (ground.zone_home / "mark").exists()


def test_a_daemon_is_shown_the_namespaces_of_the_bubble_and_of_nobody_else(ground: Ground) -> None:
    daemon = ground.daemon()
    started = ground.start("sh", "-c", "readlink /proc/self/ns/net; exec sleep 1000")
    _, (user_fd, net_fd) = daemon.entered.get(timeout=LIMIT_S)
    assert started.stdout is not None
    assert started.stdout.readline().decode().strip() == str(Path(f"/proc/self/fd/{net_fd}").readlink())
    assert str(Path(f"/proc/{_descendant(started.pid, 1)}/ns/user").readlink()) == str(
        Path(f"/proc/self/fd/{user_fd}").readlink()
    )
    assert namespaces.owner_uid(net_fd) == os.getuid()
    assert not namespaces.is_own_network(net_fd)
    os.close(user_fd)
    os.close(net_fd)


def test_a_bubble_is_adopted_by_the_next_daemon_under_its_old_name(ground: Ground) -> None:
    daemon = ground.daemon()
    started = ground.start("sh", "-c", "echo ready; read line; echo $line", stdin=subprocess.PIPE)
    first, fds = daemon.entered.get(timeout=LIMIT_S)
    assert first.again == ""
    before = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds]
    for fd in fds:
        os.close(fd)
    daemon.close()
    daemon = ground.daemon()
    second, fds = daemon.entered.get(timeout=LIMIT_S)
    assert (second.again, second.zone) == ("0-0123456789ab", "corporate")
    assert [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds] == before
    for fd in fds:
        os.close(fd)
    assert started.communicate(b"still here\n", timeout=LIMIT_S)[0] == b"ready\nstill here\n"
    assert started.returncode == 0


def test_a_new_daemon_that_hangs_holds_up_neither_the_program_nor_a_third(ground: Ground) -> None:
    daemon = ground.daemon()
    ours, theirs = socket.socketpair()
    ground.start("cat", stdin=theirs, stdout=theirs, options={"enter_limit_s": 3600})
    theirs.close()
    daemon.entered.get(timeout=LIMIT_S)
    daemon.close()
    daemon = ground.daemon(answers=False)
    daemon.entered.get(timeout=LIMIT_S)
    with ours:
        ours.settimeout(LIMIT_S)
        ours.sendall(b"echo")
        assert ours.recv(10) == b"echo"
        daemon.close()
        assert ground.daemon().entered.get(timeout=LIMIT_S)[0].again == "0-0123456789ab"
        ours.sendall(b"again")
        assert ours.recv(10) == b"again"


def test_leave_terminates_the_program(ground: Ground) -> None:
    daemon = ground.daemon()
    started = ground.start("sh", "-c", READY_THEN_SLEEP)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    daemon.say(Leave())
    assert started.wait(LIMIT_S) == 143


def test_leave_kills_a_program_that_does_not_listen(ground: Ground) -> None:
    daemon = ground.daemon()
    started = ground.start("sh", "-c", f"trap '' TERM; {READY_THEN_SLEEP}", options={"grace_s": 0.1})
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    daemon.say(Leave())
    daemon.wait_until_left()
    assert started.wait(LIMIT_S) == 137


def test_a_daemon_of_somebody_else_is_not_trusted(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.bind(sys.argv[1]);"
        "os.chmod(sys.argv[1], 0o666); os.setresuid(*[int(sys.argv[2])] * 3); s.listen(); print(); input()"
    )
    uid = 65534 if os.getuid() == 0 else os.getuid()
    other = subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", listen, str(ground.socket), str(uid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        monkeypatch.setattr(os, "getuid", lambda: uid)
        run.connect([ground.socket]).close()  # its own user is served
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        with pytest.raises(run.RunError, match=f"is user {uid}, neither you nor root"):
            run.connect([ground.socket])
        other.communicate(b"\n", timeout=LIMIT_S)


def test_the_first_daemon_that_listens_is_asked(ground: Ground) -> None:
    ground.daemon()
    run.connect([ground.directory / "nothing", ground.directory, ground.socket]).close()


# -- at a terminal -----------------------------------------------------------------------------------


@pytest.fixture
def person() -> Iterator[Person]:
    with at_a_terminal() as somebody:
        yield somebody


def at(person: Person) -> dict[str, Any]:
    return {
        "stdin": person.slave,
        "stdout": person.slave,
        "stderr": person.slave,
        "options": {"terminal": True},
    }


def test_a_person_has_a_terminal_of_its_own_size_that_follows_the_window(
    ground: Ground, person: Person
) -> None:
    ground.daemon()
    person.resize(31, 101)
    started = ground.start(
        "bash", "-c", "trap 'stty size' WINCH; stty size; while :; do read -t 0.05; done", **at(person)
    )
    person.read_until("31 101\r\n")
    person.resize(17, 53)
    person.read_until("17 53\r\n")
    person.type("\x03")
    assert started.wait(LIMIT_S) == 130


def test_the_terminal_of_the_bubble_is_not_the_persons(ground: Ground, person: Person) -> None:
    """TIOCSTI on the person's terminal would type into the outer shell."""
    ground.daemon()
    name = "import os; print(os.fstat(0).st_rdev, '<')"
    theirs = str(os.fstat(person.slave).st_rdev)
    assert outside(name, stdin=person.slave) == f"{theirs} <\n"
    started = ground.start(PYTHON, "-I", "-S", "-c", name, **at(person))
    assert theirs not in person.read_until(" <").split()
    assert started.wait(LIMIT_S) == 0


def test_typed_keys_are_echoed_once_and_end_of_file_is_passed_on(ground: Ground, person: Person) -> None:
    ground.daemon()
    started = ground.start("sh", "-c", "echo ready; cat", **at(person))
    person.read_until("ready\r\n")
    person.type("hello\r")
    assert person.read_until("hello\r\nhello\r\n") == "hello\r\nhello\r\n"
    person.type("\x04")
    assert started.wait(LIMIT_S) == 0


def test_the_terminal_is_given_back_as_it_was(ground: Ground, person: Person) -> None:
    ground.daemon()
    before = termios.tcgetattr(person.slave)
    started = ground.start("sh", "-c", "stty -echo; echo ready; read line", **at(person))
    person.read_until("ready")
    assert termios.tcgetattr(person.slave) != before
    person.type("x\r")
    assert started.wait(LIMIT_S) == 0
    assert termios.tcgetattr(person.slave) == before


def test_job_control_works_inside(ground: Ground, person: Person) -> None:
    ground.daemon()
    started = ground.start("bash", "--norc", "-i", env=os.environ | {"TERM": "dumb"}, **at(person))
    person.type("PS1='$((7*7))> '; echo be''gin\r")
    person.read_until("begin\r\n49> ")
    person.type("sleep 1000\r")
    person.read_until("sleep 1000\r\n")
    _until_foreground(started.pid, "sleep")
    person.type("\x1a")
    person.read_until("Stopped")
    person.read_until("49> ")
    person.type("kill %1; fg; echo co''de $?\r")
    person.read_until("code 143")
    person.type("sleep 1000\r")
    person.read_until("sleep 1000\r\n")
    _until_foreground(started.pid, "sleep")
    person.type("\x03")
    person.read_until("49> ")
    person.type("exit 6\r")
    assert started.wait(LIMIT_S) == 6


def _until_foreground(outer: int, name: str) -> None:
    """Wait until a child of the bubble's shell of this name is its terminal's foreground job."""
    shell = _descendant(outer, 4)
    while True:
        for child in Path(f"/proc/{shell}/task/{shell}/children").read_text().split():
            stat = Path(f"/proc/{child}/stat").read_text()
            fields = stat.rsplit(")", 1)[1].split()
            if f"({name})" in stat and fields[2] == fields[5]:
                return


def test_a_prompt_on_dev_tty_is_seen_though_the_output_goes_elsewhere(ground: Ground, person: Person) -> None:
    ground.daemon()
    with (ground.directory / "out").open("wb") as out:
        started = ground.start(
            "sh",
            "-c",
            "printf 'password: ' > /dev/tty; read word; echo $word",
            stdin=person.slave,
            stdout=out,
            stderr=out,
            options={"terminal": True},
        )
    person.read_until("password: ")
    person.type("secret\r")
    assert started.wait(LIMIT_S) == 0
    assert (ground.directory / "out").read_bytes() == b"secret\n"


def test_output_on_a_terminal_with_input_from_a_pipe(ground: Ground, person: Person) -> None:
    ground.daemon()
    started = ground.start(
        "cat", stdin=subprocess.PIPE, stdout=person.slave, stderr=person.slave, options={"terminal": True}
    )
    started.communicate(b"through\n", timeout=LIMIT_S)
    person.read_until("through")
    assert started.returncode == 0


def test_what_was_written_last_is_seen_in_full(ground: Ground, person: Person) -> None:
    ground.daemon()
    started = ground.start("sh", "-c", "seq 1 200000; echo last words", **at(person))
    assert person.read_until("last words").replace("\r\r", "\r").count("\r\n") == 200_000
    assert started.wait(LIMIT_S) == 0


def test_a_pasted_flood_that_nobody_reads_holds_up_no_signal(ground: Ground, person: Person) -> None:
    ground.daemon()
    started = ground.start("sh", "-c", f"stty raw -echo; {READY_THEN_SLEEP}", **at(person))
    person.read_until("ready")
    with pytest.raises(BlockingIOError):
        while True:
            person.type("x" * 1000)
    started.send_signal(signal.SIGTERM)
    assert started.wait(LIMIT_S) == 143


def test_a_paused_terminal_holds_up_neither_the_daemons_word_nor_a_signal(
    ground: Ground, person: Person
) -> None:
    daemon = ground.daemon()
    started = ground.start("yes", **at(person))
    daemon.entered.get(timeout=LIMIT_S)
    person.read_until("y")  # and nothing more: the terminal fills
    daemon.say(Leave())
    daemon.wait_until_left()
    started.send_signal(signal.SIGTERM)
    # Had the terminal room for all of it, the company is past waiting when the signal comes.
    assert started.wait(LIMIT_S) in (143, -signal.SIGTERM)


def test_a_terminal_that_goes_away_ends_the_program(ground: Ground) -> None:
    ground.daemon()
    with at_a_terminal() as person:
        started = ground.start("sh", "-c", READY_THEN_SLEEP, **at(person))
        person.read_until("ready")
    assert started.wait(LIMIT_S) == 128 + signal.SIGHUP


def test_a_background_job_is_not_stopped_and_gets_the_keys_when_it_is_foreground(
    ground: Ground, person: Person
) -> None:
    ground.daemon()
    command = shlex.join(ground.command(["sh", "-c", "echo in the back''ground; exec cat"]))
    script = ground.directory / "job"
    script.write_text(f"#!/bin/sh\nexec {command}\n")
    script.chmod(0o755)
    shell = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],
        stdin=person.slave,
        stdout=person.slave,
        stderr=person.slave,
        env=os.environ | {"TERM": "dumb"},
    )
    person.type(f"PS1='$((7*7))> '; {script} &\r")
    person.read_until("in the background")
    person.type("fg\r")
    person.read_until(f"{script}")
    person.type("line\r")
    person.read_until("line\r\nline")
    person.type("\x04")
    person.read_until("49> ")
    person.type("exit\r")
    assert shell.wait(LIMIT_S) == 0
