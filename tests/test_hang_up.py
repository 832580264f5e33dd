"""The terminal in which a person started a daemon is closed: an orderly end, or none where it was told so."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from gates import LIMIT_S, Gate, gate

# A session of its own whose terminal is standard input.
_IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def in_a_terminal(there: Gate, *command: str) -> int:
    """Start a daemon in a terminal; the end of it that a person has."""
    master, slave = pty.openpty()
    there.daemon = subprocess.Popen(
        [sys.executable, "-c", _IN_A_TERMINAL, *command],
        env=there.environment,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(slave)
    there.adopt(there.daemon)
    assert there.heard() == "READY=1"
    return master


@pytest.mark.parametrize("outlives", [False, True], ids=["as it is", "with nohup"])
def test_a_terminal_that_is_closed(outlives: bool) -> None:
    """Bubbles are ended with it, as by `zonegate stop`; it is neither killed nor left half."""
    with gate() as there:
        up = (sys.executable, "-m", "proxy.cli", "up", "-c", str(there.config))
        terminal = in_a_terminal(there, *(["nohup"] if outlives else []), *up)
        program = there.start("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
        assert program.stdout is not None and program.stdout.readline() == "ready\n"
        os.close(terminal)
        if outlives:
            assert there.heard().startswith("RELOADING=1\n"), "the signal came, and was taken for a reload"
            assert len(there.status()["bubbles"]) == 1
            there.daemon.terminate()
        code, said = there.ended()
        assert code == 0
        assert ("the terminal in which it was started was closed" in said) is not outlives
        assert program.wait(LIMIT_S) != 0
        assert not there.socket.exists()
