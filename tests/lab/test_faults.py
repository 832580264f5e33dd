"""What runs out or comes as junk: refused with a reason, remembered in status, and nobody else suffers.

Row L7, row B12, floods and junk on every socket.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, WITH_A_CONTROL, NewGate, Watch
from lab.gate import Gate, python
from lab.shortage import short_of

NAME = "intranet.corp.example"
FLOOD = 10_000
RSS_MIB = 150.0
# Lets go of the flood at a word, and asks for a page at each that follows.
FLOOD_AND_ASK = f"""
(read go) | "$@"
echo closed
while read limit; do curl -4 -sS -m $limit -o /dev/null -w 'status %{{http_code}}\\n' http://{NAME}/; done"""
RECORDS_A_PAGE = 8  # and more: a flow has two, of about 500 bytes


def served(gate: Gate) -> bool:
    """Whether a new request from a new bubble is good."""
    return gate.run("curl", "-sS", "-m", "60", f"http://{NAME}/").out == "the intranet\n"


# -- L7 ----------------------------------------------------------------------------------------------


@WITH_A_CONTROL
def test_a_full_disk(new_gate: NewGate, control: bool) -> None:
    """L7: what cannot be recorded is denied, `status` says why, and it goes on when there is room."""
    gate = new_gate(*(["audit"] if control else []))
    gate.end()
    host, state = gate.host, gate.directory / "state"
    for words in (["rm", "-rf", str(state)], ["mkdir", str(state)]):
        assert kernel.run(host.place, words).code == 0
    options = f"size=256k,mode=700,uid={host.uid},gid={host.uid}"
    mounted = kernel.run(host.root, ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(state)])
    assert mounted.code == 0, mounted
    try:
        gate.start().attested()
        assert served(gate)
        kernel.run(host.place, ["sh", "-c", f"head -c 1M /dev/zero > {state}/filler"])
        # The segment's last page has room for a few records more.
        ask = f"for i in $(seq {RECORDS_A_PAGE}); do curl -sS -m 60 http://{NAME}/; done"
        pages = gate.run("sh", "-c", ask).out.splitlines()
        if control:
            assert set(pages) == {"the intranet"}, "a control must be red"
            return
        assert "nothing can be recorded" in pages[-1], pages
        kernel.until("status says why", lambda: gate.status()["trouble"])
        assert "new flows are denied" in gate.call("status").out
        kernel.run(host.place, ["rm", f"{state}/filler"])
        kernel.until("there is room again", lambda: served(gate))
        kernel.until("status forgets it", lambda: not gate.status()["trouble"])
    finally:
        gate.end()
        kernel.run(host.root, ["umount", str(state)])


@AS_ROOT
@pytest.mark.parametrize("control", [True, False], ids=["control", ""])
def test_no_descriptors_left(new_gate: NewGate, control: bool) -> None:
    """L7: a worker without descriptors crashes not, and serves who took them, and others, when they go."""
    gate = new_gate(*(["room"] if control else []), descriptors=256).attested()
    worker = gate.child("worker")
    flood = gate.bubble("sh", "-c", FLOOD_AND_ASK, "sh", *python("flood", NAME, "80", "600"))
    flood.says("opened")
    flood.tell("go")
    flood.says("closed")

    def status(limit_s: int) -> str:
        flood.tell(str(limit_s))
        return flood.says("status")

    if control:
        assert {status(1) for _ in range(5)} == {"status 000"}, "a control must be red"
        return
    kernel.until("who took them is served", lambda: status(60) == "status 200")
    kernel.until("others are served", lambda: served(gate))
    assert gate.child("worker") == worker and gate.process is not None and gate.process.poll() is None


@AS_ROOT
def test_no_memory_left(new_gate: NewGate, watch: Watch) -> None:
    """L7: a worker that can map no page more harms nobody but those that it serves; `make lab-long` has the
    others, and what the kernel kills for it."""
    gate = new_gate().attested()
    with short_of("memory", gate.child("worker")):
        flood = gate.bubble(*python("flood", NAME, "80", "6000"))
        kernel.until("it is opened or refused", lambda: flood.lines() or flood.process.poll() is not None)
    flood.end()
    kernel.until("others are served", lambda: served(gate))
    watch.only_the_gateway()


def test_ten_thousand_connections_opened_and_left(
    new_gate: NewGate, record_property: Callable[[str, object], None]
) -> None:
    """One bubble leaves 10,000 connections open: its worker stays small, and another bubble is served."""
    gate = new_gate().attested()
    worker = gate.child("worker")
    flood = gate.bubble(*python("flood", NAME, "80", str(FLOOD)))
    assert f"opened {FLOOD}" in flood.says("opened")
    assert served(gate)
    rss = kernel.rss_mib(worker)
    record_property("rss_mib", rss)
    assert gate.child("worker") == worker
    assert rss < RSS_MIB, f"{rss:.0f} MiB"


