"""The daemon's life: ready, the only one, with bubbles and workers that come and go, stopped, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from first_words import request
from gates import LIMIT_S, Gate, Guest, entered, gate, until, wait_gone
from own_namespaces import NOBODY, Zone, namespaces_of, process, zone

from proxy import chain, ipc
from proxy.messages.admin import Denied, Leave, Stop


@pytest.fixture
def there() -> Iterator[Gate]:
    with gate() as made:
        yield made


@pytest.fixture(scope="module")
def ground() -> Iterator[Zone]:
    """A zone; who opens its ears is up to each test."""
    with zone() as made:
        yield made


def visit(there: Zone) -> object:
    return there.tcp("192.0.2.1", 80, request("192.0.2.1"))


SERVED = b"HTTP/1.1 503"  # the tunnel leads nowhere, and the worker says so
SHUT = "ConnectionRefusedError"


def served(there: Zone) -> bool:
    answer = visit(there)
    return isinstance(answer, bytes) and answer.startswith(SERVED)


def address_of(there: Zone, name: str = "site.example") -> object:
    """What the zone's names say."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0"
    return there.do(
        "import struct\n"
        f"query = struct.pack('!6H', 7, 256, 1, 0, 0, 0) + {labels!r} + struct.pack('!2H', 1, 1)\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(60)\n"
        "u.sendto(query, ('192.0.2.53', 53)); said = socket.inet_ntoa(u.recv(512)[-4:]); u.close()"
    )


# -- up and down -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_when_it_stops_and_leaves_nothing(
    there: Gate, number: signal.Signals
) -> None:
    there.up()
    there.workers()
    children = there.processes()
    there.daemon.send_signal(number)
    assert there.heard() == "STOPPING=1"
    code, said = there.ended()
    assert code == 0, said
    wait_gone(children)
    assert list((there.directory / "run").iterdir()) == []
    verified = chain.verify(there.directory / "state" / "audit")
    assert verified.problems == ()


def test_its_state_is_its_own(there: Gate) -> None:
    there.up()
    state = there.directory / "state"
    assert state.stat().st_mode & 0o077 == 0
    for path in state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("run", "refusal"), [("run", "another daemon listens on"), ("run2", "another daemon writes to")]
)
def test_a_second_daemon_is_refused_and_touches_nothing_of_the_first(
    there: Gate, run: str, refusal: str
) -> None:
    there.up()
    there.workers()
    audit = there.directory / "state" / "audit"
    before = {path.name: path.read_bytes() for path in audit.iterdir()}
    second = there.config.with_name("second.yaml")
    second.write_text(there.config.read_text().replace(f"{there.directory}/run", f"{there.directory}/{run}"))
    code, _, said = there.run("up", "-c", str(second))
    assert code == 2
    assert refusal in said and said.count("\n") == 1, said
    assert {path.name: path.read_bytes() for path in audit.iterdir()} == before, (
        "its open segment is not sealed"
    )
    there.daemon.terminate()
    assert there.ended()[0] == 0
    assert chain.verify(audit).problems == ()


def test_a_state_that_cannot_be_had_is_one_line_and_leaves_no_socket(there: Gate) -> None:
    (there.directory / "state").write_text("not a directory")
    code, _, said = there.run("up", "-c", str(there.config))
    assert (code, said.count("\n")) == (2, 1)
    assert str(there.directory / "state") in said
    assert not there.socket.exists()


# -- bubbles -----------------------------------------------------------------------------------------


def test_a_bubble_is_served_while_its_link_lasts(there: Gate, ground: Zone) -> None:
    there.up()
    guest = entered(there, ground)
    assert served(ground)
    (bubble,) = there.status()["bubbles"]
    assert (bubble["id"], bubble["zone"], bubble["pid"]) == (guest.bubble, "corporate", os.getpid())
    guest.leave()
    until(lambda: visit(ground) == SHUT)
    until(lambda: not there.status()["bubbles"])


def test_who_may_not_enter_hears_why_and_may_ask_again(there: Gate, ground: Zone) -> None:
    there.up()
    refused = Guest(there, ground, name="garden").answer
    assert isinstance(refused, Denied) and 'no zone "garden"' in refused.reason
    with process(uid=NOBODY, zone=True) as other, namespaces_of(other.pid) as fds:
        refused = Guest(there, Zone(other, fds)).answer
    assert isinstance(refused, Denied) and "belongs to another user" in refused.reason
    refused = Guest(there, Zone(other, fds)).answer  # its process has ended
    assert isinstance(refused, Denied) and "cannot be seen" in refused.reason
    guest = entered(there, ground)
    assert served(ground)
    guest.leave()


