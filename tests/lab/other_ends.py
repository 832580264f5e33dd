"""Other people's corporate ends, on the configurations that docs/gateways.md shows. No tests are here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab import kernel
from lab.conftest import OTHER_PORT
from lab.gate import Gate
from lab.kernel import REPOSITORY, Done, Place
from lab.world import GATEWAY, HOSTS, SERVER_NAME, World
from proxy import certificates
from proxy.certificates import Issued, issue_client, issue_server, make_authority

TEXT = (REPOSITORY / "docs/gateways.md").read_text()
SHOWN = "/etc/zonegate-gateway"


@dataclass(frozen=True, slots=True)
class Software:
    """A gateway's programs: each block of the page with its file and the command that runs it.

    `reload` is how it takes another CRL, in the words of the page; one that goes on is a program of its own.
    `probe_refuses` is whether another device of the same CA is refused as soon as it probes.
    """

    name: str
    programs: Mapping[str, tuple[str, ...]]
    reload: tuple[str, ...]
    user: str
    probe_refuses: bool

    def __str__(self) -> str:
        return self.name


SOFTWARE = (
    Software(
        "haproxy",
        {
            "tinyproxy": ("tinyproxy", "-d", "-c", "{file}"),
            "haproxy": ("haproxy", "-db", "-f", "{file}"),
        },
        ("haproxy", "-db", "-f", "{file}", "-sf", "{pid}"),
        "root",
        probe_refuses=True,
    ),
    Software(
        "apache2",
        {"apache": ("apache2", "-D", "FOREGROUND", "-f", "{file}")},
        ("apache2", "-f", "{file}", "-k", "graceful"),
        "root",
        probe_refuses=False,
    ),
    Software(
        "squid",
        {"squid": ("squid", "-N", "-f", "{file}")},
        ("squid", "-f", "{file}", "-k", "reconfigure"),
        "proxy",
        probe_refuses=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Devices:
    """Client certificates: the one that is let in, those that must not be, and one that is revoked later."""

    good: Issued
    another: Issued
    rogue: Issued
    expired: Issued
    revoked: Issued
    leaver: Issued


def devices(world: World) -> Devices:
    """All but `another` and its like have the name that is let in."""
    now, authority = datetime.now(UTC), world.names.authority
    return Devices(
        world.names.client,
        issue_client(authority, "device2", now=now),
        issue_client(make_authority("Lab CA", now=now), "device1", now=now),
        issue_client(authority, "device1", now=now - timedelta(days=9), days=8),
        issue_client(authority, "device1", now=now),
        issue_client(authority, "device1", now=now),
    )


class OtherEnd:
    """One of them at its place in corp, with names that lead to the intranet."""

    def __init__(self, world: World, software: Software, known: Devices) -> None:
        self.world, self.software = world, software
        self.directory = world.directory / f"end-{software}"
        self.directory.mkdir()
        self._files(known)
        self._mounts = self._with_hosts()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leaving: list[subprocess.Popen[bytes]] = []  # they serve what was open when they were replaced

    def _files(self, known: Devices) -> None:
        names, there = self.world.names, self.directory
        certificates.write_issued(names.server, there, "gateway")
        (there / "ca.crt").write_text(names.authority.pem)
        (there / "gateway.pem").write_bytes(names.server.pem.encode() + names.server.key_pem)
        self._revoke(known.revoked)
        for language in self.software.programs:
            (there / f"{language}.conf").write_text(self._configuration(language))
        for path in (there, *there.iterdir()):
            shutil.chown(path, self.software.user)

    def _configuration(self, language: str) -> str:
        found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
        assert found is not None, f"docs/gateways.md shows no {language}"
        text = found[1]
        for shown, used in (
            (SHOWN, str(self.directory)),
            ("192.0.2.10:8443", f"{GATEWAY}:{OTHER_PORT}"),
            ("*:8443", f"*:{OTHER_PORT}"),
            ("laptop", "device1"),
            ("10.20.0.0/16", "10.77.0.0/16"),
        ):
            text = text.replace(shown, used)
        assert "8443" not in text and "192.0.2" not in text, text
        return text

    def _with_hosts(self) -> int:
        """A mount namespace in which names are the lab's, and no resolver is asked."""
        hosts, resolver = self.directory / "hosts", self.directory / "resolv.conf"
        lines = [f"{address} {name}\n" for name, found in HOSTS.items() for address in found]
        hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
        resolver.write_text("nameserver 127.0.0.1\n")
        return kernel.new_mounts(f"mount --bind {hosts} /etc/hosts\nmount --bind {resolver} /etc/resolv.conf")

    def start(self) -> None:
        """Start its programs and wait until one listens."""
        place = Place(self.world.corp, self._mounts)
        with (self.directory / "said").open("ab") as said:
            for language, command in self.software.programs.items():
                words = [word.format(file=self.directory / f"{language}.conf") for word in command]
                self._processes.append(kernel.start(place, words, stdout=said, stderr=said))
        kernel.until(f"{self.software} listens", self._listens)

    def _revoke(self, *devices: Issued) -> None:
        revoked = [device.certificate for device in devices]
        authority, now = self.world.names.authority, datetime.now(UTC)
        (self.directory / "crl.pem").write_bytes(
            certificates.revocation_list(authority, revoked, now=now, days=30)
        )

    def reload(self, *revoked: Issued) -> None:
        """Give it a CRL with these on it."""
        self._revoke(*revoked)
        last = self._processes[-1]
        file = self.directory / f"{list(self.software.programs)[-1]}.conf"
        words = [word.format(file=file, pid=last.pid) for word in self.software.reload]
        there = Place(self.world.corp, self._mounts)
        if "{pid}" not in self.software.reload:
            done = kernel.run(there, words)
            assert done.code == 0, done
            return
        with (self.directory / "said").open("ab") as said:
            self._leaving.append(self._processes.pop())
            self._processes.append(kernel.start(there, words, stdout=said, stderr=said))

    def _listens(self) -> bool:
        ended = [process.args for process in self._processes if process.poll() is not None]
        assert not ended, (ended, (self.directory / "said").read_text())
        return self._is_heard()

    def _is_heard(self) -> bool:
        return bool(kernel.run(Place(self.world.corp), ["ss", "-tlnH", f"sport = :{OTHER_PORT}"]).out)

    def end(self) -> None:
        """Kill its programs and what they started: what stayed would serve in the place of the next one."""
        for process in (*self._processes, *self._leaving):
            kernel.end_with_descendants(process)
        self._processes.clear()
        self._leaving.clear()
        kernel.until("nobody listens in its place", lambda: not self._is_heard())

    def close(self) -> None:
        """End it for good."""
        self.end()
        os.close(self._mounts)

    def asked_by(self, device: Issued, directory: Path) -> Done:
        """curl from the device's network, with a client certificate and no gate."""
        certificate, key = certificates.write_issued(
            device, directory, f"c{device.certificate.serial_number:x}"
        )
        return kernel.run(
            Place(self.world.device),
            [
                "curl", "-sS", "-m", "60", "-p", "--proxy", f"https://{SERVER_NAME}:{OTHER_PORT}",
                "--resolve", f"{SERVER_NAME}:{OTHER_PORT}:{GATEWAY}",
                "--proxy-cacert", str(self.directory / "ca.crt"), "--proxy-cert", str(certificate),
                "--proxy-key", str(key), "http://intranet.corp.example/",
            ],
        )  # fmt: skip


