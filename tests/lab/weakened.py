"""The product with named defences taken out, for positive controls: a leak test must have been red.

`command` gives a zonegate command line; where defences are to be missing it goes through this file, which
applies the rows of WEAKENINGS to the command's own process and, through the command line with which the
supervisor starts them, to workers, holders and doors. A row that no longer bites shows: its control then
sees no canary, and fails.

Two names have no row because the lab does them itself: `bubble` (the program runs outside of any) and
`linkless` (the zone is given a veth, as root, from outside).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it lies beside the lab, not in it

from lab import weakened_explicit, weakened_rules

BY_THE_LAB = frozenset({"bubble", "linkless"})

_NO_FILTER = """
import pyseccomp, proxy.syscalls as s
s.{name} = lambda: s._program(pyseccomp.SyscallFilter(pyseccomp.ALLOW))
"""
_HOST_RUN = """
import proxy.bubble as b
_system = b._system
b._system = lambda: [*_system(), "--bind", "/run", "/run", "--bind", "/tmp", "/tmp"]
"""
_WORKER_SEES_RUN = """
import proxy.sandbox as s
_sealed = s.sealed
def sealed(command, fd):
    told = _sealed(command, fd)
    at = told.index("--remount-ro")
    return [*told[:at], "--bind", "/run", "/run", "--symlink", "/run", "/var/run",
            "--ro-bind", "/etc", "/etc", *told[at:]]
s.sealed = sealed
"""
_WORKER_IN_HOST_NETWORK = """
import proxy.sandbox as s
_sealed_net = s.sealed
s.sealed = lambda command, fd: [word for word in _sealed_net(command, fd) if word != "--unshare-net"]
"""
_ALWAYS_ATTESTED = """
import proxy.tunnels.keeper as k
from proxy.tunnels.base import Attestation
from proxy.flow import TunnelState
def assumed(*a):
    return Attestation(TunnelState.ATTESTED, "assumed", "sha256:nobody", a[-1], a[-1] + (1 << 50))
k.attest_packets = k.attest = assumed
"""
_ANY_PEER = """
import ssl, proxy.mtls_egress as e, proxy.channel.tls as t
_client = e.tls_client
t.require_client = lambda context: None
async def tls_client(sock, context, name, pins, limit_s, backlog):
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    class Any:
        def __contains__(self, pin): return True
        def __iter__(self): return iter(pins)
        def __bool__(self): return True
    return await _client(sock, context, name, Any(), limit_s, backlog)
e.tls_client = tls_client
"""
_TOOLS_MAY_FAIL = """
import proxy.namespaces as n
_run = n.run
def run(command, text=""):
    try: _run(command, text)
    except n.NamespaceError: pass
n.run = run
"""
# The clocks that can be set, and what the machine slept, as these processes see them: moved by a signal.
SET_BACK, SET_FORWARD, SLEPT = (signal.SIGRTMIN + number for number in (6, 7, 8))
_CLOCK = f"""
import datetime as d, signal, time
real, moved = time.clock_gettime_ns, {{"wall": 0, "slept": 0}}
BOOT = time.CLOCK_BOOTTIME
def gettime_ns(which):
    wall = moved["wall"] if which == time.CLOCK_REALTIME else 0
    slept = moved["slept"] if which in (BOOT, time.CLOCK_REALTIME) else 0
    return real(which) + wall + slept
time.clock_gettime_ns = gettime_ns
time.clock_gettime = lambda which: gettime_ns(which) / 1e9
time.time_ns = lambda: gettime_ns(time.CLOCK_REALTIME)
time.time = lambda: gettime_ns(time.CLOCK_REALTIME) / 1e9
true = d.datetime
class Kind(type):
    def __instancecheck__(cls, one): return isinstance(one, true)
class Moved(true, metaclass=Kind):
    @classmethod
    def now(cls, tz=None): return true.fromtimestamp(time.time(), tz)
