"""What the gate costs in front of a WireGuard tunnel: `python bench/wireguard.py [root|user]`, as root.

The lab's device, network and corporate end, on this machine, in namespaces, with the daemon of root and of an
ordinary user. Each figure is taken in a bubble, through gate and tunnel, and right after it by the same
program straight in the tunnel's own namespace. Ratios only compare what ran together.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab import carriers, kernel
from lab.gate import LAB_RULES, Bubble, Gate, Settings, python, remove
from lab.kernel import Place
from lab.packet_peer import NETWORKS, SHARED, Peer
from lab.world import HOSTS, INTRANET, World

NAME = "intranet.corp.example"
ECHO_PORT, CALL_PORT, IPERF_PORT = 7200, 7201, 7202
TURNS, LIMIT_S = 3, 300.0
# Open flows, in two bubbles; a worker has two descriptors for each, and cannot have more than its limit.
FLOWS = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1200) // 2) // 200 * 200
CALL_PACKETS = 250  # five seconds
LOAD = Path(__file__).parent / "load.py"
RULES = (
    LAB_RULES
    + f"""
  - id: bench
    match: {{zone: corporate, to: intranet, port: [{ECHO_PORT}, {CALL_PORT}, {IPERF_PORT}]}}
    verdict: tunnel
"""
)


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that a program prints; `figures` are what is told of it, each with its format."""

    command: Callable[[str], Sequence[str]]
    read: Callable[[str], Sequence[float]]
    figures: Sequence[tuple[str, str]]


def _load(what: str, port: int, number: int) -> Callable[[str], Sequence[str]]:
    return lambda host: ["/usr/bin/python3", str(LOAD), what, host, str(port), str(number)]


def _iperf3(*more: str) -> Callable[[str], Sequence[str]]:
    return lambda host: ["iperf3", "-c", host, "-p", str(IPERF_PORT), "-J", "-t", "3", "-O", "1", *more]


def _numbers(said: str) -> Sequence[float]:
    return [float(word) for word in said.split()]


def _megabits(said: str) -> Sequence[float]:
    return [json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e6]


def _call(said: str) -> Sequence[float]:
    call = json.loads(said)
    lost_there = max(0, call["sent"] - call["other_heard"] - 5)  # those that were on their way
    return [
        100 * call["lost"] / call["heard"],
        100 * lost_there / call["sent"],
        call["jitter_ms"],
        call["jitter_p99_ms"],
    ]


MEASURES = (
    Measure(_iperf3("-R"), _megabits, [("iperf3, down, Mbit/s", ".0f")]),
    Measure(_iperf3(), _megabits, [("iperf3, up, Mbit/s", ".0f")]),
    Measure(
        _load("rounds", ECHO_PORT, 1000),
        _numbers,
        [("request on an open connection, ms", ".3f"), ("  its 99th percentile", ".3f")],
    ),
    Measure(
        _load("connections", ECHO_PORT, 200),
        _numbers,
        [("request on a new connection, ms", ".2f"), ("  its 99th percentile", ".2f")],
    ),
    Measure(
        _load("requests", 80, 200),
        _numbers,
        [("HTTP request, new connection, ms", ".2f"), ("  its 99th percentile", ".2f")],
    ),
    Measure(
        _load("exchanges", ECHO_PORT, 1000),
        _numbers,
        [("1,000 UDP flows at once: answered", ".0f"), ("  until the last answer, ms", ".0f")],
    ),
    Measure(
        lambda host: python("call", "call", host, str(CALL_PORT), str(CALL_PACKETS), "60"),
        _call,
        [("call, lost on the way here, %", ".1f"), ("  lost on the way there, %", ".1f"),
         ("  jitter, median ms", ".2f"), ("  jitter, 99th percentile", ".2f")],
    ),
)  # fmt: skip


