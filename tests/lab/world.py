"""The three namespaces and what stands in them, and the host of one user.

      device ------------- net ------------- corp
      10.200.1.2   10.200.1.1  10.200.2.1   10.200.2.2:8443  the gateway
      the daemon,  hostile: routes everything, also the intranet's   10.77.0.80, fd77::80  the intranet
      the bubbles  addresses; 198.51.100.80 and others are public

Neighbours are fixed entries, so every ARP request or neighbour solicitation on a watched wire is a leak.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab import kernel, weakened
from lab.kernel import REPOSITORY, Place
from lab.wire import Frame, Wire
from proxy import certificates
from proxy.certificates import Issued

ROUTER, DEVICE = "10.200.1.1", "10.200.1.2"
GATEWAY, GATEWAY6, GATEWAY_PORT = "10.200.2.2", "2001:db8:2::2", 8443
INTRANET, INTRANET6, CODE = "10.77.0.80", "fd77::80", "10.77.0.22"
PUBLIC, PUBLIC_TOO, PUBLIC6 = "198.51.100.80", "203.0.113.9", "2001:db8:80::80"
RESOLVER, LAN_RESOLVER = "192.0.2.53", ROUTER
MOUNTS = "mounts"
SERVER_NAME = "gw.corp.example"
USER = 4321
TESTS = Path(__file__).parents[1]

HOSTS = {
    "intranet.corp.example": (INTRANET,),
    "git.corp.example": (INTRANET,),
    "ssh.corp.example": (CODE,),
    "six.corp.example": (INTRANET6,),
    "paste.pastehub.example": (INTRANET,),
    "rebound.corp.example": ("169.254.169.254",),
}


@dataclass(frozen=True, slots=True)
class Names:
    """Certificates of the lab: the good ones, and every impostor's."""

    authority: Issued
    server: Issued
    client: Issued
    site_authority: Issued