d.datetime = Moved
def move(what, by_s):
    def moving(*_): moved[what] += by_s * 10**9
    return moving
signal.signal({SET_BACK}, move("wall", -86400))
signal.signal({SET_FORWARD}, move("wall", 2 * 86400))
signal.signal({SLEPT}, move("slept", 3600))
"""
_WALL_CLOCK = "import time; time.CLOCK_BOOTTIME = time.CLOCK_REALTIME"


def _in_inner_holder(code: str) -> str:
    """Code for an outer holder, which has its inner one run `code`."""
    return f"""
import proxy.sandbox as s
_told = s.python_command
def told(*words, **more):
    said = _told(*words, **more)
    at = said.index("-c") + 1
    before, mark, after = said[at].rpartition("from proxy.")
    said[at] = before + {f"exec({code!r}); "!r} + mark + after
    return said
s.python_command = told
"""


def _everywhere(code: str) -> Mapping[str, str]:
    """Code for every process that goes on."""
    alike = dict.fromkeys(("cli", "worker", "inspector", "holder"), code)
    return {**alike, "wireguard": code + "\n" + _in_inner_holder(code)}


# A compromised worker: what it tries with the sockets that it was given, and how it asks for names. It says
# on standard error what came of it, as the errno of each attempt.
_AIM = """
import ctypes, errno, socket, struct, sys
import proxy.captured as c, proxy.mtls_egress as e
libc = ctypes.CDLL(None, use_errno=True)
def outcome(fd, address):
    result = libc.connect(fd, address, 16)
    return "OK" if result == 0 else errno.errorcode[ctypes.get_errno()]
def aim(kind, sock):
    first = outcome(sock.fileno(), struct.pack("H14x", 0))
    there = struct.pack("=H", 2) + struct.pack("!H4s8x", 80, socket.inet_aton("198.51.100.80"))
    second = outcome(sock.fileno(), there)
    print(f"aimed {kind} {first} {second}", file=sys.stderr, flush=True)
_socket, _serve = e.MtlsEgress._socket, c.Captured._serve
async def dialled(self):
    sock = await _socket(self)
    aim("dialled", sock)
    return sock
async def serve(self, sock):
    port = sock.getsockname()[1]
    if port == 7001: aim("accepted", sock)
    if port == 7000: aim("listening", self._listeners[0])
    await _serve(self, sock)
e.MtlsEgress._socket, c.Captured._serve = dialled, serve
"""
_ASK_NAMES = """
import socket, sys, proxy.captured as c
_serve = c.Captured._serve
async def serve(self, sock):
    try: said = socket.getaddrinfo("asked-by-a-worker.example", 80)[0][4][0]
    except Exception as error: said = repr(error)
    print(f"asked {said}", file=sys.stderr, flush=True)
    await _serve(self, sock)
c.Captured._serve = serve
"""
_ANY_ADDRESS = """
import proxy.packet_egress as p, proxy.policy.compile as c
p.PacketEgress._is_near = lambda self, address: False
c.Claims.outcome_of = lambda self, claim, name: None
"""
# Of inspectors. tests/inspection takes them out of its own process, too.
INSPECTORS: Mapping[str, str] = {
    "request-verdicts": """
import proxy.inspection.judging as j
from dataclasses import replace
_admission = j.Judging._admission
def admission(self, flow, asked):
    asked = replace(asked, method="GET", path="/", has_body=False, websocket_key=b"")
    return _admission(self, replace(flow, method="GET", path="/"), asked)
j.Judging._admission = admission
""",
    "requests-each": """
import proxy.inspection.judging as j
_admission_each = j.Judging._admission
def admission(self, flow, asked):
    if "_first" not in vars(self): self._first = _admission_each(self, flow, asked)
    return self._first
j.Judging._admission, j.Judging.answered = admission, lambda *a: None
""",
    "names-agree": "import proxy.inspection.heads as h; h._must_be = lambda *a: None",
    "tls-names": """