def main(users: Sequence[str]) -> None:
    """Print the table."""
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    world = World()
    with ExitStack() as undo:
        heard = Path(undo.enter_context(TemporaryDirectory())) / "heard"
        undo.callback(world.close)
        peer = Peer(world, lifetime_s=60)
        undo.callback(peer.close)
        peer.tell({name: list(addresses) for name, addresses in HOSTS.items()})
        for command in (
            ["/usr/bin/python3", str(LOAD), "echo", INTRANET, str(ECHO_PORT), str(heard)],
            python("call", "answer", INTRANET, str(CALL_PORT)),
            ["iperf3", "-s", "-B", INTRANET, "-p", str(IPERF_PORT), "--forceflush"],
        ):
            server = kernel.start(Place(world.corp), command)
            undo.callback(kernel.end, server)
            assert server.stdout is not None and server.stdout.readline()
        print(f"{'':<42}{'gate':>9}{'straight':>10}{'added':>9}{'ratio':>8}")
        for who in users:
            with _running(world, peer, who) as gate:
                for measure in MEASURES:
                    _tell(who, measure, gate)
                if who == "root":
                    _tell_cuts(gate, heard)


@contextmanager
def _running(world: World, peer: Peer, who: str) -> Iterator[Gate]:
    settings = Settings(
        tunnels=peer.tunnel(device=SHARED),
        networks=NETWORKS,
        secrets=peer.secrets,
        rules=RULES,
    )
    gate = Gate(world.host(who), "bench", settings)
    try:
        yield gate.start().attested()
    finally:
        remove(gate)


def _tell(who: str, measure: Measure, gate: Gate) -> None:
    """Pairs of what it is through the gate and straight, and the medians of them."""
    network = os.open(f"/proc/{gate.child('packet_holder')}/ns/net", os.O_RDONLY)
    pairs = []
    for _ in range(TURNS):
        through = gate.run(*measure.command(NAME), share=[LOAD], limit_s=LIMIT_S)
        straight = kernel.run(Place(network), measure.command(INTRANET), limit_s=LIMIT_S)
        pairs.append((measure.read(through.out), measure.read(straight.out)))
    os.close(network)
    for at, (what, form) in enumerate(measure.figures):
        both = [(through[at], straight[at]) for through, straight in pairs]
        through, straight = (statistics.median(one) for one in zip(*both, strict=True))
        added = statistics.median(one - other for one, other in both)
        ratios = [one / other for one, other in both if other]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        row = f"{f'{who}: {what}':<42}{through:>9{form}}{straight:>10{form}}{added:>9{form}}{ratio:>8}"
        print(row, flush=True)


def _tell_cuts(gate: Gate, heard: Path) -> None:
    """How long it takes until many open flows carry nothing more, and until the last of them is reset: by
    hand, and when the tunnel is gone."""
    for what, cut, mend in (
        (
            "locked by hand",
            lambda: gate.order("lock", zone="", user="", reason=""),
            lambda: gate.order("unlock", zone="", user=""),
        ),
        ("its device is lost", lambda: carriers.lose(gate), lambda: None),
    ):
        bubbles = [_holding(gate) for _ in range(2)]
        began = time.monotonic()
        cut()
        told = [_numbers(bubble.says(" ", 60.0)) for bubble in bubbles]
        assert sum(number for number, _ in told) == FLOWS, told
        took_ms = (max(last for _, last in told) - began) * 1000
        carried_ms = (float(heard.read_text()) - began) * 1000
        mend()
        for bubble in bubbles:
            bubble.end()
        gate.attested()
        print(f"{f'{FLOWS:,} flows, {what}: last byte, ms':<50}{carried_ms:>9.0f}")
        print(f"{'  last program told, ms':<50}{took_ms:>9.0f}", flush=True)


def _holding(gate: Gate) -> Bubble:
    """A bubble with half of the flows."""
    bubble = gate.bubble(*_load("held", ECHO_PORT, FLOWS // 2)(NAME), share=[LOAD])
    bubble.says("all open", LIMIT_S)
    return bubble


if __name__ == "__main__":
    main(sys.argv[1:] or ["root", "user"])
