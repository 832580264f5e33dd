"""The units: systemd takes them, what they leave open is what the daemon needs, and it works under them."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from first_words import request
from gates import Gate, Guest, gate
from loopback import Site
from own_namespaces import zone

from proxy import units
from proxy.cli import systemd, zonegate
from proxy.messages.admin import Denied, Entered
from proxy.paths import Places

PLACES = Places(Path("/run/zonegate"), Path("/var/lib/zonegate"))
PROGRAM, SITE = Path("/usr/bin/true"), Path("/etc/zonegate/zonegate.yaml")
KINDS = ("user", "pid", "net", "uts", "mnt", "ipc", "cgroup")
FAMILIES = ("AF_NETLINK", "AF_UNIX", "AF_INET_INET6")
# Whatever else is open is open by mistake.
NEEDED: Mapping[str, str] = {
    "RootDirectoryOrRootImage": "it shows its workers the interpreter of this machine",
    "UserOrDynamicUser": "root's daemon serves every user",
    "PrivateUsers": "who is in another user namespace than the daemon is refused",
    "PrivateNetwork": "its holders dial the gateway",
    "IPAddressDeny": "where the gateway is, is the site's to say",
    "PrivateDevices": "/dev/net/tun, for the program of a packet tunnel",
    "DeviceAllow": "/dev/net/tun, for the program of a packet tunnel",
    "ProcSubset": "it reads /proc/sys to see whether namespaces can be had",
    "ProtectHome": "the program of this checkout may lie in a home",
    "CapabilityBoundingSet_CAP_SYS_ADMIN": "it enters namespaces",
    "CapabilityBoundingSet_CAP_SYS_PTRACE": "it asks the kernel in which namespace a user's program is",
    "CapabilityBoundingSet_CAP_SET_UID_GID_PCAP": "its holders become nobody",
    "CapabilityBoundingSet_CAP_CHOWN_FSETID_SETFCAP": "without SETFCAP a worker cannot be root of its own",
    "CapabilityBoundingSet_CAP_KILL": "and are ended by it",
    "CapabilityBoundingSet_CAP_NET_ADMIN": "packet tunnels have devices",
    "SystemCallFilter_privileged": "as the capabilities",
    "SystemCallFilter_mount": "workers see next to nothing",
    "ProtectHostname": "a worker is named in a namespace of its own",
    **dict.fromkeys(map("RestrictNamespaces_{}".format, KINDS), "a worker's own"),
    **dict.fromkeys(map("RestrictAddressFamilies_{}".format, FAMILIES), "tunnels, commands, namespaces"),
}


def install(directory: Path, *, user: bool = False, devices: bool = True) -> Path:
    text = units.unit(PROGRAM, SITE, PLACES, user=user, devices=devices)
    path = directory / units.NAME
    path.write_text(text)
    return path


@pytest.mark.parametrize("user", [False, True], ids=["machine", "user"])
def test_systemd_takes_the_unit(tmp_path: Path, user: bool) -> None:
    path = install(tmp_path, user=user)
    assert "@ZONEGATE@" not in path.read_text() and "@SITE@" not in path.read_text()
    words = ["systemd-analyze", *(["--user"] if user else []), "verify", "--man=no", str(path)]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    )
    complaints = [line for line in done.stderr.splitlines() if units.NAME in line]
    assert complaints == []


@pytest.mark.parametrize("devices, most", [(False, 3.8), (True, 4.2)], ids=["mtls", "packets"])
def test_what_the_unit_leaves_open_is_what_the_daemon_works_with(
    tmp_path: Path, devices: bool, most: float
) -> None:
    path = install(tmp_path, devices=devices)
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    overall = subprocess.check_output(words, text=True).splitlines()[-1]
    found = re.search(r"level for zonegate.service: ([0-9.]+)", overall)
    assert found and float(found[1]) <= most, overall
    rows = json.loads(subprocess.check_output([*words, "--json=short"], text=True))
    left = {row["json_field"] for row in rows if row["set"] is False and float(row["exposure"] or 0) > 0}
    assert not left - NEEDED.keys(), overall


@pytest.mark.parametrize("path", ["/opt/my gate/zonegate", "/opt/%n/zonegate", "zonegate", '/opt/"/zonegate'])
def test_a_path_that_would_mean_something_else_in_a_unit_is_refused(path: str) -> None:
    with pytest.raises(units.UnitError, match="cannot stand in a unit"):
        units.unit(Path(path), SITE, PLACES, user=False, devices=True)


def test_it_is_written_where_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "zonegate")])
    (tmp_path / "zonegate").touch()
    place = tmp_path / "units"
    done = CliRunner().invoke(zonegate, ["systemd", "install", "--dir", str(place)])
    assert done.exit_code == 0 and "systemctl daemon-reload" in done.output
    written = (place / units.NAME).read_text()
    assert f"ExecStart={tmp_path}/zonegate up -c " in written
    assert CliRunner().invoke(zonegate, ["systemd", "show"]).output == written
    assert [path.name for path in place.iterdir()] == [units.NAME]


# -- the daemon under the unit -----------------------------------------------------------------------

# Capabilities, no_new_privs, system calls, address families and writable memory as the unit has them; its
# mounts are not made here.
_UNDER = """
import ctypes, os, sys
import pyseccomp as s
allowed, families, command = sys.argv[1].split(), sys.argv[2].split(), sys.argv[3:]
filter = s.SyscallFilter(s.ERRNO(1))
for name in allowed:
    if name == "socket":
        for family in families:
            filter.add_rule(s.ALLOW, name, s.Arg(0, s.EQ, int(family)))
        continue
    try: filter.add_rule(s.ALLOW, name)
    except (OSError, ValueError, RuntimeError): pass  # one of another machine
