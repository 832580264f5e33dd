"""Runs inside processes of the product: stops one at a step of its start, says so, and waits for the word.

A step is what others could see of a process that starts, or would see half done: a program that it starts or
becomes, a fork, a namespace made or entered, a socket bound or connected, a file written or taken away, a
message sent or heard. They are counted as they happen, so a step is the same one each time, whatever else the
machine does. `weakened` has this file executed in each process before its own `main`; nothing imports it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

GO_ON = signal.SIGRTMIN + 5
MOST = 1000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = frozenset((
    "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "socket.bind", "socket.connect", "os.mkdir",
    "os.rename", "os.remove", "open",
))  # fmt: skip
_NOBODYS = ("__pycache__", "/dev/null")


class Stepping:
    """Counts the steps of this process; stops at one of them, or at each."""

    def __init__(self, name: str, at: int) -> None:
        self._name, self._at, self._count, self._pid = name, at, 0, os.getpid()
        self._busy = False

    def step(self, what: str) -> None:
        """One more step is about to be taken. Forked children of this process are not meant."""
        if self._busy or os.getpid() != self._pid:
            return
        self._count += 1
        if self._count == self._at:
            self._busy = True
            os.write(2, f"~step {self._name} {self._count} {self._pid} {what}\n".encode())
            signal.sigwait({GO_ON})

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What the interpreter itself tells of (PEP 578)."""
        if event in _EVENTS and (event != "open" or _is_written(*arguments)):
            what = " ".join([event, *map(str, arguments[:1])])
            if not any(word in what for word in _NOBODYS):
                self.step(what[:100])

    def before[**P, R](self, what: str, call: Callable[P, R]) -> Callable[P, R]:
        """`call`, which is a step."""

        def stepped(*arguments: P.args, **more: P.kwargs) -> R:
            self.step(what)
            return call(*arguments, **more)

        return stepped

    def after[**P, R](self, what: str, call: Callable[P, R]) -> Callable[P, R]:
        """`call`, whose result is a step."""

        def stepped(*arguments: P.args, **more: P.kwargs) -> R:
            result = call(*arguments, **more)
            self.step(what)
            return result

        return stepped


def _is_written(path: object, _mode: object, flags: object) -> bool:
    return isinstance(path, str) and isinstance(flags, int) and bool(flags & _WRITES)


def arm(name: str, at: int) -> None:
    """Have this process stop at its step `at`."""
    from proxy import ipc

    signal.pthread_sigmask(signal.SIG_BLOCK, {GO_ON})
    stepping = Stepping(name, at)
    os.unshare = stepping.before("unshare", os.unshare)
    os.setns = stepping.before("setns", os.setns)
    os.kill = stepping.before("kill", os.kill)
    ipc.transmit = stepping.before("send", ipc.transmit)
    ipc.receive = stepping.after("hear", ipc.receive)
    sys.addaudithook(stepping.audit)


def arm_child_of_fork(name: str, at: int) -> None:
    """Have the first child that this process forks stop at its step `at`."""
    armed = False

    def in_child() -> None:
        nonlocal armed
        if not armed:
            armed = True
            arm(name, at)

    os.register_at_fork(after_in_child=in_child)


def number_starts(module: str, steps: Sequence[int], code: Callable[[int], str]) -> None:
    """Have the first process of `module` that this one starts run `code` of the first step, and so on."""
    from proxy import sandbox

    python_command, left, meant = sandbox.python_command, iter(steps), module

    def numbered(module: str, *arguments: str, bare: bool = False) -> list[str]:
        told = python_command(module, *arguments, bare=bare)
        if module == meant and (step := next(left, 0)):
            at = told.index("-c") + 1
            before, mark, after = told[at].rpartition("from proxy.")
            told[at] = f"{before}exec({code(step)!r}); {mark}{after}"
        return told

    sandbox.python_command = numbered


# What the product waits after a process of its own has ended: module, name, and seconds here. And how long it
# waits for one that starts: who stands at a step is not to be taken for one that hangs.
_PAUSES = {
    "up": (
        ("manning", "WORKER_PAUSE_MOST_S", 0.1),
        ("inspectors", "PAUSE_S", 0.1),
        ("crew", "READY_LIMIT_S", 600.0),
        ("inspectors", "SILENCE_LIMIT_S", 600.0),
        ("doors", "DOOR_LIMIT_S", 600.0),
    ),
    "run": (("run", "DENIED_PAUSE_S", 0.2),),
    "wireguard": (("wireguard", "STAY_S", 0.2),),
}


def hurry(command: str) -> None:
    """Shorten the pauses of this process, whose processes end by the dozen, and lengthen its limits."""
    for module, name, pause_s in _PAUSES.get(command, ()):
        imported = importlib.import_module(f"proxy.{module}")
        assert hasattr(imported, name), f"proxy.{module} has no {name} any more"
        setattr(imported, name, pause_s)


def apply(text: str, stops: str, command: str) -> None:
    """Arm what `stops` names, where `text` is that of this file: "NAME:STEP,STEP ..."; without steps, each.

    The Nth process of a name stops at the Nth of its steps. `supervisor`, and `run` with its child `inner`,
    are this very process, where that is what `command` starts.
    """
    hurry(command)
    for stop in stops.split():
        name, _, listed = stop.partition(":")
        steps = [int(step) for step in listed.split(",")] if listed else list(range(1, MOST))

        def code(step: int, name: str = name) -> str:
            return f"{text}\narm({name!r}, {step})\n"

        match name:
            case "supervisor" if command == "up":
                arm(name, steps[0])
            case "run" if command == "run":
                arm(name, steps[0])
            case "inner" if command == "run":
                arm_child_of_fork(name, steps[0])
            case "packet_holder":  # which its outer holder starts, once

                def inner_code(step: int, code: Callable[[int], str] = code) -> str:
                    then = f"number_starts('packet_holder', [{step}], lambda step: {code(step)!r})"
                    return f"{text}\nhurry('wireguard')\n{then}\n"

                number_starts("wireguard", steps, inner_code)
            case _:
                number_starts(name, steps, code)
