"""`zonegate gateway` as a process: readiness, signals, and mistakes told in one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from loopback import Site

from proxy.certificates import issue_server, make_authority, write_issued

CONFIG = """\
gateway: 1
listen: ["127.0.0.1:0", "[::1]:0"]
certificate: server.crt
key: server.key
clients: {ca: ca.crt, revoked: revoked}
allow:
  - {names: [a.example], ports: [443]}
log: gateway.log
"""
COMMAND = (sys.executable, "-c", "from proxy.cli import main; main()", "gateway", "-c")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    site = Site(tmp_path)
    (tmp_path / "ca.crt").write_text(site.authority.pem)
    (tmp_path / "revoked").touch()
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    return tmp_path


@contextmanager
def started(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """The gateway, once it has told its service manager that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(90)
        environment = {**os.environ, "NOTIFY_SOCKET": str(directory / "notify")}
        with subprocess.Popen(
            [*COMMAND, directory / "gateway.yaml"], env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert manager.recv(100) == b"READY=1"
                yield process
            finally:
                process.kill()


def test_it_says_that_it_listens_and_ends_on_sigterm(directory: Path) -> None:
    with started(directory) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("zonegate: gateway listening on 127.0.0.1:")
        assert ", [::1]:" in said
        assert ", key sha256:" in said
        (directory / "gateway.log").rename(directory / "gateway.log.1")
        process.send_signal(signal.SIGHUP)
        while not (directory / "gateway.log").exists():
            os.sched_yield()
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
        assert process.stderr.read() == ""
    first, last = (json.loads((directory / name).read_text()) for name in ("gateway.log.1", "gateway.log"))
    assert (first["what"], last["what"]) == ("started", "stopped")
    assert first["pin"] in said


def test_it_serves_on_the_sockets_of_a_service_manager(directory: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        fd = listener.fileno()
        manager = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        with subprocess.Popen(
            [sys.executable, "-c", manager, str(fd), *COMMAND, directory / "gateway.yaml"],
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert f"listening on 127.0.0.1:{listener.getsockname()[1]}, key" in process.stderr.readline()
            process.terminate()
            assert process.wait(90) == 0


@dataclass(frozen=True)
class Broken:
    id: str
    right: str
    wrong: str
    said: str
    cure: str = ""


BROKEN = (
    Broken(
        "a key that is not there", "key: server.key", "key: no.key", "4:6: ", "path of the certificate's key"
    ),
    Broken("a key that is none", "key: server.key", "key: gateway.yaml", "4:6: ", "there is no key in it"),
    Broken("a key of another certificate", "key: server.key", "key: client.key", "3:14: ", "made together"),
    Broken("a certificate that is none", "server.crt", "gateway.yaml", "3:14: ", "as PEM"),
    Broken("a CA that is none", "ca: ca.crt", "ca: gateway.yaml", "5:15: ", "as PEM"),
    Broken("a CA that is not there", "ca: ca.crt", "ca: none.crt", "5:15: ", "as PEM"),
    Broken("no revocations", "revoked: revoked", "revoked: none", "5:32: ", "an empty file revokes nobody"),
    Broken(
        "a log in no directory",
        "log: gateway.log",
        "log: none/gateway.log",
        "8:6: ",
        "a directory that is there",
    ),
    Broken("an address of another machine", "127.0.0.1:0", "192.0.2.77:0", "2:10: cannot listen there"),
    Broken(
        "more clients than descriptors",
        "log:",
        "limits: {clients: 1000000}\nlog:",
        "8:19: 1000000 clients need more open files",
    ),
    Broken("an unknown key", "allow:", "alow:", "6:1: unknown key"),
)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
def test_a_mistake_is_told_with_its_place(directory: Path, case: Broken) -> None:
    file = directory / "gateway.yaml"
    file.write_text(CONFIG.replace(case.right, case.wrong, 1))
    file.chmod(0o600)  # where it is named as a key
    assert_refused(file, f"zonegate: {file}:{case.said}", case.cure)


def test_an_expired_certificate_and_a_key_that_others_read(directory: Path) -> None:
    file = directory / "gateway.yaml"
    (directory / "server.key").chmod(0o640)
    assert_refused(file, f"{file}:4:6: ", "chmod 600")
    authority = make_authority("site", now=datetime.now(UTC))
    old = issue_server(authority, ["a"], now=datetime.now(UTC) - timedelta(days=500))
    write_issued(old, directory, "old")
    file.write_text(CONFIG.replace("server.", "old."))
    assert_refused(file, f"{file}:3:14: ", "has expired; issue a new one")
    assert_refused(
        directory / "none.yaml", f"{directory / 'none.yaml'}:1:1: ", "no such file", "make one: zonegate init"
    )


def assert_refused(file: Path, *said: str) -> None:
    done = subprocess.run([*COMMAND, file], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
