"""What the gate costs in front of a WireGuard tunnel: `python bench/wireguard.py`, as root, in namespaces.

The lab's device, network and corporate end, on this machine, with the daemon of root and of an ordinary user.
Each figure is taken in a bubble, through gate and tunnel, and right after it by the same program straight in
the tunnel's own namespace. Ratios only compare what ran together.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab import kernel
from lab.gate import Gate, Settings, remove
from lab.kernel import Place
from lab.packet_peer import NETWORKS, SHARED, Peer
from lab.world import INTRANET, World

SMALL, MIB, TURNS = 100, 64, 3
NAME = "intranet.corp.example"
# Seconds for small requests, one after the other, and MB/s of one download.
LOAD = """
import socket, statistics, sys, time
host, small, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def get(path):
    got, began = 0, time.perf_counter()
    with socket.create_connection((host, 80)) as sock:
        sock.sendall(b"GET %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (path.encode(), b"intranet.corp.example"))
        while data := sock.recv(1 << 20):
            got += len(data)
    return got, time.perf_counter() - began
times = [get("/")[1] for _ in range(small)]
got, took = get(f"/big/{mib}")
print(statistics.median(times) * 1000, got / 1e6 / took)
"""


def main() -> None:
    """Print the table."""
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    world = World()
    try:
        peer = Peer(world, lifetime_s=60)
        print(f"{'':<34}{'gate':>9}{'straight':>10}{'ratio':>8}")
        for who in ("root", "user"):
            _measure(world, peer, who)
        peer.close()
    finally:
        world.close()


def _measure(world: World, peer: Peer, who: str) -> None:
    tunnels = peer.tunnel(device=SHARED)
    settings = Settings(tunnels=tunnels, networks=NETWORKS, secrets=peer.secrets)
    gate = Gate(world.host(who), "bench", settings)
    try:
        gate.start().attested()
        network = os.open(f"/proc/{gate.child('packet_holder')}/ns/net", os.O_RDONLY)
        load = ["/usr/bin/python3", "-c", LOAD]
        pairs = [
            (
                _figures(gate.run(*load, NAME, str(SMALL), str(MIB), limit_s=300).out),
                _figures(
                    kernel.run(Place(network), [*load, INTRANET, str(SMALL), str(MIB)], limit_s=300).out
                ),
            )
            for _ in range(TURNS)
        ]
        os.close(network)
        rows = (("small request, median ms", ".2f"), ("one download, MB/s", ".1f"))
        for at, (what, form) in enumerate(rows):
            through = statistics.median(pair[0][at] for pair in pairs)
            straight = statistics.median(pair[1][at] for pair in pairs)
            ratio = statistics.median(pair[0][at] / pair[1][at] for pair in pairs)
            print(f"{f'{who}: {what}':<34}{through:>9{form}}{straight:>10{form}}{ratio:>8.2f}", flush=True)
    finally:
        remove(gate)


def _figures(said: str) -> Sequence[float]:
    return [float(word) for word in said.split()]


if __name__ == "__main__":
    main()
