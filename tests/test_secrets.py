"""Keys are where they are needed and nowhere else: no argument, environment or log, no file but their own."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from gates import gate


def secrets_of(key: Path) -> list[bytes]:
    """A private key as it could be met: its text, a line of it, its bytes."""
    lines = key.read_bytes().splitlines()
    return [lines[1], base64.b64decode(b"".join(lines[1:-1]))[-32:]]


def told(pids: Iterable[int], secrets: list[bytes]) -> list[str]:
    """Where any of the secrets stands in what every process of this user may read of a process."""
    found = []
    for pid in pids:
        for name in ("cmdline", "environ", "comm", "maps"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            found += [f"{name} of {pid}" for secret in secrets if secret in content]
    return found


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_the_scan_itself(tmp_path: Path, how: str) -> None:
    """The control: a key in an argument or a variable is found."""
    key = tmp_path / "key"
    key.write_bytes(b"-----BEGIN\n" + base64.b64encode(bytes(range(48))) + b"\n-----END\n")
    line = secrets_of(key)[0].decode()
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"]
    argument, variables = ([line], {}) if how == "argument" else ([], {"KEY": line})
    with subprocess.Popen(
        [*command, *argument], env=os.environ | variables, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"\n"
            assert told([process.pid], secrets_of(key))
        finally:
            process.kill()


def test_no_process_and_no_file_of_a_daemon_shows_its_key() -> None:
    with gate() as there:
        secrets = secrets_of(there.directory / "laptop.key")
        there.up()
        there.workers()
        processes = [there.daemon.pid, *there.processes()]
        assert len(processes) >= 3
        assert told(processes, secrets) == []
        said = there.run("status", "--json")[1].encode()
        there.daemon.terminate()
        _, log = there.ended()
        places = [there.directory / "state", there.directory / "run"]
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        assert files
        for content in (said, log.encode(), *(path.read_bytes() for path in files)):
            assert not any(secret in content for secret in secrets)
        assert [path for path in files if path.stat().st_mode & 0o077] == []
