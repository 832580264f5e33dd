"""One leak test: the controls, then every attempt at every place in every state that can be made from here.

Wires the other modules. States that would disturb others (a daemon that is stopped) are made only when that
was asked for; what was not tried is part of the result.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from proxy import ipc
from proxy.leaktest import attempts as table
from proxy.leaktest import ground, judge, places, states
from proxy.leaktest.attempts import Attempt, Control, Scope
from proxy.leaktest.capture import Capture, Sightings, Signs, packet_socket
from proxy.leaktest.judge import Judged, Try
from proxy.leaktest.places import Bubble, LeaktestError, Place
from proxy.messages.admin import Ask
from proxy.run import RunError

CONTROL_TRIES = 4
SETTLE_S = 0.3  # for a packet that was sent to be captured
LISTEN_ON = ("127.0.0.1", "::1")

# A state, what is done while a round goes on in it, and where it is tried.
type _State = tuple[str, Callable[[], None], Sequence[Place]]


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller asked for. `network` is a namespace (a descriptor) in place of a new bubble; `rows` of
    the table of threats are the only ones that are tried, if any are given."""

    zone: str
    sockets: Sequence[Path]
    disturb: bool = False
    network: int | None = None
    named: str = ""
    rows: tuple[str, ...] = ()


@dataclass(slots=True)
class Found:
    """The result of a test. `tunnels` is what the daemon said of each; `not_tried` are states and why."""

    zone: str
    tunnels: dict[str, str] = field(default_factory=dict)
    rounds: list[str] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    not_tried: dict[str, str] = field(default_factory=dict)
    captured: str = ""
    missed: int = 0


def test(request: Request, say: Callable[[str], None]) -> Found:
    """Make a test; `say` is told what is being done. LeaktestError, RunError when it cannot be made."""
    with ExitStack() as undo:
        return _Test(request, say, undo).run()


