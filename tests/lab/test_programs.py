"""Real programs in a bubble, through WireGuard: names, git, HTTP/3, iperf3, a video call.

The control of this file is the same program outside of any bubble: its question for a name is seen.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aioquic
import pytest

from lab import kernel
from lab.conftest import AS_ROOT, WITHOUT
from lab.gate import LAB_RULES, Gate, Settings, python, remove
from lab.kernel import Place
from lab.packet_peer import NETWORKS, SHARED, Peer, Wires
from lab.ssh_server import SSH_LOGIN, SSH_NAME, SshServer, ssh
from lab.world import HOSTS, INTRANET, RESOLVER, Host, World

WG_PORT, CALL_PORT = 51_829, 7110
IPERF_PORTS = {"tcp": 5201, "udp": 5202, "back": 5203}  # a server is for one client at a time
PACKETS = 50  # a second of a call
LIMIT_S = 90
PACKAGES = Path(aioquic.__file__).parents[1]
RULES = (
    LAB_RULES
    + f"""
  - id: lab-ssh
    match: {{zone: corporate, to: intranet, protocol: ssh, port: 22}}
    verdict: tunnel
  - id: lab-http3
    match: {{zone: corporate, to: intranet, protocol: quic, port: 443}}
    verdict: tunnel
  - id: lab-iperf3
    match: {{zone: corporate, to: intranet, port: [5201, 5202, 5203]}}
    verdict: tunnel
  - id: lab-call
    match: {{zone: corporate, to: intranet, protocol: udp, port: {CALL_PORT}}}
    verdict: tunnel
"""
)
NAMES = {f"{name}.corp.example": [INTRANET] for name in ("tcp", "udp", "back", "call", "dig", "dig-tcp")}


@dataclass(frozen=True, slots=True)
class Program:
    """A program, the name that it asks for, the kind of its flow, and whether what it said is good.

    `{here}` is the directory of the gate's files, `{world}` of the lab's.
    """

    id: str
    name: str
    protocol: str
    command: tuple[str, ...]
    good: Callable[[str], object]
    users_too: bool = False


def _python(*arguments: str) -> tuple[str, ...]:
    return tuple(python(*arguments))


def _dig(name: str, how: str) -> tuple[str, ...]:
    """Ask for the address, and for a page there."""
    ask = f"dig {how} +short +time=2 +tries=2 {name}"
    return ("sh", "-ec", f'at=$({ask}); echo $at; curl -sS -m {LIMIT_S} -H "Host: {name}" http://$at/')


def _clone(name: str, url: str) -> tuple[str, ...]:
    clone = f"git clone -q {url} ~/{name} && git -C ~/{name} log --format=%s"
    return ("sh", "-c", f"rm -rf ~/{name}; {clone}")


def _iperf3(name: str, *more: str) -> tuple[str, ...]:
    return ("iperf3", "-c", f"{name}.corp.example", "-p", str(IPERF_PORTS[name]), "-J", *more)


def _moved(said: str) -> bool:
    """Its server heard more than what was sent and still lies in buffers on the way."""
    return int(json.loads(said)["end"]["sum_received"]["bytes"]) >= 1 << 20


def _some_came(said: str) -> bool:
    """Of the datagrams of iperf3, by its own count: one that comes late is lost for it."""
    end = json.loads(said)["end"]["sum"]
    return int(end["packets"]) > int(end["lost_packets"])


def _is_whole_call(said: str) -> bool:
    """Both legs were heard, from where they were called and from nowhere else."""
    call = json.loads(said)
    assert (call["strangers"], call["elsewhere"], call["error"]) == (0, 0, ""), call
    return bool(min(call["heard"], call["other_heard"]) >= PACKETS)


PROGRAMS = (
    Program(
        "dig",
        "dig.corp.example",
        "http",
        _dig("dig.corp.example", "+notcp"),
        lambda said: re.fullmatch(r"198\.1[89]\.\d+\.\d+\nthe intranet\n", said),
    ),
    Program(
        "dig over TCP",
        "dig-tcp.corp.example",
        "http",
        _dig("dig-tcp.corp.example", "+tcp"),
        lambda said: re.fullmatch(r"198\.1[89]\.\d+\.\d+\nthe intranet\n", said),
    ),
    Program(
        "git clone over ssh",
        SSH_NAME,
        "ssh",
        (
            "env",
            f"GIT_SSH_COMMAND={' '.join(ssh(Path('{here}')))}",
            *_clone("over-ssh", f"ssh://{SSH_LOGIN}@{SSH_NAME}{{world}}/project.git"),
        ),
        lambda said: said == "first\n",
        users_too=True,
    ),
    Program(
        "git clone over https",
        "git.corp.example",
        "https",
        (
            "env",
            "GIT_SSL_CAINFO={world}/site-ca.crt",
            *_clone("over-https", "https://git.corp.example/git/project.git"),
        ),
        lambda said: said == "first\n",
    ),
    Program(
        "HTTP/3",
        "intranet.corp.example",
        "quic",
        _python(
            "http3", str(PACKAGES), "get", "intranet.corp.example", "443", "{world}/site-ca.crt", str(LIMIT_S)
        ),
        lambda said: said == "200 the intranet, by HTTP/3 48000\n",
    ),
    Program("iperf3", "tcp.corp.example", "tcp", _iperf3("tcp", "-n", "32M"), _moved),
    Program(
        "iperf3, datagrams",
        "udp.corp.example",
        "udp",
        _iperf3("udp", "-u", "-b", "2M", "-l", "1200", "-k", "60"),
        _some_came,
    ),
    Program(
        "iperf3, datagrams from there",
        "back.corp.example",
        "udp",
        _iperf3("back", "-u", "-R", "-b", "2M", "-l", "1200", "-k", "60"),
        _some_came,
    ),
    Program(
        "a video call",
        "call.corp.example",
        "udp",
        _python("call", "call", "call.corp.example", str(CALL_PORT), str(PACKETS), str(LIMIT_S)),
        _is_whole_call,
        users_too=True,
    ),
)


@pytest.fixture(scope="module")
def peer(world: World) -> Iterator[Peer]:
    """The corporate end, and what stands behind it."""
    kernel.need("iperf3", "git", "dig", "curl")
    made = Peer(world, WG_PORT)
    site = [str(world.directory / name) for name in ("site.crt", "site.key")]
    with ExitStack() as undo:
        undo.callback(made.close)
        made.tell({**{name: list(addresses) for name, addresses in HOSTS.items()}, **NAMES})
        for command, ready in (
            (python("http3", str(PACKAGES), "serve", INTRANET, "443", *site), b"ready"),
            (python("call", "answer", INTRANET, str(CALL_PORT)), b"ready"),
            *(
                (["iperf3", "-s", "-B", INTRANET, "-p", str(port), "--forceflush"], b"-----")
                for port in IPERF_PORTS.values()
            ),
        ):
            server = kernel.start(Place(world.corp), command)
            undo.callback(kernel.end, server)
            assert server.stdout is not None and server.stdout.readline().startswith(ready), command
        yield made


@pytest.fixture(scope="module")
def gate(host: Host, peer: Peer, sshd: SshServer) -> Iterator[Gate]:
    """A daemon that no test ends."""
    settings = Settings(
        without=WITHOUT,
        tunnels=peer.tunnel(device=SHARED),
        networks=NETWORKS,
        secrets={**peer.secrets, **sshd.secrets},
        rules=RULES,
    )
    made = Gate(host, "programs", settings)
    try:
        yield made.start().attested()
    finally:
        remove(made)


@pytest.fixture
def wires(world: World) -> Iterator[Wires]:
    """Nothing but the tunnel's own datagrams is seen during a test."""
    made = Wires(world, WG_PORT)
    made.seen()
    try:
        yield made
    finally:
        made.close()