def test_a_namespace_that_is_served_already_is_not_served_twice(there: Gate, ground: Zone) -> None:
    there.up()
    first = entered(there, ground)
    second = Guest(there, ground).answer
    assert isinstance(second, Denied) and "cannot be served" in second.reason
    assert served(ground), "and the first is served as before"
    first.leave()


def test_a_killed_worker_is_replaced_and_serves_the_bubbles_that_were_there(
    there: Gate, ground: Zone
) -> None:
    there.up()
    guest = entered(there, ground)
    before = address_of(ground)
    (worker,) = there.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: there.workers() != [worker])  # until it is seen to be gone it may serve a last time
    until(lambda: served(ground))
    assert address_of(ground) == before
    guest.leave()


def test_a_bubble_that_ended_before_the_new_worker_came_is_not_served_by_it(
    there: Gate, ground: Zone
) -> None:
    there.up()
    guest = entered(there, ground)
    (worker,) = there.workers()
    os.kill(worker, signal.SIGKILL)
    guest.leave()
    following = Guest(there, ground)  # the same namespace, under another name
    while isinstance(following.answer, Denied):  # it came before the daemon knew of the end of the worker
        following = Guest(there, ground)
    until(lambda: served(ground))
    assert [bubble["id"] for bubble in there.status()["bubbles"]] == [following.bubble]
    following.leave()


# -- stop --------------------------------------------------------------------------------------------


def test_stop_sends_bubbles_home(there: Gate, ground: Zone) -> None:
    there.up()
    guest = entered(there, ground)
    stopping = there.start("stop")
    assert guest.hear() == Leave()
    guest.leave()
    assert stopping.wait(LIMIT_S) == 0
    assert there.ended()[0] == 0
    until(lambda: visit(ground) == SHUT)


def test_kept_bubbles_are_shut_in_and_taken_on_by_the_next_daemon_with_their_names(
    there: Gate, ground: Zone
) -> None:
    there.up()
    guest = entered(there, ground)
    told = address_of(ground)
    assert there.run("stop", "--keep-bubbles")[0] == 0
    with pytest.raises(ipc.LinkBroken):
        guest.hear()
    assert there.ended()[0] == 0
    assert there.heard() == "STOPPING=1"
    until(lambda: visit(ground) == SHUT)
    there.up()
    again = entered(there, ground, again=guest.bubble)
    assert again.bubble == guest.bubble
    assert served(ground)
    assert address_of(ground, "other.example") != told == address_of(ground)
    again.leave()
    guest.leave()


def test_only_the_user_who_runs_it_may_stop_it(there: Gate) -> None:
    there.up()
    for directory in (there.directory, there.socket.parent):
        directory.chmod(0o755)
    code = (
        f"import os, socket, sys; os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"sock.connect({str(there.socket)!r})\n"
        f"sock.send({ipc.encode(Stop(False))!r})\nprint(sock.recv(4096).decode())"
    )
    told = subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True)
    assert "only the user who runs the daemon may stop it" in told
    assert there.daemon.poll() is None


# -- killed ------------------------------------------------------------------------------------------


def test_a_killed_daemon_takes_its_processes_with_it_and_leaves_the_zone_shut(
    there: Gate, ground: Zone
) -> None:
    there.up()
    guest = entered(there, ground)
    told = address_of(ground)
    children = there.processes()
    assert len(children) >= 2
    there.daemon.kill()
    wait_gone(children)
    assert visit(ground) == SHUT
    with pytest.raises(ipc.LinkBroken):
        guest.hear()
    there.up()
    again = entered(there, ground, again=guest.bubble)
    assert (again.bubble, address_of(ground)) == (guest.bubble, told)
    there.daemon.terminate()
    assert again.hear() == Leave()
    again.leave()
    guest.leave()
    assert there.ended()[0] == 0
    assert chain.verify(there.directory / "state" / "audit").problems == ()


def test_a_stopped_daemon_holds_no_bubble_up(there: Gate, ground: Zone) -> None:
    there.up()
    guest = entered(there, ground)
    os.kill(there.daemon.pid, signal.SIGSTOP)
    assert served(ground)
    os.kill(there.daemon.pid, signal.SIGCONT)
    guest.leave()