class _Test:
    """A test while it runs."""

    def __init__(self, request: Request, say: Callable[[str], None], undo: ExitStack) -> None:
        self._request, self._say, self._undo = request, say, undo
        self._found = Found(request.zone)
        self._status = states.say(request.sockets, Ask("status", "{}"))
        self._nonce = os.urandom(4).hex()
        self._tries: dict[int, list[Try]] = {}

    def run(self) -> Found:
        """From the controls to the judgement."""
        found = self._found
        self._prepare()
        controls = self._controls()
        with contextlib.closing(self._states()) as made:
            for state, during, where in made:
                self._say(f"{state}: {', '.join(place.name for place in where)}")
                self._round(state, during, where)
        self._look()
        found.judged = [
            judge.judge(one, controls[one.number], self._tries[one.number], captured=bool(found.captured))
            for one in self._attempts
            if one.number in self._tries
        ]
        return found

    # -- before ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Listeners, the table, then every process, and the threads last."""
        request, undo = self._request, self._undo
        own = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="zonegate-leaktest-")))
        hosts = (*LISTEN_ON, *ground.addresses())
        directories = (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"), Path.home(), _runtime())
        self._listeners = ground.Listeners(
            self._nonce, hosts, tuple(one for one in dict.fromkeys(directories) if os.access(one, os.W_OK))
        )
        undo.callback(self._listeners.close)
        self._bystander = places.Bystander(f"zgleak-{self._nonce}")
        undo.callback(self._bystander.close)
        every = table.attempts(self._ground())
        known = tuple(dict.fromkeys(one.row for one in every))
        if unknown := [row for row in request.rows if row not in known]:
            raise LeaktestError(f'no attempt is of row "{unknown[0]:.40}"; there are {", ".join(known)}')
        self._attempts = [one for one in every if one.row in (request.rows or known)]
        signs = Signs.of(table.prefix(self._nonce), [sign for one in self._attempts for sign in one.signs])
        self._listeners.signs = signs
        self._host = self._kept(places.host(self._listeners.inherited))
        self._open, watching = places.opened(ground.addresses())
        self._kept(self._open)
        self._bubble: Bubble | None = None
        if request.network is None:
            view = places.view_of(request.zone, Path.home(), own)
            self._bubble = Bubble(view, request.sockets)
            undo.callback(self._bubble.close)
            self._zone = self._kept(
                places.namespace("root of its network", self._bubble.net_fd, self._bubble.user_fd)
            )
        else:
            self._zone = self._kept(places.namespace(request.named, request.network))
        self._listeners.start()
        self._control_wire = Capture(watching, signs)
        undo.callback(self._control_wire.close)
        self._wire = self._host_wire(signs)

    def _kept(self, place: Place) -> Place:
        self._undo.callback(place.close)
        return place

    def _ground(self) -> ground.Ground:
        listeners = self._listeners
        gateways = [tunnel["gateway"].rpartition(":") for tunnel in self._status["tunnels"].values()]
        display = _runtime() / os.environ.get("WAYLAND_DISPLAY", "wayland-0")
        return ground.Ground(
            nonce=self._nonce,
            devices=tuple(name for _, name in socket.if_nameindex() if name != "lo"),
            addresses=ground.addresses(),
            routers=tuple(filter(ground.is_usable, ground.routers())),
            resolvers=tuple(filter(ground.is_usable, ground.resolvers())),
            gateways=tuple(
                one for host, _, port in gateways for one in ground.resolved(host.strip("[]"), int(port))
            ),
            listening=listeners.internet,
            unix_made=listeners.unix,
            unix_found=ground.unix_listeners(str(display), *listeners.unix),
            vsock_port=listeners.vsock,
            inherited=listeners.inherited,
            network=str(Path("/proc/self/ns/net").readlink()),
            daemon=ground.answering(self._request.sockets),
            process=(self._bystander.pid, self._bystander.name),
            memory_key=listeners.memory_key,
        )

    def _host_wire(self, signs: Signs) -> Capture | None:
        """All devices of the host, looked at; only root may."""
        try:
            sock = packet_socket()
        except PermissionError:
            self._found.not_tried["capture on the host's devices"] = "only root may look at them"
            return None
        capture = Capture(sock, signs)
        self._undo.callback(capture.close)
        self._found.captured = ", ".join(name for _, name in socket.if_nameindex())
        return capture

    # -- controls ----------------------------------------------------------------------------------

    def _controls(self) -> dict[int, Try]:
        """Each attempt where it must be seen. What was not is tried again: a link needs a moment."""
        self._say("controls: a namespace with a way out, the host")
        found: dict[int, Try] = {}
        left: Sequence[Attempt] = self._attempts
        for _ in range(CONTROL_TRIES):
            for place, control in ((self._open, Control.OPEN), (self._host, Control.HOST)):
                found |= self._control(place, [one for one in left if one.control is control])
            # What a machine may lack is not waited for.
            left = [one for one in left if not one.needs and not _is_seen(found[one.number])]
            if not left:
                break
        self._look_at_the_look()
        return found

    def _control(self, place: Place, wanted: Sequence[Attempt]) -> dict[int, Try]:
        place.begin(wanted)
        outcomes = place.result()
        where = self._control_wire.take(SETTLE_S).where if place is self._open else {}
        heard = self._listeners.take().where if place is self._host else {}
        return {
            one.number: Try(
                place.name,
                "control",
                outcomes[one.number],
                tuple(sorted(where.get(one.number, set()) | heard.get(one.number, set()))),
            )
            for one in wanted
        }

    def _look_at_the_look(self) -> None:
        """The capture on the host is a control's control: what the host itself sends must be seen."""
        self._listeners.take()
        if self._wire is None:
            return
        seen = self._wire.take(SETTLE_S).where
        sent = {one.number for one in self._attempts if one.control is Control.HOST and one.probe == "udp"}
        if sent and not sent & seen.keys():
            raise LeaktestError("what the host itself sent was not captured: the capture here shows nothing")

    # -- rounds ------------------------------------------------------------------------------------

    def _states(self) -> Generator[_State]:
        """Each state, once it is made; what is done while a round goes on; and where it is tried."""
        found = self._tunnel_states().values()
        present = " and ".join(dict.fromkeys(found)) or "no tunnel"
        bubble = self._bubble
        if "attested" not in found:
            self._found.not_tried["attested"] = "no tunnel of the zone is; see: zonegate status"
        if bubble is None:
            yield present, _nothing, [self._zone]
            self._found.not_tried["shut in, coming back"] = "somebody else holds that namespace"
            return
        both = [bubble.place, self._zone]
        yield present, _nothing, both
        bubble.shut_in()
        yield "without a daemon", _nothing, both
        yield "coming and going", lambda: _come_and_go(bubble), both
        yield from self._disturbed(bubble, both)
        bubble.come_back()
        with bubble.without_rules():
            yield "its rules flushed", _nothing, both

    def _disturbed(self, bubble: Bubble, both: Sequence[Place]) -> Iterator[_State]:
        """States that cut everybody's flows, each undone before the next."""
        sockets, zone = self._request.sockets, self._request.zone
        tunnels = [name for name in self._found.tunnels if not self._status["tunnels"][name].get("held")]
        states_of: dict[str, Callable[[socket.socket], AbstractContextManager[None]]] = {
            "stale: the daemon is stopped": states.stopped,
            "locked": lambda _: states.locked(sockets, zone, self._status["locks"]),
            "down: held by hand": lambda _: states.down(sockets, tunnels),
        }
        for state, make in states_of.items():
            if not self._request.disturb:
                self._found.not_tried[state] = "it would cut everybody's flows: --disturb"
                continue
            bubble.come_back()
            assert bubble.daemon.link is not None
            try:
                with make(bubble.daemon.link):
                    yield state, _nothing, both
            except states.NotHere as error:
                self._found.not_tried[state] = str(error)
            bubble.shut_in()

    def _tunnel_states(self) -> dict[str, str]:
        zone = self._status["zones"].get(self._request.zone, {"tunnels": ()})
        states = {name: self._status["tunnels"][name]["state"] for name in zone["tunnels"]}
        self._found.tunnels = states
        return states

    def _round(self, state: str, during: Callable[[], None], where: Sequence[Place]) -> None:
        for place in where:
            sandboxed = self._bubble is not None and place is self._bubble.place
            wanted = [one for one in self._attempts if sandboxed or one.scope is Scope.NETWORK]
            self._look()
            place.begin(wanted)
            during()
            outcomes = place.result()
            seen = self._look()
            self._found.rounds.append(f"{state}: {place.name}")
            for one in wanted:
                at = tuple(sorted(seen.where.get(one.number, ())))
                new = Try(place.name, state, outcomes[one.number], at)
                self._tries.setdefault(one.number, []).append(new)

    def _look(self) -> Sightings:
        """What was seen on the host since the last look."""
        seen = self._wire.take(SETTLE_S) if self._wire is not None else Sightings()
        if self._wire is None:
            time.sleep(SETTLE_S)
        for number, where in self._listeners.take().where.items():
            seen.where[number] |= where
        self._found.missed += seen.missed
        return seen


def _is_seen(control: Try) -> bool:
    return bool(control.seen_at) or control.outcome.startswith("reached")


def _nothing() -> None:
    return


def _come_and_go(bubble: Bubble) -> None:
    """A daemon that takes the bubble on, and is gone again, several times while a round goes on."""
    for _ in range(4):
        with contextlib.suppress(RunError, ipc.LinkBroken):
            bubble.come_back()
        bubble.shut_in()


def _runtime() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
