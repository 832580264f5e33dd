"""The namespace of a packet tunnel, as root and as an ordinary user has it; and when a tool fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy import tunnel_namespace

ROOT = str(Path(__file__).parent.parent)
HEAD = f"""
import ctypes, json, os, signal, socket, subprocess, sys
sys.path.insert(0, {ROOT!r})
from proxy import namespaces, tunnel_namespace
from proxy.messages.holding import PacketSetup, Probe

def attempt(address, device="", kind=socket.SOCK_DGRAM):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        try:
            if device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            sock.connect((address, 9))
            sock.send(b"x")
        except TimeoutError:
            return -1
        except OSError as error:
            return error.errno
    return 0

def host_user():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""


def tell(code: str, *, ordinary: bool) -> Any:
    """What a process in a namespace of its own says, as JSON."""
    start = "host_user()\n" if ordinary and os.geteuid() == 0 else ""
    command = [sys.executable, "-I", "-c", HEAD + start + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OUT = ("192.0.2.1", "10.0.0.1", "169.254.169.254", "224.0.0.251", "2001:db8::1", "fd00::1")
REFUSED = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EACCES, errno.EADDRNOTAVAIL}


@pytest.mark.parametrize("ordinary", [False, True])
def test_before_there_is_a_device_nothing_leaves(ordinary: bool) -> None:
    said = tell(
        f"""
fds = tunnel_namespace.make("zgtest")
devices = sorted(name for _, name in socket.if_nameindex())
near = [attempt("127.0.0.1"), attempt("127.0.0.1", "", socket.SOCK_STREAM)]
out, bound = [attempt(a) for a in {OUT!r}], [attempt(a, "lo") for a in {OUT!r}]
print(json.dumps([len(fds), devices, out, bound, near]))
""",
        ordinary=ordinary,
    )
    fds, devices, plain, bound, near = said
    assert fds == (4 if ordinary else 1)
    assert "lo" in devices and not {name for name in devices if name.startswith(("eth", "up", "zg"))}
    assert set(plain) <= REFUSED, plain
    assert 0 not in bound, bound
    assert 0 not in near, "its own loopback leads nowhere"


@pytest.mark.parametrize("ordinary", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_tool_that_fails_leaves_nothing_open(call: int, ordinary: bool) -> None:
    said = tell(
        f"""
run, calls = namespaces.run, []
def failing(command, text=""):
    calls.append(command)
    run(["false"] if len(calls) == {call} else command, text)
namespaces.run = failing
try:
    tunnel_namespace.make("zgtest")
    said = ""
except namespaces.NamespaceError as error:
    said = str(error)
print(json.dumps([said, len(calls), [attempt(a) for a in {OUT!r}]]))
""",
        ordinary=ordinary,
    )
    words, calls, attempts = said
    most = 3 if ordinary else 2
    assert (bool(words), calls) == (call <= most, min(call, most)), words
    assert 0 not in attempts, attempts


def test_a_device_gets_its_addresses_and_its_routes_over_the_unreachable_ones() -> None:
    said = tell(
        """
tunnel_namespace.make("zgtest")
subprocess.run(["ip", "link", "add", "zgtest", "type", "veth", "peer", "name", "other"], check=True)
probe = Probe("icmp", "10.8.0.1", 0)
setup = PacketSetup(("10.8.0.2/24", "fd08::2/64"), ("10.0.0.0/8", "fd00::/8"), (), 1300, 0, probe)
tunnel_namespace.address("zgtest", setup)
device = tunnel_namespace.Device("zgtest")
there = device.gone()
def out(*command): return subprocess.run(command, capture_output=True, text=True).stdout
routes = out("ip", "route") + out("ip", "-6", "route")
beside = attempt("192.0.2.1")
subprocess.run(["ip", "link", "set", "zgtest", "down"], check=True)
down = device.gone()
subprocess.run(["ip", "link", "del", "zgtest"], check=True)
print(json.dumps([there, routes, beside, down, device.gone(), [attempt(a) for a in ("10.0.0.1", "fd00::1")]]))
""",
        ordinary=False,
    )
    there, routes, beside, down, gone, after = said
    assert (there, down, gone) == ("", "its device was set down", "its device is gone")
    for line in ("unreachable default", "10.0.0.0/8 dev zgtest", "fd00::/8 dev zgtest"):
        assert line in routes, routes
    assert beside in REFUSED
    assert set(after) <= REFUSED


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0"]
)
def test_no_socket_is_made_to_where_no_tunnel_leads(address: str) -> None:
    for transport in ("tcp", "udp"):
        with pytest.raises(ValueError, match="no tunnel leads to"):
            tunnel_namespace.connecting(transport, address, 80)


def test_a_mapped_address_is_no_way_around() -> None:
    with pytest.raises((OSError, ValueError)):
        tunnel_namespace.connecting("tcp", "::ffff:127.0.0.1", 80).close()