# -- junk --------------------------------------------------------------------------------------------


@WITH_A_CONTROL
def test_junk_on_the_admin_socket(new_gate: NewGate, control: bool) -> None:
    """Whoever may connect can send anything: the link is closed, the daemon goes on.

    A daemon that makes sense of everything takes one of them for an order to stop.
    """
    gate = new_gate(*(["messages"] if control else [])).attested()
    pieces = [b"\0", b"{}", b'{"is":"Stop"}', b"[" * 50_000, b'{"is":"Ask","what":1,"parameters":2}',
              os.urandom(4096), b'{"is":"Enter","zone":"corporate","again":"","cooperative":false}',
              b'{"is":"Enter","zone":"x","again":"","cooperative":false,"pid":1}']  # fmt: skip
    program = python("junk", "unix", str(gate.socket))
    done = kernel.run(gate.host.place, program, stdin=b"\n".join(piece.hex().encode() for piece in pieces))
    if control:
        assert gate.process is not None
        assert gate.process.wait(kernel.LIMIT_S) == 0, "a control must be red"
        return
    assert done.out.split().count("closed") == len(pieces), done
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(gate.socket))
        assert served(gate), "a peer that says nothing holds nobody up"


@AS_ROOT
@pytest.mark.parametrize("control", ["junk-questions", "junk-streams", ""])
def test_junk_in_a_zone(new_gate: NewGate, control: str) -> None:
    """Junk to the resolver and to ports of every protocol harms neither worker nor others."""
    gate = new_gate(*([control] if control else [])).attested()
    worker = gate.child("worker")
    done = gate.python("junk", "zone", NAME)
    if control:
        kernel.until("a control is red", lambda: "the worker of zone corporate ended" in gate.said())
        return
    assert "done" in done.out, done
    assert served(gate) and gate.child("worker") == worker
    assert "ended" not in gate.said()


# -- B12: names ---------------------------------------------------------------------------------------


@WITH_A_CONTROL
def test_an_address_of_another_bubble(new_gate: NewGate, control: bool) -> None:
    """B12: a synthetic address means a name only in the bubble that was told it; others are reset."""
    gate = new_gate(*(["names-of-others"] if control else [])).attested()
    bubble = gate.bubble("sh", "-c", f"getent ahostsv4 {NAME}; echo told; sleep 1000")
    bubble.says("told")
    address = bubble.heard[0].split()[0]
    done = gate.run("curl", "-sS", "-m", "60", "-H", f"Host: {NAME}", f"http://{address}/")
    if control:
        assert done.out == "the intranet\n", f"a control must be red: {done}"
    else:
        assert done.out != "the intranet\n" and "nothing in this bubble asked" in done.out + done.err, done


FIRST_ADDRESS = f"""
first=$(getent ahostsv4 {NAME} | head -1 | cut -d' ' -f1)
echo told; read go
curl -sS -m 60 -H 'Host: {NAME}' "http://$first/"
echo done"""


@pytest.mark.parametrize("what", ["the worker", "the daemon", "the daemon and its memory (control)"])
def test_a_restart_between_answer_and_connect(new_gate: NewGate, what: str) -> None:
    """B12: an address that a bubble was told means the same name when the worker or the daemon is new."""
    control = "control" in what
    gate = new_gate(*(["names-kept"] if control else [])).attested()
    bubble = gate.bubble("sh", "-c", FIRST_ADDRESS)
    bubble.says("told")
    if what == "the worker":
        kernel.signal_all([gate.child("worker")], signal.SIGKILL)
    else:
        assert gate.call("stop", "--keep-bubbles").code == 0
        assert gate.process is not None
        gate.process.wait(kernel.LIMIT_S)
        gate.start()
    gate.attested()
    kernel.until("it is served again", lambda: len(gate.status()["bubbles"]) == 1 and served(gate))
    bubble.tell("go")
    bubble.says("done")
    assert ("the intranet" in bubble.heard) == (not control), bubble.heard


@AS_ROOT
def test_a_quota_of_names(new_gate: NewGate) -> None:
    """B12: a bubble that asks for more names than it may have is told so, and another one is not."""
    control = new_gate("names-quota", limits="names: 50").attested()
    assert "refused" not in control.python("junk", "names", "80").out, "a control must be red"
    control.end()
    gate = new_gate(limits="names: 50").attested()
    bubble = gate.bubble(*python("junk", "names", "80", "stay"))
    assert "refused after 50" in bubble.says("names")
    assert served(gate)
