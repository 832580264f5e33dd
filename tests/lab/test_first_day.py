"""A stranger's first day: what `zonegate init` prints is typed in as it stands, and works."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lab import kernel
from lab.kernel import Done, Place
from lab.world import Host


def first_day(host: Host, directory: Path) -> Done:
    """`zonegate init corp`, and then all the lines that it printed, in a shell on a machine of its own."""
    network = kernel.new_network()
    try:
        kernel.must(network, "ip link set lo up")
        environment = {
            **host.place.environment,
            "PATH": f"{Path(sys.executable).parent}:{kernel.PATH}",
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_DATA_HOME": str(directory / "data"),
        }
        place = Place(network, host.mounts, host.uid, environment)
        made = kernel.run(place, ["sh", "-c", f"cd {directory} && zonegate init corp"])
        assert made.code == 0, made
        _, _, steps = made.out.partition("next, both ends on this machine:\n")
        script = f"cd {directory}\n{steps}wait\n"
        return kernel.run(place, ["bash", "-c", script], limit_s=150)
    finally:
        os.close(network)


@pytest.mark.parametrize(
    "host", ["user"], indirect=True
)  # root's daemon would keep its state on this machine
def test_the_printed_steps_work_as_they_stand(host: Host) -> None:
    """They end with a page that came through the tunnel, a refusal with its reason, and nothing running."""
    directory = host.directory / "first"
    directory.mkdir()
    os.chown(directory, host.uid, host.uid)
    done = first_day(host, directory)
    assert "\nhello\n" in done.out, done
    assert "198.51.100.1:80 is blocked by" in done.out, done
    assert " passed, 0 failed" in done.out, done
    assert "attested" in done.out, done
