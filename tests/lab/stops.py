"""Processes that stop at a step of their start (see stepping), as a test hears of them; who tries then."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from lab import kernel
from lab.gate import Gate, python, started
from lab.opening import opened
from lab.packet_peer import Wires
from lab.stepping import GO_ON
from lab.wire import Wire
from lab.world import INTRANET, PUBLIC, PUBLIC6

NAME = "intranet.corp.example"
NOBODY = "nobody:"  # stops nobody, and has no long pauses (see stepping)
STRAY = 2  # answers that had come before somebody was killed, and are told after it


@dataclass(frozen=True, slots=True)
class Stop:
    """A process that stands at a step of its start."""

    name: str
    step: int
    pid: int
    what: str

    def let_go(self) -> None:
        """Have it take the step."""
        kernel.signal_all([self.pid], GO_ON)


class Stops:
    """Those that a text tells of which grows, in their order; not those of before."""

    def __init__(self, text: Callable[[], str], gate: Gate) -> None:
        self._text, self._gate = text, gate
        self._seen = len(self._told())

    def _told(self) -> list[str]:
        return [line for line in self._text().split("\n")[:-1] if line.startswith("~step ")]

    def again(self) -> None:
        """Those of before as well."""
        self._seen = 0

    def look(self) -> Stop | None:
        """The next one, if there is one."""
        told = self._told()
        if len(told) == self._seen:
            return None
        _, name, step, pid, what = told[self._seen].split(" ", 4)
        self._seen += 1
        # Of a sealed process, which is number 1 where it stands, there is one at a time.
        return Stop(name, int(step), int(pid) if pid != "1" else self._gate.child(name), what)


class Scene:
    """A gate that is started again while a program in a bubble of before and one of the host try every 10 ms.

    `asking` is a second program of before; it is to be served in the end.
    """

    def __init__(self, gate: Gate, wires: Wires) -> None:
        self.gate, self.wires, self._undo = gate, wires, ExitStack()
        self._undo.callback(gate.end, signal.SIGKILL)
        gate.attested()
        self.trying = gate.bubble(*python("canary", "steady", PUBLIC, PUBLIC6))
        self.asking = gate.bubble(*python("clients", "ask", NAME, "80"))
        self._outside = started(gate, gate.host.place, python("canary", "from-outside", INTRANET))
        self._undo.callback(self._outside.end)
        self._way_out: Wire | None = None
        self.asking.says("status 200")
        self.trying.says("tried")

    def __enter__(self) -> Scene:
        if "linkless" in self.gate.settings.without:
            self.open()
        self.wires.seen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def open(self) -> None:
        """The control: the program in the bubble has a way out."""
        self._way_out = self._undo.enter_context(opened(self.trying))

    def kill_daemon(self) -> None:
        """End the daemon as it is; what it had started ends by itself, the bubbles stay."""
        below = kernel.descendants(self.gate.pid)
        self.gate.kill()
        kernel.until("its processes end", lambda: not any(map(kernel.is_alive, below)))
        kernel.until("its device goes", lambda: not self._devices_left())

    def _devices_left(self) -> list[str]:
        with kernel.inside(self.gate.host.world.device):
            return [name for _, name in socket.if_nameindex() if name.startswith("zg")]

    def start_with(self, stops: str) -> Stops:
        """Start the daemon, whose processes stop there."""
        self.gate.settings = replace(self.gate.settings, stops=stops)
        found = Stops(self.gate.said, self.gate)
        self.gate.launch()
        return found

    def next_stop(self, stops: Stops) -> Stop:
        """The next process that stands at a step."""
        found = kernel.until("a process stands at a step", stops.look)
        assert found is not None
        return found

    def stop_or_served(self, stops: Stops) -> Stop | None:
        """The next process that stands at a step; None where the asking program is served before."""
        self.asking.lines()
        at = len(self.asking.heard)

        def look() -> Stop | bool | None:
            served = [line for line in self.asking.lines()[at:] if "status 200" in line]
            return stops.look() or len(served) > STRAY

        found = kernel.until("a process stands at a step, or all is served", look)
        return found if isinstance(found, Stop) else None

    def denied(self) -> None:
        """The asking program is refused, or hears nothing, once after this call."""
        self.asking.lines()
        at = len(self.asking.heard)

        def look() -> bool:
            return any("status 200" not in line for line in self.asking.lines()[at:])

        kernel.until("the program of before is refused", look)

    def probed(self) -> None:
        """Both have tried again since this call."""
        for one in (self.trying, self._outside):
            one.lines()
            one.says("tried")
        assert " sent 0" in self._outside.heard[-1], self._outside.heard[-1]

    def quiet(self, when: object) -> None:
        """Nothing but the tunnel's own was seen since the last look."""
        seen = self.wires.seen() + [str(frame) for frame in (self._way_out.seen() if self._way_out else ())]
        assert not seen, f"{when}: {seen[:10]}"

    def served(self, stops: Stops | None = None) -> None:
        """In the end all is as it was: the program of before is served. Who stops only now is let go."""
        self.asking.lines()
        at = len(self.asking.heard)

        def look() -> bool:
            if stops is not None and (late := stops.look()):
                late.let_go()
            served = [line for line in self.asking.lines()[at:] if "status 200" in line]
            return len(served) > STRAY

        try:
            kernel.until("the program of before is served", look)
        except kernel.NotSeen as error:
            said = self.asking.heard[-3:], self.asking.complained()[-500:], self.gate.said()[-2000:]
            raise kernel.NotSeen(f"{error}: {said}") from None
        assert self.trying.process.poll() is None and self.asking.process.poll() is None
        self.probed()
        self.quiet("in the end")


def killed_in_setup(gate: Gate) -> int:
    """Kill the daemon of a gate with `held-setup` while bubblewrap's child waits for its word; that child."""

    def held() -> tuple[int, int] | None:
        above = kernel.parents()
        mine = filter(kernel.waits, kernel.descendants(gate.pid))
        waiting = [pid for pid in mine if kernel.command_of(pid).startswith("bwrap --info-fd 98")]
        return next(((pid, above[pid]) for pid in waiting if above.get(pid) in waiting), None)

    child, leader = kernel.until("bubblewrap and its child wait", held) or (0, 0)
    gate.kill()
    kernel.until("bubblewrap ends", lambda: not kernel.is_alive(leader))
    return child