libc = ctypes.CDLL(None)
libc.prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE
filter.load()
os.execv(command[0], command)
"""


def lines_of(unit: str, key: str) -> Iterator[str]:
    for line in unit.splitlines():
        if line.startswith(f"{key}="):
            yield line.partition("=")[2]


def calls(words: list[str], known: Mapping[str, list[str]]) -> set[str]:
    """System calls, with groups written out."""
    found: set[str] = set()
    for word in words:
        found |= calls(known[word], known) if word.startswith("@") else {word}
    return found


def groups() -> dict[str, list[str]]:
    told = subprocess.check_output(["systemd-analyze", "syscall-filter", "--no-pager"], text=True)
    found: dict[str, list[str]] = {}
    for line in told.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def under(unit: str, without: frozenset[str], *arguments: str) -> list[str]:
    """A zonegate command as a unit would have it; `without` are system calls that it has not."""
    known, allowed = groups(), set[str]()
    for line in lines_of(unit, "SystemCallFilter"):
        named = calls(line.removeprefix("~").split(), known)
        allowed = allowed - named if line.startswith("~") else allowed | named
    families = {"AF_UNIX": "1", "AF_INET": "2", "AF_INET6": "10", "AF_NETLINK": "16"}
    (named_families,) = lines_of(unit, "RestrictAddressFamilies")
    (capabilities,) = lines_of(unit, "CapabilityBoundingSet")
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in capabilities.split()]
    return [
        "setpriv", "--no-new-privs", f"--bounding-set={','.join(['-all', *kept])}", "--inh-caps=-all",
        sys.executable, "-c", _UNDER, " ".join(allowed - without),
        " ".join(families[name] for name in named_families.split()),
        sys.executable, "-m", "proxy.cli", *arguments,
    ]  # fmt: skip


class UnitGate(Gate):
    """A daemon that is started as the unit would have it; `without` are system calls that it has not."""

    without: frozenset[str] = frozenset()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        if arguments[0] != "up":
            return super().start(*arguments)
        unit = units.unit(PROGRAM, SITE, PLACES, user=False, devices=False)
        process = subprocess.Popen(
            under(unit, self.without, *arguments), env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._started.append(process)
        return process


@pytest.fixture
def there() -> Iterator[Gate]:
    with gate(UnitGate) as made:
        yield made


def test_a_daemon_works_under_the_unit(there: Gate) -> None:
    with zone() as ground:
        there.up()
        guest = Guest(there, ground)
        assert isinstance(guest.answer, Entered)
        answer = ground.tcp("192.0.2.1", 80, request("192.0.2.1"))
        assert isinstance(answer, bytes) and b"cannot be reached: Connection refused" in answer, "holders run"
        assert there.status()["enforcement"] == "structural"
        guest.leave()
    there.daemon.terminate()
    code, said = there.ended()
    assert code == 0, said


def test_the_filter_is_in_force(there: Gate) -> None:
    """The control of the one before: without setns no bubble can be served."""
    assert isinstance(there, UnitGate)
    there.without = frozenset({"setns"})
    with zone() as ground:
        there.up()
        assert isinstance(Guest(there, ground).answer, Denied)


# -- a gateway under its unit ------------------------------------------------------------------------

GATEWAY = """\
gateway: 1
listen: "127.0.0.1:0"
certificate: server.crt
key: server.key
clients: {ca: ca.crt}
allow:
  - {networks: [127.0.0.0/8], ports: 1-65535}
log: gateway.log
"""


@pytest.fixture
def end(tmp_path: Path) -> Site:
    """The files of a gateway."""
    site = Site(tmp_path)
    (tmp_path / "ca.crt").write_text(site.authority.pem)
    (tmp_path / "gateway.yaml").write_text(GATEWAY)
    return site


def of_gateway(directory: Path) -> Path:
    """Its unit, as the command writes it."""
    words = [
        "systemd",
        "install",
        "--gateway",
        "-c",
        str(directory / "gateway.yaml"),
        "--dir",
        str(directory),
    ]
    assert CliRunner().invoke(zonegate, words).exit_code == 0
    return directory / units.GATEWAY


def test_a_gateways_unit_leaves_little_open(
    end: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_zonegate", lambda: PROGRAM)
    path = of_gateway(tmp_path)
    assert "@" not in re.sub(r"@(system-service|privileged|resources)", "", path.read_text())
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True
    )
    assert [line for line in verified.stderr.splitlines() if units.GATEWAY in line] == []
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    overall = subprocess.check_output(words, text=True).splitlines()[-1]
    found = re.search(r"level for zonegate-gateway.service: ([0-9.]+)", overall)
    assert found and float(found[1]) <= 1.5, overall


def test_a_gateway_works_under_its_unit(end: Site, tmp_path: Path) -> None:
    """It proves itself, and connects where it may."""
    unit = units.gateway_unit(PROGRAM, tmp_path / "gateway.yaml", tmp_path / "gateway.log", "root")
    with (
        socket.create_server(("127.0.0.1", 0)) as there,
        subprocess.Popen(
            under(unit, frozenset(), "gateway", "-c", str(tmp_path / "gateway.yaml")),
            stderr=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            port = re.search(r"listening on 127.0.0.1:([0-9]+)", said)
            assert port, said + process.stderr.read()
            context = ssl.create_default_context(cadata=end.authority.pem)
            context.load_cert_chain(*end.client_files)
            with (
                socket.create_connection(("127.0.0.1", int(port[1])), 60) as plain,
                context.wrap_socket(plain, server_hostname="gate.example") as client,
            ):
                client.sendall(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 204 ")
                place = b"127.0.0.1:%d" % there.getsockname()[1]
                client.sendall(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (place, place))
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        finally:
            process.kill()