class World:
    """Everything but the gate. Closed by `close`, whatever happened."""

    def __init__(self) -> None:
        kernel.need(
            "ip",
            "nft",
            "nsenter",
            "unshare",
            "bwrap",
            "curl",
            "git",
            "dig",
            "tmux",
            "setpriv",
            "mount",
            "haproxy",
            "tinyproxy",
            "apache2",
            "squid",
        )
        assert os.geteuid() == 0, "the lab makes network namespaces: run it as root"
        kernel.adopt_orphans()
        self.undo = ExitStack()
        self._hosts: dict[str, Host] = {}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def host(self, who: str) -> Host:
        """The device as `who` has it; made once, whatever the order of the tests."""
        if who not in self._hosts:
            self._hosts[who] = Host(self, who)
        return self._hosts[who]

    def _make(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zonegate-lab-"))
        self.undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.directory.chmod(0o755)
        self.device, self.net, self.corp = (self._network() for _ in range(3))
        self._links()
        self.names = self._certificates()
        self._repository()
        for side, network in (("corp", self.corp), ("net", self.net)):
            self._serve(side, network)
        self.gateway = Gateway(self, self.directory / "gateway", self.names.server)
        self.undo.callback(self.gateway.end)
        self.gateway.start()
        self.wire = Wire(self.net, "n-device", GATEWAY, GATEWAY_PORT)
        self.undo.callback(self.wire.close)
        self.loopback = Wire(self.device, "lo", GATEWAY, GATEWAY_PORT)
        self.undo.callback(self.loopback.close)

    def close(self) -> None:
        """Undo everything; what still runs is ended by its pid."""
        self.undo.close()
        kernel.signal_all(kernel.descendants(os.getpid()), signal.SIGKILL)

    def public_log(self) -> str:
        """What reached the public internet and its resolver."""
        return (self.directory / "net.log").read_text()

    def take_link_down(self) -> None:
        """Corp is cut off."""
        kernel.must(self.net, "ip link set n-corp down")

    def take_link_up(self) -> None:
        """Corp is there again, with what a kernel forgets of a link that is down."""
        kernel.must(self.net, "ip link set n-corp up", "ip -6 addr add 2001:db8:2::1/64 dev n-corp nodad")
        make_neighbours(self.net, "n-corp", GATEWAY, "2001:db8:2::2", mac_of(self.corp, "up0"))
        self._routes_to_corp()

    def left(self) -> dict[str, list[str]]:
        """What a file of tests must leave as it was: networks and the gateway at work; and no mount more.

        What is mounted on the machine meanwhile, by others, comes and goes in the hosts of the lab too.
        """
        hosts = {
            f"{MOUNTS} of {who}": kernel.run(host.root, ["cat", "/proc/self/mounts"]).out.splitlines()
            for who, host in self._hosts.items()
        }
        return {**self._networks(), **hosts, "the gateway": [self.gateway.state]}

    def _networks(self) -> dict[str, list[str]]:
        looks = (
            "ip -br link", "ip -br addr", "ip route show table all", "ip -6 route show table all",
            "ip neigh show nud permanent", "ip -6 neigh show nud permanent", "nft list ruleset",
        )  # fmt: skip
        places = {"device": self.device, "net": self.net, "corp": self.corp}
        return {
            f"{name}: {look}": sorted(kernel.run(Place(network), look.split()).out.splitlines())
            for name, network in places.items()
            for look in looks
        }

    # -- making ------------------------------------------------------------------------------------

    def _network(self) -> int:
        fd = kernel.new_network()
        self.undo.callback(os.close, fd)
        kernel.must(fd, "ip link set lo up")
        return fd

    def _links(self) -> None:
        join(self.device, "up0", DEVICE, "2001:db8:1::2", self.net, "n-device", ROUTER, "2001:db8:1::1")
        join(self.corp, "up0", GATEWAY, GATEWAY6, self.net, "n-corp", "10.200.2.1", "2001:db8:2::1")
        for network, four, six in (
            (self.device, ROUTER, "2001:db8:1::1"),
            (self.corp, "10.200.2.1", "2001:db8:2::1"),
        ):
            kernel.must(network, f"ip route add default via {four}", f"ip -6 route add default via {six}")
        for address in (PUBLIC, PUBLIC_TOO, RESOLVER):
            kernel.must(self.net, f"ip addr add {address}/32 dev lo")
        kernel.must(self.net, f"ip -6 addr add {PUBLIC6}/128 dev lo nodad")
        kernel.must(self.net, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        self._routes_to_corp()
        for address in (INTRANET, CODE):
            kernel.must(self.corp, f"ip addr add {address}/32 dev lo")
        kernel.must(self.corp, f"ip -6 addr add {INTRANET6}/128 dev lo nodad")

    def _routes_to_corp(self) -> None:
        kernel.must(
            self.net,
            "ip route add 10.77.0.0/16 via 10.200.2.2",
            f"ip -6 route add fd77::/16 via {GATEWAY6}",
        )

    def _certificates(self) -> Names:
        now = datetime.now(UTC)
        authority = certificates.make_authority("Lab CA", now=now)
        site_authority = certificates.make_authority("Lab site CA", now=now)
        site = certificates.issue_server(site_authority, list(HOSTS), now=now)
        certificates.write_issued(site, self.directory, "site")
        (self.directory / "site-ca.crt").write_text(site_authority.pem)
        return Names(
            authority,
            certificates.issue_server(authority, [SERVER_NAME], now=now),
            certificates.issue_client(authority, "device1", now=now),
            site_authority,
        )

    def _repository(self) -> None:
        commands = (
            "git init -q --bare project.git",
            "git init -q work",
            "git -C work -c user.name=lab -c user.email=lab@corp.example commit -q --allow-empty -m first",
            "git -C work push -q ../project.git HEAD:refs/heads/main",
            "git -C project.git symbolic-ref HEAD refs/heads/main",
        )
        for command in commands:
            subprocess.run(command.split(), cwd=self.directory, check=True, timeout=kernel.LIMIT_S)

    def _serve(self, side: str, network: int) -> None:
        command = [sys.executable, str(TESTS / "lab/servers.py"), side, str(self.directory)]
        with (self.directory / f"{side}.err").open("wb") as errors:
            process = kernel.start(Place(network), command, stderr=errors)
        self.undo.callback(kernel.end, process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == b"ready\n", (self.directory / f"{side}.err").read_text()


def is_of_mtls(frame: Frame) -> bool:
    """The mtls tunnel of the gate that other files share and none ends."""
    return frame.kind == "tcp" and f"{GATEWAY}:{GATEWAY_PORT}" in (frame.source, frame.target)


def join(one: int, name: str, four: str, six: str, other: int, name2: str, four2: str, six2: str) -> None:
    """A veth pair between two namespaces, addressed, with fixed neighbours."""
    there = f"/proc/{os.getpid()}/fd/{other}"
    kernel.must(one, f"ip link add {name} type veth peer name {name2} netns {there}")
    ends = ((one, name, four, six), (other, name2, four2, six2))
    for network, device, address4, address6 in ends:
        kernel.must(
            network,
            f"sysctl -qw net.ipv6.conf.{device}.router_solicitations=0 net.ipv6.conf.{device}.accept_ra=0",
            f"sysctl -qw net.ipv6.conf.{device}.dad_transmits=0",
            f"ip link set {device} addrgenmode none",
            f"ip link set {device} up",
            f"ip addr add {address4}/24 dev {device}",
            f"ip -6 addr add {address6}/64 dev {device} nodad",
        )
    macs = [mac_of(network, device) for network, device, _, _ in ends]
    for (network, device, _, _), (_, _, address4, address6), mac in zip(
        ends, ends[::-1], macs[::-1], strict=True
    ):
        make_neighbours(network, device, address4, address6, mac)


def make_neighbours(network: int, device: str, four: str, six: str, mac: str) -> None:
    """Fixed entries for the other end of a link."""
    for address in (four, six):
        kernel.must(network, f"ip neigh replace {address} lladdr {mac} dev {device} nud permanent")


def mac_of(network: int, device: str) -> str:
    """The Ethernet address of a device."""
    shown = kernel.run(Place(network), ["ip", "-br", "link", "show", device]).out
    return shown.split()[2]


class Gateway:
    """`zonegate gateway` at its place in corp; can be stopped, killed and started with another key."""

    def __init__(
        self,
        world: World,
        directory: Path,
        server: Issued,
        *,
        port: int = GATEWAY_PORT,
        without: frozenset[str] = frozenset(),
        allow: str = "",
    ) -> None:
        self._world, self.directory, self.port, self._without = world, directory, port, without
        self._allow = allow
        directory.mkdir(mode=0o700)
        self.revoked = directory / "revoked"
        self.revoked.write_text("")
        self.log = directory / "gateway.log"
        (directory / "clients.crt").write_text(world.names.authority.pem)
        self.process: subprocess.Popen[bytes] | None = None
        self.show(server)

    def show(self, server: Issued) -> None:
        """Use this certificate from the next start on."""
        for name in ("server.crt", "server.key"):
            (self.directory / name).unlink(missing_ok=True)
        certificates.write_issued(server, self.directory, "server")
        hosts = "".join(f"  {name}: [{', '.join(map(quoted, to))}]\n" for name, to in HOSTS.items())
        (self.directory / "gateway.yaml").write_text(
            "gateway: 1\n"
            f'listen: ["{GATEWAY}:{self.port}"]\n'
            "certificate: server.crt\nkey: server.key\n"
            "clients: {ca: clients.crt, revoked: revoked}\n"
            "log: gateway.log\nresolver: hosts\n"
            f"hosts:\n{hosts}"
            "allow:\n"
            '- names: ["*.corp.example", "*.pastehub.example"]\n'
            f'  networks: ["{INTRANET}/32", "{CODE}/32", "{INTRANET6}/128"]\n'
            "  ports: [22, 80, 443, 7000-7003]\n"
            f"{self._allow}"
            "limits: {clients: 9000, per_certificate: 9000, handshakes: 9000, per_address: 9000}\n"
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        arguments = ["gateway", "-c", str(self.directory / "gateway.yaml")]
        command = weakened.command(self._without, arguments)
        with (self.directory / "errors").open("wb") as errors:
            self.process = kernel.start(Place(self._world.corp), command, stderr=errors, stdout=errors)
        kernel.until("the gateway listens", self._listens)

    def _listens(self) -> bool:
        said = (self.directory / "errors").read_text()
        assert self.process is not None and self.process.poll() is None, said
        return "listening on" in said

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, how: int = signal.SIGKILL) -> None:
        """End it."""
        if self.process is not None:
            kernel.end(self.process, how)
            self.process = None

    @property
    def state(self) -> str:
        """How its process is: "at work", or stopped, or not there."""
        if self.process is None or self.process.poll() is not None:
            return "not there"
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return "stopped" if stat.rpartition(")")[2].split()[0] in "Tt" else "at work"

    def heard(self) -> str:
        """Its own log."""
        return self.log.read_text() if self.log.exists() else ""


def quoted(text: str) -> str:
    """A word in YAML."""
    return f'"{text}"'


def impostor(name: str, authority: Issued, *, days: int = 30, ago_days: int = 0) -> Issued:
    """A gateway's certificate that is not the right one."""
    return certificates.issue_server(
        authority, [name], now=datetime.now(UTC) - timedelta(days=ago_days), days=days
    )


def needed_directories(paths: Sequence[Path]) -> list[Path]:
    """Those of the interpreter's and the project's directories that lie in root's own home."""
    home = Path("/root")
    return sorted({path for path in paths if path.is_relative_to(home)})


class Host:
    """The machine as one user has it: /run of its own with pretended services, root's home closed."""

    def __init__(self, world: World, who: str) -> None:
        self.world, self.who = world, who
        self.uid = {"root": 0, "user": USER}[who]
        self.directory = world.directory / who
        self.directory.mkdir(mode=0o755)
        self.home = self.directory / "home"
        self.home.mkdir(mode=0o700)
        self.runtime = Path(f"/run/user/{self.uid}")
        (world.directory / f"{who}-run").mkdir()
        for path in (self.directory, self.home):
            os.chown(path, self.uid, self.uid)
        self.mounts = kernel.new_mounts("\n".join(self._mounts()))
        world.undo.callback(os.close, self.mounts)
        variables = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TERM": "xterm",
            "SHELL": "/bin/sh",
        }
        self.place = Place(world.device, self.mounts, self.uid, variables)
        self.root = Place(world.device, self.mounts)

    def _mounts(self) -> list[str]:
        run, resolv = self.world.directory / f"{self.who}-run", self.directory / "resolv.conf"
        resolv.write_text(f"nameserver {RESOLVER}\n")
        lines = [
            f"mount --bind {run} /run",
            f"mkdir -p {self.runtime} /run/nscd /run/systemd/resolve /run/dbus",
            f"chown {self.uid}:{self.uid} {self.runtime}",
            f"chmod 700 {self.runtime}",
            f"mount --bind {resolv} /etc/resolv.conf",
        ]
        if self.uid:
            lines += self._open_root_home()
        return lines

    def _open_root_home(self) -> list[str]:
        """An ordinary user cannot read the home of root; where the interpreter lies there, show only that."""
        wanted = needed_directories([Path(sys.prefix), Path(sys.base_prefix), REPOSITORY])
        held = self.world.directory / "root-home"
        lines = [f"mkdir -p {held}", f"mount --bind /root {held}", "mount -t tmpfs -o mode=0755 tmpfs /root"]
        for path in wanted:
            lines += [f"mkdir -p {path}", f"mount --bind {held}/{path.relative_to('/root')} {path}"]
        return [*lines, f"umount {held}"]
