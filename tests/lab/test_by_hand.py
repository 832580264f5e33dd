"""What is ordered of a daemon that goes on: a reload cuts what it forbids and no more, a lock everything.

Rows L5 and L2: flows from before a revocation, and a daemon that is killed after it was told to lock.
"""

from __future__ import annotations

import signal

import pytest

from lab import kernel
from lab.conftest import NewGate, Watch
from lab.gate import Gate, python
from lab.kernel import Done
from lab.test_tunnel import NAME, download, goes_on

# Nothing in these depends on the user: the control as root, the row itself as an ordinary user.
ONCE = pytest.mark.parametrize(
    ("host", "control"), [("root", True), ("user", False)], ids=["control", "user"], indirect=["host"]
)
GUARDS = "guards: # ceilings: no rule below can lift one\n"
CLOSED = "  - {id: closed, match: {to: intranet}, at_most: block}\n"


def edit_policy(gate: Gate, old: str, new: str) -> Done:
    """Edit the policy's file and have it taken."""
    path = gate.directory / "policy.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    done = gate.call("reload")
    assert done.code == 0, done
    return done


@ONCE
def test_a_reload_cuts_what_it_forbids_and_nothing_else(
    new_gate: NewGate, watch: Watch, control: bool
) -> None:
    gate = new_gate(*(["judged-again"] if control else [])).attested()
    bubble = download(gate)
    done = edit_policy(gate, "id: lab-ports", "id: other-ports")
    assert "added rule other-ports" in done.out and "0 flows cut" in done.out, done
    assert goes_on(bubble, 1.0), "what has nothing to do with it goes on"
    done = edit_policy(gate, GUARDS, GUARDS + CLOSED)
    if control:
        assert goes_on(bubble, 1.0), "a control must be red"
        return
    assert "ConnectionResetError" in bubble.says("after")
    assert "added guard closed" in done.out and "1 flow cut" in done.out, done
    gate.record("end", lambda row: row["name"] == NAME and "the policy was replaced" in row["why"])
    assert "guard closed" in gate.run("curl", "-sS", "-m", "60", f"http://{NAME}/").out
    edit_policy(gate, CLOSED, "")
    download(gate)
    watch.only_the_gateway()


@ONCE
def test_a_lock_cuts_everything_and_outlives_a_killed_daemon(
    new_gate: NewGate, watch: Watch, control: bool
) -> None:
    gate = new_gate(*(["lock"] if control else [])).attested()
    bubble = download(gate)
    asking = gate.bubble(*python("clients", "ask", NAME, "80"))
    asking.says("status 200")
    done = gate.call("lock", "--reason", "laptop lost")
    assert done.code == 0, done
    if control:
        assert goes_on(bubble, 1.0), "a control must be red"
        return
    assert "ConnectionResetError" in bubble.says("after")
    gate.record("end", lambda row: row["name"] == NAME and "laptop lost" in row["why"])
    assert "gate locked" in asking.says("status 403")
    assert gate.process is not None
    gate.process.send_signal(signal.SIGKILL)
    kernel.end(gate.process)
    gate.start().attested()
    asking.lines()
    assert "gate locked" in asking.says("status 403")
    assert gate.call("unlock").code == 0
    asking.says("status 200")
    watch.only_the_gateway()
