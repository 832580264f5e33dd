"""Real programs in a bubble: they work by name through the tunnel, and the wire shows nothing else."""

from __future__ import annotations

from lab.conftest import Watch
from lab.gate import Gate


def test_curl_by_name(gate: Gate, watch: Watch) -> None:
    """http by name goes through the tunnel."""
    done = gate.run("curl", "-sS", "-m", "10", "http://intranet.corp.example/")
    assert (done.code, done.out, done.err) == (0, "the intranet\n", "")
    watch.only_the_gateway()
