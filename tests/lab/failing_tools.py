"""The tools of a host, nft, ip, wg and mount, whose calls are counted, and of which the Nth fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import kernel
from lab.world import Host

TOOLS = ("/usr/sbin/nft", "/usr/sbin/ip", "/usr/bin/wg", "/usr/bin/mount")
SHIM = """#!/bin/sh
exec 9>>{directory}/calls
flock 9
echo "$0 $*" >&9
calls=$(wc -l < {directory}/calls)
exec 9>&-
[ "$calls" != "$(cat {directory}/fails)" ] || {{ echo "the lab has this call fail" >&2; exit 1; }}
exec {directory}/{name} "$@"
"""


class Tools:
    """The tools of a host, of whose calls one fails."""

    def __init__(self, directory: Path) -> None:
        self._calls, self._fails = directory / "calls", directory / "fails"

    def fail_at(self, call: int) -> None:
        """Count anew; this call fails, and none after it."""
        self._fails.write_text(str(call))
        self._calls.write_text("")

    def calls(self) -> list[str]:
        """Those that there were, whole lines only."""
        return self._calls.read_text().split("\n")[:-1]


@pytest.fixture
def tools(host: Host) -> Iterator[Tools]:
    """Those of one host, for as long as a test lasts."""
    directory = host.directory / "tools"
    directory.mkdir()
    made = Tools(directory)
    made.fail_at(0)
    for name in ("calls", "fails"):
        (directory / name).chmod(0o666)
    mounted = []
    try:
        for tool in map(Path, TOOLS):
            (directory / tool.name).write_bytes(tool.read_bytes())
            (directory / tool.name).chmod(0o755)
            shim = directory / f"{tool.name}.sh"
            shim.write_text(SHIM.format(directory=directory, name=tool.name))
            shim.chmod(0o755)
            assert kernel.run(host.root, ["/bin/mount", "--bind", str(shim), str(tool)]).code == 0
            mounted.append(tool)
        yield made
    finally:
        for tool in mounted:
            assert kernel.run(host.root, ["umount", str(tool)]).code == 0
        shutil.rmtree(directory)
