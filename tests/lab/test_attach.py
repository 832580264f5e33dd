"""Namespaces that were there before: served, held over a restart of the daemon, left without a way out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, NewGate, Watch
from lab.gate import PROGRAMS, Bubble, Gate, python, started
from lab.kernel import Place
from lab.world import INTRANET, PUBLIC, RESOLVER

NAME = "intranet.corp.example"
pytestmark = AS_ROOT  # nobody else may attach

PAGE = f"http://{NAME}/"
ASKING = "echo begun; while read page; do echo heard $(curl -sS -m 60 $page 2>&1); done"
# How containers are started without a network: their programs are in it before anybody attaches it.
KINDS = {
    "unshare": ["unshare", "--net", "--fork"],
    "a sandbox": [
        "bwrap", "--unshare-all", "--dev-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/run",
        "--tmpfs", "/tmp", "--ro-bind", str(PROGRAMS), str(PROGRAMS), "--cap-add", "ALL",
    ],
}  # fmt: skip


@dataclass(slots=True)
class Container:
    """A program in a network of its own, and the `zonegate attach` that serves it."""

    gate: Gate
    program: Bubble
    attaching: list[Bubble] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """A process in it."""
        return kernel.descendants(self.program.process.pid)[-1]

    def attach(self, *options: str) -> Bubble:
        """`zonegate attach` of it; what it says comes in lines."""
        place = self.gate.host.place
        there = Place(place.network, place.mounts, 0, {**place.environment, **self.gate.environment})
        command = self.gate.command("attach", *(options or ("--pid", str(self.pid))))
        attaching = started(self.gate, there, command)
        self.attaching.append(attaching)
        return attaching

    def asks(self, page: str = PAGE) -> str:
        """What the program hears when it asks for a page."""
        self.program.lines()
        self.program.tell(page)
        return self.program.says("heard")

    def close(self) -> None:
        """End everything."""
        for one in (*self.attaching, self.program):
            one.end()


def crun(bundle: Path) -> list[str]:
    """The same in a container of crun: with the programs of this machine, files in /etc of its own, and the
    network that `--network none` of podman and docker gives."""
    kernel.need("crun")
    shutil.rmtree(bundle, ignore_errors=True)
    rootfs = bundle / "rootfs"
    for name in ("usr", "proc", "dev", "tmp", "etc"):
        (rootfs / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (rootfs / name).symlink_to(f"usr/{name}")
    (rootfs / "etc/resolv.conf").write_text(f"nameserver {RESOLVER}\n")
    (rootfs / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    namespaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    config = {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", ASKING],
            "env": [f"PATH={kernel.PATH}"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/usr", "type": "none", "source": "/usr", "options": ["rbind", "ro"]},
        ],
        "linux": {"namespaces": namespaces},
    }
    (bundle / "config.json").write_text(json.dumps(config))
    run = f"crun --root {bundle}/state --cgroup-manager=disabled run --bundle {bundle} lab"
    # It looks at the machine's cgroups all the same, and refuses some ways of mounting them.
    return ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /sys/fs/cgroup && exec {run}"]


@contextlib.contextmanager
def container(gate: Gate, kind: str) -> Iterator[Container]:
    """A container in which a shell asks for a page whenever it is told to."""
    file = f"echo nameserver {RESOLVER} > /mnt/r"
    own = f"mount -t tmpfs tmpfs /mnt && {file} && mount --bind /mnt/r /etc/resolv.conf"
    shell = ["unshare", "--mount", "sh", "-c", f"{own} && {ASKING}"]
    command = [*KINDS[kind], *shell] if kind in KINDS else crun(gate.directory / "bundle")
    made = Container(gate, started(gate, gate.host.root, command))
    try:
        made.program.says("begun")
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("kind", [*KINDS, "crun"])
def test_a_container_is_served(gate: Gate, watch: Watch, kind: str) -> None:
    """A program that runs already reaches the intranet by the tunnel, and nothing else leaves."""
    with container(gate, kind) as there:
        assert "Could not resolve" in there.asks()
        attaching = there.attach()
        promise = "cooperative" if kind == "unshare" else "structural"
        attaching.says(f"is zone corporate ({promise})")
        assert there.asks() == "heard the intranet"
        assert "is blocked by default" in there.asks(f"http://{PUBLIC}/")
        (listed,) = [one for one in gate.status()["bubbles"] if one["attached"]]
        assert listed["attached"] == f"process {there.pid}"
        record = gate.record("verdict", lambda row: row["name"] == NAME and row["bubble"] == listed["id"])
        assert record["user"] == "root" and record["enforcement"] == promise
        again = there.attach()
        again.says("served already, as bubble")
        assert again.process.wait(kernel.LIMIT_S) == 1
        done = gate.call("detach", "--pid", str(there.pid))
        assert done.code == 0 and "nothing that it sends goes anywhere" in done.out, done
        attaching.says("is detached")
        assert attaching.process.wait(kernel.LIMIT_S) == 0
        assert "Could not resolve" in there.asks()
        kernel.until("status forgets it", lambda: not any(b["attached"] for b in gate.status()["bubbles"]))
        there.attach().says("is zone corporate")
        assert there.asks() == "heard the intranet", "and it may be attached again"
    watch.only_the_gateway()


def test_datagrams_are_refused_at_once(gate: Gate, watch: Watch) -> None:
    """A zone whose tunnels are all mtls carries none: a program hears so, and can use TCP."""
    with container(gate, "unshare") as there:
        there.attach().says("is zone corporate")
        for target in (INTRANET, PUBLIC):
            done = kernel.run(_in(there), python("datagrams", "refused", target, "7100"))
            assert done.out == "EHOSTUNREACH at once\n", done
    watch.only_the_gateway()


def test_it_is_held_over_the_death_of_a_daemon(new_gate: NewGate, watch: Watch) -> None:
    """Its programs are shut in, and have the gate again, without being started again."""
    gate = new_gate().attested()
    with container(gate, "unshare") as there:
        attaching = there.attach()
        attaching.says("is zone corporate")
        assert there.asks() == "heard the intranet"
        bubble = gate.status()["bubbles"][0]["id"]
        assert gate.process is not None
        kernel.end(gate.process, signal.SIGKILL)
        attaching.says("is shut in")
        assert "the intranet" not in there.asks()
        gate.start().attested()
        attaching.says("is served again")
        assert there.asks() == "heard the intranet"
        assert gate.status()["bubbles"][0]["id"] == bubble, "under its old name"
        assert attaching.process.poll() is None
        kernel.end(attaching.process, signal.SIGKILL)
        kernel.until("status forgets it", lambda: not gate.status()["bubbles"])
        assert "the intranet" not in there.asks(), "also when who attached it is killed"
    watch.only_the_gateway()


@pytest.fixture
def with_a_device(gate: Gate) -> Iterator[Container]:
    """A container with a link to the device: it has a way out."""
    with container(gate, "unshare") as there:
        network = os.open(f"/proc/{there.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            path = f"/proc/{os.getpid()}/fd/{network}"
            kernel.must(
                gate.host.world.device,
                f"ip link add zatt type veth peer name up0 netns {path}",
                "ip link set zatt up",
                "ip addr add 10.200.5.1/24 dev zatt",
            )
            yield there
        finally:
            os.close(network)
            kernel.run(Place(gate.host.world.device), ["ip", "link", "del", "zatt"])


def test_a_container_with_a_way_out_is_refused(gate: Gate, with_a_device: Container) -> None:
    """The device is named, whether it is up or not; nothing is changed."""
    attaching = with_a_device.attach()
    attaching.says("has device up0, which would be a way out")
    assert attaching.process.wait(kernel.LIMIT_S) == 1
    rules = kernel.run(_in(with_a_device), ["nft", "list", "ruleset"])
    assert (rules.code, rules.out) == (0, ""), rules


def test_a_device_that_comes_later_ends_it(gate: Gate) -> None:
    """Nothing is carried for a namespace that can be left by another way, and it is said which."""
    with container(gate, "unshare") as there:
        attaching = there.attach()
        attaching.says("is zone corporate")
        kernel.run(_in(there), ["ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1"])
        attaching.says("late0, which would be a way out")
        assert attaching.process.wait(kernel.LIMIT_S) == 1
        assert "the intranet" not in there.asks()


def _in(there: Container) -> Place:
    """Root of the host in a container's network; the descriptor lives as long as the tests."""
    return Place(os.open(f"/proc/{there.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))


@dataclass(frozen=True, slots=True)
class Refused:
    """What is no zone, and the words."""

    options: tuple[str, ...]
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Refused(("--pid", "{daemon}"), "this host's own network"),
        Refused(("--pid", "4194304"), "No such process"),
        Refused(("--netns", "no-such-name"), "No such file"),
        Refused(("--netns", "../../etc/passwd"), "is no name of a network namespace"),
        Refused((), "say which namespace"),
        Refused(("--pid", "1", "--netns", "x"), "say which namespace"),
    ],
    ids=lambda case: " ".join(case.options) or "nothing",
)
def test_what_is_no_zone(gate: Gate, case: Refused) -> None:
    """One line, and nothing is captured."""
    done = gate.call("attach", *(word.format(daemon=gate.pid) for word in case.options))
    assert done.code != 0 and case.words in done.err, done
    assert not any(one["attached"] for one in gate.status()["bubbles"])


def test_root_in_a_container(gate: Gate, watch: Watch) -> None:
    """With every capability over its network a program takes the capture away, and is still nowhere."""
    with container(gate, "unshare") as there:
        there.attach().says("is zone corporate")
        place = _in(there)
        for target in (PUBLIC, INTRANET, RESOLVER):
            kernel.run(place, ["curl", "-sS", "-m", "2", f"http://{target}/"])
        kernel.must(place.network, "nft flush ruleset", "ip route flush table local", "ip link set lo down")
        for target in (PUBLIC, INTRANET, RESOLVER):
            done = kernel.run(place, ["curl", "-sS", "-m", "2", f"http://{target}/"])
            assert done.code != 0, done
    watch.only_the_gateway()