def command_of(gate: Gate, program: Program) -> list[str]:
    """Its command, with what only the lab knows filled in."""
    words = {"here": gate.directory, "world": gate.host.world.directory}
    known = re.compile("{(" + "|".join(words) + ")}")
    return [known.sub(lambda found: str(words[found[1]]), word) for word in program.command]


def assert_it_works(gate: Gate, program: Program) -> None:
    """By name, through the tunnel; the record says so."""
    shared = [PACKAGES, *(gate.directory / name for name in ("device.ssh", "known_hosts"))]
    done = gate.run(*command_of(gate, program), share=shared, limit_s=LIMIT_S + 30)
    assert done.code == 0 and program.good(done.out), done
    end = gate.record("end", lambda row: (row["name"], row["protocol"]) == (program.name, program.protocol))
    assert (end["verdict"], end["tunnel"]) == ("tunnel", "hq") and min(end["bytes_up"], end["bytes_down"]) > 0


@AS_ROOT
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.id)
def test_it_works_and_nothing_else_is_seen(gate: Gate, wires: Wires, program: Program) -> None:
    """Each of them, with a daemon of root."""
    assert_it_works(gate, program)
    wires.quiet()


@AS_ROOT
def test_outside_of_a_bubble_each_of_them_is_seen(host: Host, wires: Wires, sshd: SshServer) -> None:
    """The control: it asks the public internet."""
    outside = Gate(host, "outside", Settings(without=WITHOUT | {"bubble"}, secrets=sshd.secrets))
    lines = [shlex.join(command_of(outside, program)) for program in PROGRAMS]
    missing = {name: question(name) for name in (program.name for program in PROGRAMS)}
    try:
        outside.bubble("sh", "-c", f"({' & '.join(lines)} & wait) > /dev/null 2>&1")

        def all_are_seen() -> bool:
            asked = [frame for frame in wires.seen() if f" > {RESOLVER}:53 " in frame]
            for name in [name for name, label in missing.items() if any(label in frame for frame in asked)]:
                del missing[name]
            return not missing

        kernel.until(f"everybody's question, also {missing}", all_are_seen, LIMIT_S)
    finally:
        remove(outside)


def question(name: str) -> str:
    """A name as it stands in a frame that a wire shows."""
    label = name.partition(".")[0]
    return f"\\x{len(label):02x}{label}\\x04corp"


@pytest.mark.parametrize("host", ["user"], indirect=True)
@pytest.mark.parametrize(
    "program", [one for one in PROGRAMS if one.users_too], ids=lambda program: program.id
)
def test_for_an_ordinary_user(gate: Gate, wires: Wires, program: Program) -> None:
    """Some of them, with a daemon of an ordinary user."""
    assert_it_works(gate, program)
    wires.quiet()
