"""One daemon as the lab has it: its site, its bubbles, what it says and what it wrote down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from lab import kernel, weakened
from lab.kernel import LIMIT_S, REPOSITORY, Done, Place
from lab.world import GATEWAY, GATEWAY_PORT, SERVER_NAME, TESTS, Host
from proxy import certificates, inspection_ca, ipc
from proxy.messages.admin import Answer, Ask, Denied, Order

PROGRAMS = TESTS / "lab/programs"
LAB_RULES = """
  - id: lab-ports
    match: {zone: corporate, to: intranet, port: [7000, 7001, 7002]}
    verdict: tunnel
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What differs between daemons. `without` names defences that are taken out."""

    without: frozenset[str] = frozenset()
    limits: str = ""
    rules: str = LAB_RULES
    guards: str = ""
    destinations: str = ""
    judges_addresses: bool = False
    gateway: str = f"{GATEWAY}:{GATEWAY_PORT}"
    server_name: str = SERVER_NAME
    pins: tuple[str, ...] = ()
    state: Path | None = None
    descriptors: int = 0
    tunnels: str = ""  # instead of the mtls one, or beside it where `order` names gw
    order: str = "hq"
    networks: str = ""  # of the intranet, where names are resolved here
    secrets: Mapping[str, str] = field(default_factory=dict)
    inspects: bool = False
    people: str = ""
    listen: str = ""
    stops: str = ""  # who stops at which step of its start, see stepping


def policy_text(settings: Settings) -> str:
    """The policy that ships, with the lab's own entries; it must still look as the lab expects."""
    text = (REPOSITORY / "policies/corporate.policy.yaml").read_text()
    for mark, more in (
        ("  destinations:\n", settings.destinations),
        ("guards: # ceilings: no rule below can lift one\n", settings.guards),
    ):
        assert text.count(mark) == 1, f"the shipped policy has no line {mark!r} any more"
        text = text.replace(mark, mark + more)
    names = '    intranet: [corp.example, "*.corp.example"'
    assert text.count(names) == 1, "the shipped policy has another intranet"
    text = text.replace(names, names + (f", {settings.networks}" if settings.networks else ""))
    assert text.rstrip().endswith("verdict: tunnel"), "the rules are no longer the end of the shipped policy"
    return text.rstrip() + "\n" + settings.rules.lstrip("\n")


