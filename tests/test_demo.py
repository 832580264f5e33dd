"""The demonstration as a stranger runs it, and that it notices what is not so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.demo import site

LIMIT_S = 400
# The demonstration with another policy: what it shows must then be something else.
_WITH_POLICY = """
import sys
from pathlib import Path
from proxy.demo import site
site.POLICY = Path(sys.argv.pop(1))
from proxy.cli import main
main()
"""
_WITHOUT_WIREGUARD = """
from proxy import sandbox
sandbox.missing_for_wireguard = lambda **_: ["no wireguard-go"]
"""
STEPS = 9


@pytest.fixture
def place() -> Iterator[Path]:
    """For its files, of which nothing may be left."""
    with tempfile.TemporaryDirectory(prefix="zg-") as directory:
        yield Path(directory)


def demo(place: Path, *command: str, tunnel: str = "mtls") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, "demo", "--once", *(["--tunnel", tunnel] if tunnel else [])],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.parametrize(("tunnel", "kind"), [("", "wireguard"), ("mtls", "mtls")])
def test_it_shows_what_it_expects_and_leaves_nothing(place: Path, tunnel: str, kind: str) -> None:
    """With WireGuard, where it is installed, unless something else is asked for."""
    done = demo(place, "-m", "proxy.cli", tunnel=tunnel)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "✗" not in done.stdout
    assert len(re.findall(r"✓ .*\n +expected  .+\n +seen +.+\n", done.stdout)) == STEPS
    assert f"the tunnel ({kind})" in done.stdout
    peers = set(re.findall(r"(?:pinned one,|to peer) (\S+…)", done.stdout))
    assert len(peers) == 1, "every flow went to the one pinned peer"
    assert list(place.iterdir()) == []


def test_a_part_that_is_broken_is_seen_and_ends_it_with_1(place: Path) -> None:
    """Without the guard the site is blocked all the same, and for another reason than was promised."""
    text = site.POLICY.read_text()
    before, _, after = text.partition("  - id: no-public-sharing\n")
    weakened = before + after[after.index("  - id: ") :]
    assert "no-public-sharing" not in weakened
    with tempfile.TemporaryDirectory(prefix="zg-policy-") as directory:
        policy = Path(directory) / "weakened.policy.yaml"
        policy.write_text(weakened)
        done = demo(place, "-c", _WITH_POLICY, str(policy))
    assert done.returncode == 1, done.stdout + done.stderr
    (broken,) = re.findall(r"✗ (.*)\n +expected  (.*)\n +seen +(.*)", done.stdout)
    assert broken[:2] == ("curl http://www.pastehub.example/", "blocked by guard no-public-sharing")
    assert "blocked by default" in broken[2]
    assert done.stdout.count("✓") == STEPS - 1
    assert list(place.iterdir()) == []


def test_without_wireguard_another_tunnel_is_taken_and_why_is_said(place: Path) -> None:
    done = demo(place, "-c", _WITHOUT_WIREGUARD + _WITH_POLICY, str(place / "nowhere.policy.yaml"), tunnel="")
    assert done.stdout.startswith("The tunnel is an mtls one, since WireGuard is not here: no wireguard-go\n")
    assert "nowhere.policy.yaml" in done.stderr, "and it goes on"


def test_a_machine_that_is_too_busy_is_told_in_a_line(place: Path) -> None:
    """What the gate says of itself is kept from the demonstration, which then gives up."""
    deaf = "from proxy.demo import machines as m\nm.Machines.status = lambda self: {}['no status']\n"
    short = "m.Machines.until.__defaults__ = (0.5,)\n"
    done = demo(place, "-c", f"{deaf}{short}from proxy.cli import main\nmain()\n")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("zonegate: waited 0.5 s in vain until the tunnel is attested; try again")
    assert list(place.iterdir()) == []


def test_a_policy_that_cannot_be_read_is_told_with_the_gates_own_words(place: Path) -> None:
    done = demo(place, "-c", _WITH_POLICY, str(place / "nowhere.policy.yaml"))
    assert done.returncode == 1
    assert "the gate of the demonstration ended by itself" in done.stderr
    assert "nowhere.policy.yaml: the policy cannot be read" in done.stderr
    assert list(place.iterdir()) == []
