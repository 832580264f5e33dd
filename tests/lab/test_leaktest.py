"""`zonegate leaktest` on the lab's device: it holds there, and is red wherever something is made to leak."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from lab import kernel, weakened
from lab.conftest import AS_ROOT, AS_USER, WITHOUT
from lab.gate import Gate
from lab.kernel import Place
from lab.world import GATEWAY, RESOLVER
from proxy.leaktest.attempts import CALLS, FAMILIES

LIMIT_S = 400.0
ROWS = ("N1", "N2", "N4", "N5", "N11", "B1", "B2", "B3", "B4", "B5", "B6", "D1", "I10")


def _result(gate: Gate, *options: str, without: frozenset[str] = WITHOUT) -> tuple[int, dict[str, Any]]:
    place = gate.host.place
    there = Place(place.network, place.mounts, place.uid, {**place.environment, **gate.environment})
    command = weakened.command(without, ["leaktest", "--json", *options])
    done = kernel.run(there, command, limit_s=LIMIT_S)
    assert done.out, done
    return done.code, json.loads(done.out)


def _rows(result: dict[str, Any], verdict: str) -> list[str]:
    return [row["attempt"] for row in result["attempts"] if row["verdict"] == verdict]


def test_nothing_leaves(gate: Gate) -> None:
    """Every attempt held, in every state that could be made, and was seen in its control; the wire agrees."""
    everything, some = ("--disturb",), [word for row in ROWS for word in ("--row", row)]
    code, result = _result(gate, *(everything if gate.host.uid == 0 else some))
    assert (_rows(result, "leak"), _rows(result, "not shown")) == ([], []), result
    assert code == 0, result
    states = {one["state"] for row in result["attempts"] for one in row["tries"]}
    made = {"stale: the daemon is stopped", "locked", "down: held by hand"} if gate.host.uid == 0 else set()
    assert states == {"attested", "without a daemon", "coming and going", "its rules flushed"} | made
    assert not gate.status()["locks"], "what it brought about is undone"
    gate.attested()
    for row in result["attempts"]:
        shown = row["control"]["seen_at"] or row["control"]["outcome"].startswith("reached")
        assert shown or row["verdict"] == "not on this machine", row
    tried = _rows(result, "held")
    for words in (f"endpoint {GATEWAY}", f"DNS over UDP to {RESOLVER}", "in sight", "169.254.169.254",
                  "asking for AF_PACKET", "other families", "TIOCLINUX", "a signal to a process",
                  "the daemon's own socket"):  # fmt: skip
        assert any(words in title for title in tried), words
    assert ("up0" in result["captured"]) == (gate.host.uid == 0)
    assert not (seen := gate.host.world.wire.seen()), [str(frame) for frame in seen[:10]]


@AS_ROOT
def test_a_bubble_that_sees_the_hosts_sockets(gate: Gate) -> None:
    """Red: the sockets in /run and /tmp of the host, the daemon's own, files beside them."""
    rows = ("--row", "B1", "--row", "B3", "--row", "B6")
    code, result = _result(gate, *rows, without=WITHOUT | {"bubble-mounts"})
    leaks = _rows(result, "leak")
    assert code == 1 and result["counts"]["leak"] == len(leaks), result["result"]
    for title in ("a Unix socket below /tmp", "a file in the home and the directories of the host"):
        assert title in leaks, (title, leaks)
    assert {row["row"] for row in result["attempts"]} == {"B1", "B3", "B6"}


@AS_USER
def test_a_bubble_without_its_filter(gate: Gate) -> None:
    """Red: every question to the kernel that the filter answers; processes outside are still out of reach."""
    rows = ("--row", "B2", "--row", "B4", "--row", "B5")
    code, result = _result(gate, *rows, without=WITHOUT | {"bubble-filter"})
    leaks, absent = _rows(result, "leak"), _rows(result, "not on this machine")
    assert code == 1, result["result"]
    assert {"asking for TIOCLINUX, TIOCSTI", "asking for AF_PACKET"} <= {*leaks}
    assert any("other families of sockets" in title for title in leaks)
    asked = [*(f"asking for {name}" for name in FAMILIES), *(name for name, *_ in CALLS)]
    for title in ("typing into a terminal (TIOCSTI)", *asked):
        assert title in leaks or title in absent, (title, result)
    held = [row["attempt"] for row in result["attempts"] if row["row"] == "B4" and row["verdict"] == "held"]
    assert {"a signal to a process of the host", "a descriptor of a process of the host"} <= {*held, *absent}


@pytest.fixture
def with_a_link(gate: Gate) -> Iterator[str]:
    """A namespace by name that has a link to the device, as root's `ip netns` would have made it."""
    name, device = f"zonegate-lab-{os.getpid()}", gate.host.world.device
    zone = kernel.new_network()
    root = gate.host.root
    try:
        there = f"/proc/{os.getpid()}/fd/{zone}"
        kernel.must(
            device,
            f"ip link add zlink type veth peer name up0 netns {there}",
            "ip link set zlink up",
            "ip addr add 10.200.4.1/24 dev zlink",
        )
        kernel.must(zone, "ip link set lo up", "ip link set up0 up", "ip addr add 10.200.4.2/24 dev up0",
                    "ip route add default via 10.200.4.1")  # fmt: skip
        path = f"/run/netns/{name}"
        done = kernel.run(
            root, ["sh", "-ec", f"mkdir -p /run/netns; touch {path}; mount --bind {there} {path}"]
        )
        assert done.code == 0, done
        yield name
    finally:
        kernel.run(root, ["sh", "-c", f"umount /run/netns/{name}; rm -f /run/netns/{name}"])
        kernel.run(Place(device), ["ip", "link", "del", "zlink"])
        os.close(zone)


@AS_ROOT
def test_a_namespace_with_a_way_out(gate: Gate, with_a_link: str) -> None:
    """Red: a link, and by it packets of every kind, with the device on which each was seen."""
    rows = [word for row in ROWS for word in ("--row", row)]
    code, result = _result(gate, "--netns", with_a_link, *rows)
    leaks = _rows(result, "leak")
    assert code == 1, result["result"]
    for title in (
        "a device beside lo", "bound to every device, IPv4", "frames by a packet socket", "raw IPv4",
        "TCP 443, IPv4", "UDP 123, IPv4", "echo request, IPv4", "fragments, IPv4", "multicast 224.0.0.251",
        "joining a group, IPv4", f"DNS over UDP to {RESOLVER}", f"UDP to the tunnel's endpoint {GATEWAY}",
        "metadata service 169.254.169.254",
    ):  # fmt: skip
        assert title in leaks, (title, leaks)
    seen = {device for row in result["attempts"] for one in row["tries"] for device in one["seen_at"]}
    assert "zlink" in seen