class Gate:
    """A daemon of `host`, from `start` to `end`. The site lies in a directory of its own."""

    def __init__(self, host: Host, name: str, settings: Settings = Settings()) -> None:
        self.host, self.settings = host, settings
        self.directory = host.directory / name
        self.directory.mkdir()
        self.state = settings.state or self.directory / "state"
        self.socket = self.directory / "run/admin.sock"
        self.log = self.directory / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.bubbles: list[Bubble] = []
        names = host.world.names
        certificates.write_issued(names.client, self.directory, "device1")
        (self.directory / "ca.crt").write_text(names.authority.pem)
        (self.directory / "policy.yaml").write_text(policy_text(settings))
        for name, text in settings.secrets.items():
            (self.directory / name).touch(mode=0o600)
            (self.directory / name).write_text(text)
        (self.directory / "site-ca.crt").write_text(names.site_authority.pem)
        if settings.inspects:
            inspection_ca.create(self.directory / "inspection", "Lab inspection", datetime.now(UTC))
        self.write_site()
        for path in [self.directory, *self.directory.rglob("*")]:
            os.chown(path, host.uid, host.uid)

    def write_site(self) -> None:
        """Write the site file."""
        settings = self.settings
        who = "root" if self.host.uid == 0 else f"#{self.host.uid}"
        inspect = ", inspect: true, http2: true" if settings.inspects else ""
        (self.directory / "zonegate.yaml").write_text(
            "zonegate: 1\npolicy: policy.yaml\nrun: run\n"
            f"state: {self.state}\n"
            f"zones:\n  corporate: {{tunnels: [{settings.order}]{inspect}}}\ntunnels:\n{self._tunnels()}"
            f'people:\n  "{who}": {{zones: [corporate]}}\n{settings.people}'
            + (f"listen:\n{settings.listen}" if settings.listen else "")
            + (f"limits: {{{settings.limits}}}\n" if settings.limits else "")
            + ("inspection: inspection\ntrust: site-ca.crt\n" if settings.inspects else "")
        )

    def _tunnels(self) -> str:
        """What the settings say; the mtls tunnel is hq, or gw beside others."""
        settings = self.settings
        return settings.tunnels + (self._mtls("gw") if "gw" in settings.order else "") or self._mtls("hq")

    def _mtls(self, name: str) -> str:
        settings = self.settings
        pins = settings.pins or (self.host.world.names.server.pin,)
        return (
            f"  {name}:\n    kind: mtls\n"
            f"    gateway: {settings.gateway}\n    server_name: {settings.server_name}\n"
            f"    ca: ca.crt\n    pins: {json.dumps(list(pins))}\n"
            "    certificate: device1.crt\n    key: device1.key\n"
            f"    judges_addresses: {'true' if settings.judges_addresses else 'false'}\n"
        )

    # -- the daemon --------------------------------------------------------------------------------

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells a command where this daemon is."""
        return {"ZONEGATE_SOCKET": str(self.socket)}

    def command(self, *arguments: str) -> list[str]:
        """A zonegate command, with the defences of this gate taken out."""
        return weakened.command(self.settings.without, arguments, self.settings.stops)

    def start(self) -> Gate:
        """Start the daemon and wait until its socket answers."""
        self.launch()
        kernel.until("the daemon listens", self._listens)
        return self

    def launch(self) -> None:
        """Start the daemon."""
        with self.log.open("ab") as log:
            self.process = kernel.start(
                self.host.place,
                self._limited(self.command("up", "-c", str(self.directory / "zonegate.yaml"))),
                stderr=log,
                stdout=log,
            )

    def _limited(self, command: list[str]) -> list[str]:
        most = self.settings.descriptors
        return ["prlimit", f"--nofile={most}:{most}", *command] if most else command

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.said()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            return sock.connect_ex(str(self.socket)) == 0

    def attested(self) -> Gate:
        """Wait until its tunnel is proved."""
        kernel.until("the tunnel is attested", lambda: self.tunnel()["attested"])
        return self

    def in_state(self, state: str) -> dict[str, Any]:
        """Wait until its tunnel is in a state; what status says of it then."""
        kernel.until(f"the tunnel is {state}", lambda: self.tunnel()["state"] == state)
        return self.tunnel()

    def said(self) -> str:
        """What it wrote to its standard error."""
        return self.log.read_text()

    def status(self) -> dict[str, Any]:
        """What `zonegate status --json` prints, asked for without the price of a new interpreter."""
        assert self.process is None or self.process.poll() is None, self.said()[-2000:]
        text = kernel.as_user(self.host.uid, lambda: _ask(self.socket, Ask("status", "{}")))
        found: dict[str, Any] = json.loads(text)
        return found

    def order(self, what: str, **parameters: object) -> dict[str, Any]:
        """What a `zonegate` command orders, without the price of a new interpreter."""
        question = Order(what, json.dumps(parameters))
        found: dict[str, Any] = json.loads(kernel.as_user(self.host.uid, lambda: _ask(self.socket, question)))
        return found

    def tunnel(self, name: str = "hq") -> dict[str, Any]:
        """What status says of a tunnel."""
        found: dict[str, Any] = self.status()["tunnels"][name]
        return found

    def call(self, *arguments: str) -> Done:
        """Any zonegate command of this daemon's user."""
        place = self.host.place
        there = Place(place.network, place.mounts, place.uid, {**place.environment, **self.environment})
        return kernel.run(there, self.command(*arguments))

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    def child(self, module: str) -> int:
        """The pid of the one process below the daemon that runs `proxy.MODULE`."""

        def find() -> int:
            for pid in kernel.descendants(self.pid):
                words = kernel.command_of(pid)
                if f"from proxy.{module} import" in words and not words.startswith("bwrap"):
                    return pid
            return 0

        return kernel.until(f"a process of proxy.{module}", find)

    def kill(self) -> None:
        """End the daemon with SIGKILL, and nothing else."""
        assert self.process is not None
        kernel.end(self.process)
        self.process = None

    def end(self, how: int = signal.SIGTERM) -> None:
        """End the daemon and what is left of its bubbles."""
        if self.process is not None:
            kernel.signal_all([self.pid], signal.SIGCONT)
            kernel.end(self.process, how)
            self.process = None
        for bubble in self.bubbles:
            bubble.end()
        self.bubbles.clear()

    # -- bubbles -----------------------------------------------------------------------------------

    def run(
        self, *command: str, stdin: bytes = b"", limit_s: float = LIMIT_S, share: Sequence[Path] = ()
    ) -> Done:
        """`zonegate run` of a command, to its end."""
        if "bubble" in self.settings.without:
            return kernel.run(self.host.place, command, stdin=stdin, limit_s=limit_s)
        place = self.host.place
        there = Place(place.network, place.mounts, place.uid, {**place.environment, **self.environment})
        return kernel.run(there, self._run_command(command, share), stdin=stdin, limit_s=limit_s)

    def python(self, program: str, *arguments: str, limit_s: float = LIMIT_S) -> Done:
        """A program of `programs/` in a bubble."""
        return self.run(*python(program, *arguments), limit_s=limit_s)

    def bubble(self, *command: str, share: Sequence[Path] = ()) -> Bubble:
        """A command in a bubble that goes on; ended with the gate."""
        place = self.host.place
        there = Place(place.network, place.mounts, place.uid, {**place.environment, **self.environment})
        outside = "bubble" in self.settings.without
        words = list(command) if outside else self._run_command(command, share)
        bubble = started(self, there, words, apart=True)
        self.bubbles.append(bubble)
        return bubble

    def _run_command(self, command: Sequence[str], share: Sequence[Path]) -> list[str]:
        shared = [PROGRAMS, self.host.world.directory / "site-ca.crt", *share]
        if sys.base_prefix != "/usr":
            shared.append(Path(sys.base_prefix))
        options = [word for path in shared for word in ("--share", str(path))]
        return self.command("run", *options, "--", *command)

    # -- records -----------------------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        """All audit records, in the order of the segments."""
        found: list[dict[str, Any]] = []
        for segment in sorted((self.state / "audit").glob("*.jsonl"), key=lambda path: path.suffixes[-2:][0]):
            whole, _, _ = segment.read_text().rpartition("\n")  # the last line may be being written
            found += [json.loads(line) for line in whole.splitlines()]
        return found

    def flows(self) -> set[str]:
        """The flows that there are records of: what is asked for later may be of another one."""
        return {row["flow"] for row in self.records() if "flow" in row}

    def record(self, kind: str, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The last record of a kind that matches, once there is one."""

        def find() -> dict[str, Any] | None:
            rows = [row for row in self.records() if row.get("record") == kind and matches(row)]
            return rows[-1] if rows else None

        found = kernel.until(f"an audit record ({kind})", find)
        assert found is not None
        return found


def _ask(path: Path, question: Ask | Order) -> bytes:
    """The text of a daemon's answer."""
    accepted: list[type[Answer | Denied]] = [Answer, Denied]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(kernel.LIMIT_S)
        link.connect(str(path))
        ipc.send(link, question)
        answer, _ = ipc.receive(link, accepted)
        assert isinstance(answer, Answer), answer
        return answer.text.encode()


def python(program: str, *arguments: str) -> list[str]:
    """The command of a program of `programs/`: the interpreter of the tests, which bubbles are shared."""
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [str(interpreter), "-I", "-u", str(PROGRAMS / f"{program}.py"), *arguments]


@dataclass(slots=True, eq=False)
class Bubble:
    """A program in a bubble that goes on. It speaks in lines; `process` is the outer one.

    What it says goes to files: in a pipe that nobody empties at the moment it would stand still.
    """

    gate: Gate
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    complaints: IO[bytes]
    heard: list[str] = field(default_factory=list)
    _at: int = 0

    def lines(self) -> list[str]:
        """Every line that the program has said so far."""
        more = os.fstat(self.said.fileno()).st_size - self._at
        data = os.pread(self.said.fileno(), more, self._at)
        *whole, rest = data.split(b"\n")
        self._at += len(data) - len(rest)
        self.heard += [line.decode(errors="replace") for line in whole]
        return self.heard

    def says(self, word: str, limit_s: float = LIMIT_S) -> str:
        """The first line yet with this word in it."""
        at = len(self.heard)

        def find() -> str:
            return next((line for line in self.lines()[at:] if word in line), "")

        try:
            return kernel.until(f'the program says "{word}"', find, limit_s)
        except kernel.NotSeen as error:
            raise kernel.NotSeen(f"{error}; it said {self.heard[-5:]} {self.complained()[-500:]}") from None

    def complained(self) -> str:
        """What it wrote to its standard error."""
        size = os.fstat(self.complaints.fileno()).st_size
        return os.pread(self.complaints.fileno(), size, 0).decode(errors="replace")

    def tell(self, line: str) -> None:
        """Send the program a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    @property
    def inner(self) -> int:
        """The process that made the namespaces."""
        return kernel.until("the inner process", lambda: (self._children(self.process.pid) or [0])[0])

    @property
    def program(self) -> int:
        """A process in the sandbox itself: the last below the inner one."""
        return kernel.until("the program", lambda: (kernel.descendants(self.inner)[1:] or [0])[-1])

    def _children(self, pid: int) -> list[int]:
        return [child for child, parent in kernel.parents().items() if parent == pid]

    def network(self) -> int:
        """A descriptor of its network namespace; the caller closes it."""
        return os.open(f"/proc/{self.inner}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def end(self) -> None:
        """End it and everything below it."""
        if self.process.poll() is None:
            below = kernel.descendants(self.process.pid)
            kernel.signal_all([self.process.pid, *below], signal.SIGCONT)
            kernel.signal_all(below, signal.SIGKILL)
        kernel.end(self.process)
        self.said.close()
        self.complaints.close()


def started(gate: Gate, place: Place, words: Sequence[str], *, apart: bool = False) -> Bubble:
    """A program at a place. Its complaints are lines like all it says, unless they are kept `apart`."""
    said = _kept()
    complaints = _kept() if apart else said
    process = kernel.start(place, words, stdin=subprocess.PIPE, stdout=said, stderr=complaints)
    return Bubble(gate, process, said, complaints)


def _kept() -> IO[bytes]:
    return tempfile.TemporaryFile("a+b")


def remove(gate: Gate) -> None:
    """End a gate and forget its files."""
    gate.end(signal.SIGKILL)
    shutil.rmtree(gate.directory, ignore_errors=True)
