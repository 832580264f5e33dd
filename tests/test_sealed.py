"""The life of a sealed process: what it may not do from before the moment in which it hears of anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from proxy import ipc
from proxy.messages.worker import Configure, Sealed

CONFIGURE = Configure("corporate", "ana", (), "p", "p.yaml", "structural", (), False, 10, 1000, False)
PROGRAM = """
import os, resource, sys
from proxy import sealed

async def work(fd):
    os.write(fd, b"x" * 1100)
    try:
        os.write(fd, b"x")
    except OSError as error:
        print(error.strerror)
    if os.geteuid() == 0:
        os.setuid(65534)  # as a worker, which has no capabilities
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1101, 1101))
    except ValueError as error:
        print(error)

sealed.ROOM_BYTES = 100
sealed.run(sys.argv[1:], [], lambda link, configure, fds: work(fds[1]))
"""


def test_it_writes_so_much_into_a_segment_and_no_more(tmp_path: Path) -> None:
    ours, theirs = ipc.pair()
    segment = tmp_path / "segment"
    fds = [ipc.memory_file("policy", b""), os.open(segment, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)]
    with ours, theirs:
        command = [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True)
        assert isinstance(ipc.receive(ours, [Sealed])[0], Sealed)
        ipc.send(ours, CONFIGURE, fds)
        ipc.close_all(fds)
        said, _ = process.communicate(timeout=90)
    assert said.splitlines() == ["File too large", "not allowed to raise maximum limit"]
    assert segment.stat().st_size == 1100
