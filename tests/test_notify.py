"""What a daemon says to its service manager."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import notify


@pytest.mark.parametrize("abstract", [False, True], ids=["in the file system", "abstract"])
def test_states_reach_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@zonegate-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.ready()
        assert manager.recv(100) == b"READY=1"
        notify.stopping()
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "@nobody-listens-here", "x" * 500])
def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.ready()


def test_a_line_is_one_line_with_the_programs_name(capsys: pytest.CaptureFixture[str]) -> None:
    notify.say("tunnel hq is attested")
    assert capsys.readouterr().err == "zonegate: tunnel hq is attested\n"


def test_nobody_waits_for_who_has_stopped_reading() -> None:
    """Whoever waited would renew no lease meanwhile, and every flow would be cut."""
    code = "from proxy import notify; notify.say('first'); notify.say('x' * 100_000); notify.say('last')"
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as journal, os.fdopen(writing, "wb") as full:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writing, bytes(4096)):
                pass
        os.set_blocking(writing, True)
        subprocess.run([sys.executable, "-c", code], stderr=full, timeout=60, check=True)
        os.read(reading, 1 << 20)
        subprocess.run([sys.executable, "-c", code], stderr=full, timeout=60, check=True)
        full.close()
        lines = journal.read().split(b"\n")
    assert lines == [
        b"zonegate: first",
        b"zonegate: " + b"x" * notify.MOST_CHARACTERS,
        b"zonegate: last",
        b"",
    ]
