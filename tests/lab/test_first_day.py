"""First days: what `zonegate init` prints is typed in as it stands, on one machine and on two."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import kernel
from lab.kernel import Done, Place
from lab.world import GATEWAY, HOSTS, INTRANET, Host, World

AS_USER = pytest.mark.parametrize(
    "host", ["user"], indirect=True
)  # root's state would be kept on this machine
ELSEWHERE = "gw.corp.example:8449"
LIMIT_S = 90.0


def environment(host: Host, directory: Path) -> dict[str, str]:
    """Of a person who has put the project's commands on the path, as the README says."""
    return {
        **host.place.environment,
        "PATH": f"{Path(sys.executable).parent}:{kernel.PATH}",
        "XDG_STATE_HOME": str(directory / "state"),
        "XDG_DATA_HOME": str(directory / "data"),
    }


def first_day(host: Host, directory: Path) -> Done:
    """`zonegate init corp`, and then all the lines that it printed, in a shell on a machine of its own."""
    network = kernel.new_network()
    try:
        kernel.must(network, "ip link set lo up")
        place = Place(network, host.mounts, host.uid, environment(host, directory))
        made = kernel.run(place, ["sh", "-c", f"cd {directory} && zonegate init corp"])
        assert made.code == 0, made
        _, _, steps = made.out.partition("next, both ends on this machine:\n")
        script = f"cd {directory}\n{steps}wait\n"
        return kernel.run(place, ["bash", "-c", script], limit_s=400)
    finally:
        os.close(network)


@AS_USER
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


# -- two machines ------------------------------------------------------------------------------------


@pytest.fixture
def name_of_gateway(host: Host, world: World) -> Iterator[None]:
    """The device knows where the gateway's name leads."""
    hosts = world.directory / "hosts-of-the-device"
    hosts.write_text(f"127.0.0.1 localhost\n{GATEWAY} {ELSEWHERE.partition(':')[0]}\n")
    assert kernel.run(host.root, ["mount", "--bind", str(hosts), "/etc/hosts"]).code == 0
    try:
        yield
    finally:
        kernel.run(host.root, ["umount", "/etc/hosts"])


@AS_USER
def test_the_printed_steps_for_two_machines(host: Host, world: World, name_of_gateway: None) -> None:
    """A page comes from the other machine; then the device is revoked there, and its tunnel is refused."""
    here, there = host.directory / "here", host.directory / "there"
    for directory in (here, there):
        directory.mkdir()
        os.chown(directory, host.uid, host.uid)
    device = Place(world.device, host.mounts, host.uid, environment(host, here))
    corp = Place(world.corp, host.mounts, host.uid, environment(host, there))

    def at(place: Place, directory: Path, line: str) -> list[str]:
        return ["sh", "-c", f"cd {directory} && exec {line}"]

    def types(line: str) -> Done:
        return kernel.run(device, at(device, here, line))

    with ExitStack() as undo:
        undo.callback(shutil.rmtree, here)
        undo.callback(shutil.rmtree, there)
        made = types(f"zonegate init corp --gateway {ELSEWHERE}")
        steps = [line.partition("    #")[0].strip() for line in made.out.partition("next:\n")[2].splitlines()]
        test, copy, gateway, up, status = filter(None, steps)
        assert types(test).code == 0
        done = kernel.run(
            host.root, ["sh", "-c", f"cd {here} && {copy.replace('scp', 'cp').replace('THERE:', str(there))}"]
        )
        assert done.code == 0, done
        kernel.run(host.root, ["chown", "-R", f"{host.uid}:{host.uid}", str(there)])
        _put_own_names(there / "gateway/gateway.yaml")
        for place, directory, line in ((corp, there, gateway), (device, here, up)):
            with (directory / "said").open("wb") as said:
                process = kernel.start(place, at(place, directory, line), stdout=said, stderr=said)
            undo.callback(kernel.end, process)
        kernel.until("it is attested", lambda: types(status).code == 0, LIMIT_S)
        done = types("zonegate run -- curl -sS http://intranet.corp.example/")
        assert "the intranet" in done.out, done
        done = types("zonegate cert revoke laptop --site corp")
        assert "copy it to the gateway if that is elsewhere" in done.out, done
        shutil.copyfile(here / "corp/gateway/revoked.txt", there / "gateway/revoked.txt")
        kernel.until("it is refused", lambda: "403" in types(status).out, LIMIT_S)
        done = types("zonegate run -- curl -sS http://intranet.corp.example/")
        assert "tunnel hq is not proved" in done.out, done
        assert types("zonegate stop").code == 0


def _put_own_names(file: Path) -> None:
    """What a person is told to do there: their own network, and here no resolver either."""
    text = file.read_text()
    assert "10.20.0.0/16" in text and "resolver: system" in text
    addresses = "".join(f"  {name}: {to[0]}\n" for name, to in HOSTS.items() if to == (INTRANET,))
    text = text.replace("10.20.0.0/16", f"{INTRANET}/32").replace("resolver: system", "resolver: hosts")
    file.write_text(f"{text}hosts:\n{addresses}")