class ManyTunnels(Gate):
    """A gate with a good tunnel, hq, and one for each way in which the two ends may not fit."""

    def write_site(self) -> None:
        """Write the site file."""
        names, settings, now = self.host.world.names, self.settings, datetime.now(UTC)
        rogue = make_authority("Lab CA", now=now)
        (self.directory / "rogue.crt").write_text(rogue.pem)
        certificates.write_issued(
            issue_client(names.authority, "device2", now=now), self.directory, "device2"
        )
        foreign = issue_server(names.authority, [SERVER_NAME], now=now).pin
        rows: dict[str, dict[str, object]] = {
            "hq": {"must_admit": "intranet.corp.example:80"},
            "device2": {"certificate": "device2.crt", "key": "device2.key"},
            "asked": {
                "certificate": "device2.crt",
                "key": "device2.key",
                "must_admit": "intranet.corp.example:80",
            },
            "wrong-name": {"server_name": "other.corp.example"},
            "wrong-pin": {"pins": [foreign]},
            "wrong-ca": {"ca": "rogue.crt"},
        }
        usual = {
            "kind": "mtls",
            "gateway": settings.gateway,
            "server_name": SERVER_NAME,
            "ca": "ca.crt",
            "pins": [names.server.pin],
            "certificate": "device1.crt",
            "key": "device1.key",
        }
        tunnels = {name: {**usual, **row} for name, row in rows.items()}
        who = "root" if self.host.uid == 0 else f"#{self.host.uid}"
        site = {
            "zonegate": "1",
            "policy": "policy.yaml",
            "run": "run",
            "state": str(self.state),
            "zones": {"corporate": {"tunnels": ["hq"]}},
            "tunnels": tunnels,
            "people": {who: {"zones": ["corporate"]}},
        }
        (self.directory / "zonegate.yaml").write_text(json.dumps(site))