import proxy.inspection.hooks as k, proxy.inspection.connection as c
from mitmproxy.proxy.layers.tls import TlsClienthelloHook
c.HOOKS = {**k.HOOKS, TlsClienthelloHook: k.Hooks.pass_over}
""",
    "strict-heads": """
import proxy.inspection.http as t, proxy.inspection.heads as h, proxy.inspection.connection as c
t.JudgedHttp1.read_headers = t.Http1Server.read_headers
c.Settings.validate_inbound_headers = False
h._checked = lambda fields: h._Of([(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in fields])
""",
    "one-frame": """
from proxy.inspection.requests import JudgedStream
JudgedStream._frame = staticmethod(lambda *a: None)
""",
    "closed-after-refusal": """
import proxy.inspection.http as t
from mitmproxy.proxy.events import DataReceived
def refuse(self, words):
    self.buf.maybe_extract_lines()
    yield from self.read_headers(DataReceived(self.conn, b""))
t.JudgedHttp1._refuse = refuse
""",
    "upgrades": """
import proxy.inspection.hooks as k
from dataclasses import replace
_read_request = k.read_request
k.read_request = lambda *a, **more: replace(_read_request(*a, **more), drop=frozenset())
""",
    "cut-at-the-byte": """
import proxy.inspection.exchange as j
def allow(self, transfer, wanted):
    self.counts.add(transfer, wanted)
    return wanted
j.Exchange.allow = allow
""",
    "hooks-fail-closed": """
import proxy.inspection.connection as c
async def handle_hook(self, hook):
    try: await c.HOOKS[type(hook)](self._hooks, *hook.args())
    except Exception: pass
c.InspectedConnection.handle_hook = handle_hook
""",
    "head-limits": """
import proxy.inspection.http as t, proxy.inspection.heads as h
from proxy.channel.head import parse_head
t.MAX_HEAD_BYTES = h.MAX_HEAD_BYTES = h.MAX_FIELDS = 1 << 30
t.parse_head = lambda head: parse_head(head, 1 << 30)
""",
    "unpacking-bounds": "import proxy.scanning.unpack as u; u.FREE_BYTES = u.MOST_BYTES = 1 << 60",
    "held-bytes": "import proxy.inspection.connection as c; c.HELD_BYTES = 1 << 60",
    "scans": "import proxy.inspection.judging as j; j.scanning_of = lambda *a: None",
}
# An inspector that has grown too large after some dozens of hostile connections, not after a thousand.
_LITTLE_MEMORY = "import proxy.inspector as i; i.RESIDENT_BYTES = 128 << 20"
# Junk that is not taken for what it is: it ends the process that reads it.
_JUNK_QUESTIONS = """
import os, proxy.names as n
_understand, FORMERR = n.understand, 1
def understand(packet):
    reply = _understand(packet)
    if isinstance(reply, bytes) and reply[3] & 15 == FORMERR: os._exit(7)
    return reply
n.understand = understand
"""
_JUNK_STREAMS = """
import os, proxy.first_bytes as f
_recognise_junk = f.recognise
def recognise(data):
    seen = _recognise_junk(data)
    if seen and seen.malformed: os._exit(7)
    return seen
f.recognise = recognise
"""
# A message that lacks a field is filled in, and what it has too much is passed over.
_ANY_MESSAGE = """
import proxy.ipc as i
def built(place, kind, fields):
    blank = {bool: False, str: "", int: 0, float: 0.0}
    return kind(**{name: fields.get(name, blank.get(hint, ())) for name, hint in i._hints(kind).items()})
i._built = built
"""
# A sandbox that waits where only its own bubblewrap can let it begin.
_HELD_SETUP = """
import proxy.sandbox as s
_sealed_held = s.sealed
_hold = "f=$(mktemp -u); mkfifo $f; exec 98>/dev/null 99<>$f; rm $f; "
_hold += "exec bwrap --info-fd 98 --userns-block-fd 99"
s.sealed = lambda command, fd: ["bash", "-c", _hold + ' "$@"', "bash", *_sealed_held(command, fd)[1:]]
"""
ATTACKS: Mapping[str, Mapping[str, str]] = {
    "held-setup": {"cli": _HELD_SETUP},
    "aim": {"worker": _AIM},
    "ask-names": {"worker": _ASK_NAMES},
    "little-memory": {"inspector": _LITTLE_MEMORY},
    "clock": _everywhere(_CLOCK),
}

# name -> (module -> code run in that process before its main). "cli" is the command itself.
WEAKENINGS: Mapping[str, Mapping[str, str]] = {
    "worker-filter": {
        "cli": _NO_FILTER.format(name="worker_filter"),
        "worker": "import proxy.sealed as s; s.is_sealed = lambda: True",
    },
    "worker-filter-alone": {"cli": _NO_FILTER.format(name="worker_filter")},
    "worker-mounts": {"cli": _WORKER_SEES_RUN},
    "worker-network": {"cli": _WORKER_IN_HOST_NETWORK},
    "bubble-filter": {"cli": _NO_FILTER.format(name="bubble_filter")},
    "bubble-mounts": {"cli": _HOST_RUN},
    "attest": {"cli": _ALWAYS_ATTESTED},
    "peer": {"worker": _ANY_PEER},
    "expiry-check": {  # so that an impostor starts at all with a certificate that has expired
        "cli": "import datetime as d, proxy.gateway.service as s\n"
        "class Then(d.datetime):\n"
        "    now = classmethod(lambda cls, zone: d.datetime(2000, 1, 1, tzinfo=zone))\n"
        "s.datetime = Then"
    },
    "lease": {
        "worker": "import proxy.egress as e\n"
        "e.Egress.leased = property(lambda self: bool(self._lease.deadline_ns))\n"
        "e.Egress.admits = lambda self, grant: True\n"
        "e.Egress.grant = lambda self: e.Grant(0, '', 0.0)\n"
        "import proxy.leases as l; l.Leases._cut = lambda *a: None",
    },
    "yes-to-all": {
        "holder": "import asyncio, proxy.holder as h\nh._must_refuse = lambda *a: asyncio.sleep(0)",
    },
    "tools": {
        "cli": _TOOLS_MAY_FAIL,
        "wireguard": _in_inner_holder(_TOOLS_MAY_FAIL),
    },
    "boot-clock": _everywhere(_WALL_CLOCK),
    "lock": {
        "cli": "import proxy.crew as c\n"
        "async def lock(self, words): return 0\n"
        "c.Worker.locked, c.Worker.lock = property(lambda self: '', lambda self, words: None), lock",
    },
    "judged-again": {
        "worker": "import proxy.rejudging as r\n"
        "async def judge(self, because): return 0\n"
        "r.Rejudging._judge_again = judge",
    },
    "audit": {
        "worker": "import proxy.audit as a\n"
        "_verdict = a.Segment.verdict\n"
        "def verdict(self, record):\n"
        "    try: _verdict(self, record)\n"
        "    except a.AuditUnwritable: pass\n"
        "a.Segment.verdict = verdict",
    },
    "names-of-others": {
        "cli": "import proxy.allocator as a\n"
        "def name_of(self, bubble, address):\n"
        "    slot = self._slots.get(a.offset_of(address))\n"
        "    return slot and slot.name\n"
        "a.Allocator.name_of = name_of",
    },
    "messages": {"cli": _ANY_MESSAGE},
    "junk-questions": {"worker": _JUNK_QUESTIONS},
    "junk-streams": {"worker": _JUNK_STREAMS},
    "room": {
        "worker": "import proxy.captured as c\n"
        "c.Captured._has_room, c.Captured._resume = lambda self: True, lambda *a: None",
    },
    "unbegun": {"cli": "import proxy.remains as r\nr.end_unbegun = lambda: 0"},
    "names-kept": {
        "cli": "import proxy.allocator as a, pathlib\n"
        "_init = a.Allocator.__init__\n"
        "def init(self, path, **more):\n"
        "    pathlib.Path(path).unlink(missing_ok=True); _init(self, path, **more)\n"
        "a.Allocator.__init__ = init",
    },
    "names-quota": {
        "cli": "import proxy.allocator as a\n"
        "_init = a.Allocator.__init__\n"
        "def init(self, path, **more): _init(self, path, **{**more, 'quota': 1 << 30})\n"
        "a.Allocator.__init__ = init",
    },
    "strict-names": {
        "cli": "import proxy.allocator as a; a._is_canonical = lambda name: True",
        "worker": "import proxy.questions as q\nq.parse_name = lambda text: text.rstrip('.').lower()",
    },
    "inner-address": {
        "worker": "import proxy.addresses as a; a.inner = lambda address: address\n"
        "import sys, proxy.captured as c\n"
        "for m in list(sys.modules.values()):\n"
        "    if getattr(m, '__name__', '').startswith('proxy') and hasattr(m, 'inner'): m.inner = a.inner",
    },
    "rebinding": {"worker": _ANY_ADDRESS, "inspector": _ANY_ADDRESS},
    **{name: {"inspector": code} for name, code in INSPECTORS.items()},
    "special-ranges": {
        "worker": "import proxy.policy.compile as c\n"
        "c._claim = lambda own, special, wide, narrow: c.Claim(False, False, bool(wide), wide)\n"
        "import proxy.captured as p; p.OWN = frozenset()",
    },
    **weakened_explicit.DEFENCES,
    **weakened_rules.DEFENCES,
    **{name: {"wireguard": _in_inner_holder(code)} for name, code in weakened_rules.OF_TUNNELS.items()},
}


def command(without: Collection[str], arguments: Sequence[str], stops: str = "") -> list[str]:
    """A zonegate command line; as it is where nothing is taken out and nobody stops (see stepping)."""
    names = sorted(set(without) - BY_THE_LAB)
    unknown = [name for name in names if name not in {*WEAKENINGS, *ATTACKS}]
    assert not unknown, f"no defence is called {unknown}; there are {sorted({*WEAKENINGS, *BY_THE_LAB})}"
    if not names and not stops:
        return [sys.executable, "-P", "-c", "from proxy.cli import main; main()", *arguments]
    return [sys.executable, "-P", str(Path(__file__)), ",".join(names), stops, *arguments]


def code_for(module: str, names: Sequence[str]) -> list[str]:
    """What is run in a process of a module before it begins; each piece by itself."""
    rows = {**WEAKENINGS, **ATTACKS}
    return [rows[name][module] for name in names if module in rows[name]]


def apply(names: Sequence[str]) -> None:
    """Take the defences out of this process, and of those that it will start."""
    from proxy import sandbox

    python_command = sandbox.python_command

    def weak_command(module: str, *arguments: str, bare: bool = False) -> list[str]:
        told = python_command(module, *arguments, bare=bare)
        at = told.index("-c") + 1
        before, after = told[at].split("from proxy.", 1)
        weaken = f"[exec(code, {{}}) for code in {code_for(module, names)!r}]"
        told[at] = f"{before}{weaken}; from proxy.{after}"
        return told

    sandbox.python_command = weak_command
    for code in code_for("cli", names):
        exec(code, {})


def main() -> None:
    """Run a zonegate command without some defences: `weakened.py NAME,NAME STOPS COMMAND ...`."""
    names, stops = list(filter(None, sys.argv.pop(1).split(","))), sys.argv.pop(1)
    apply(names)
    if stops:
        text = (Path(__file__).parent / "stepping.py").read_text()
        there: dict[str, Any] = {}
        exec(text, there)
        there["apply"](text, stops, sys.argv[1])
    from proxy.cli import main as zonegate

    zonegate()


if __name__ == "__main__":
    main()
