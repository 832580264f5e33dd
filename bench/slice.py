"""What the gate costs: a table of ratios within one run. `python bench/slice.py`, as root or not.

Both ends of the demonstration run on this machine. Each figure is taken through the bubble and, in the same
minute, without zonegate: from inside the corporate namespace straight to the same site. Ratios only compare
what ran together; the machine may be busy with other things.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from proxy.demo.corporate import INTRANET, NAME
from proxy.demo.machines import Machines

# Run by the system's Python on either side: seconds for small requests, one after the other, and MB/s.
_LOAD = """
import socket, statistics, sys, time
host, small, large = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
request = b"GET / HTTP/1.1\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n" % host.encode()
times = []
for _ in range(small):
    began = time.perf_counter()
    with socket.create_connection((host, 80)) as sock:
        sock.sendall(request)
        while sock.recv(65536):
            pass
    times.append(time.perf_counter() - began)
got, began = 0, time.perf_counter()
with socket.create_connection((host, 80)) as sock:
    sock.sendall(b"GET /bytes HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % host.encode())
    while got < large and (data := sock.recv(1 << 20)):
        got += len(data)
print(statistics.median(times) * 1000, got / 1e6 / (time.perf_counter() - began))
"""
SMALL, LARGE_BYTES, STARTS = 200, 512 << 20, 15


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="zonegate-bench-") as directory:
        machines = Machines(Path(directory), Path(directory) / "run", dict(os.environ))
        with machines.up():
            starts = sorted(_start_ms(machines) for _ in range(STARTS))
            load = ["/usr/bin/python3", "-c", _LOAD, NAME, *_sizes()]
            through = _figures(machines.bubble(*load, limit_s=300).stdout)
            straight = _figures(_straight(machines))
    _row("", "through the gate", "straight", "ratio")
    for at, (what, form) in enumerate((("small request, median ms", ".2f"), ("one download, MB/s", ".0f"))):
        gate, bare = through[at], straight[at]
        _row(what, format(gate, form), format(bare, form), f"{gate / bare:.2f}")
    _row("start of a bubble, median ms", f"{statistics.median(starts):.0f}", "", "")


def _sizes() -> tuple[str, str]:
    return str(SMALL), str(LARGE_BYTES)


def _start_ms(machines: Machines) -> float:
    """From `zonegate run` to the first instruction of a program, by the program's own clock."""
    code = "import time; print(time.clock_gettime_ns(time.CLOCK_MONOTONIC))"
    command = [*_now(), *machines.run_command("/usr/bin/python3", "-S", "-c", code)]
    done = subprocess.run(command, env=machines.environment, capture_output=True, text=True, check=True)
    began, there = done.stdout.split()
    return (int(there) - int(began)) / 1e6


def _now() -> list[str]:
    """A prefix that prints the time and becomes the command."""
    code = "import os, sys, time; print(time.clock_gettime_ns(time.CLOCK_MONOTONIC), flush=True); "
    return ["/usr/bin/python3", "-S", "-c", code + "os.execvp(sys.argv[1], sys.argv[1:])"]


def _straight(machines: Machines) -> str:
    """The same load beside the site, in the corporate namespace."""
    enter = ["nsenter", "-t", str(machines.gateway.pid), "-U", "-n", "--preserve-credentials"]
    command = [*enter, "/usr/bin/python3", "-c", _LOAD, INTRANET, *_sizes()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def _figures(output: str) -> tuple[float, float]:
    small, large = output.split()
    return float(small), float(large)


def _row(*cells: str) -> None:
    sys.stdout.write(f"{cells[0]:<30}{cells[1]:>18}{cells[2]:>12}{cells[3]:>8}\n")


if __name__ == "__main__":
    main()
