"""The terminal between a person and a bubble: a pty of its own, raw on this side, resized as it is.

The bubble never holds the person's terminal (TIOCSTI would type into the outer shell), nor a file or a
socket that is standard input or output, nor a pipe that is input: by /proc/self/fd a program could open it
anew, for writing, or change its mode, and the pipe may be what the outer shell reads its commands from.
Their bytes are pumped. Output to a pipe goes through as it is. Nothing here blocks, but for a file that
does: a program that reads nothing, or a terminal that is paused, holds up neither signals nor the daemon's
word.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import stat
import termios
import tty
from typing import Any

from proxy.pumps import FileInput, Pump

NAMES = ("standard input", "standard output", "standard error")
# Devices that a bubble has anyway: null, zero, full, random, urandom.
_HARMLESS = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))


class NotGiven(Exception):
    """A descriptor that no bubble may have; one line with the cure."""


class Stdio:
    """Standard input, output and error as a bubble gets them, and the bytes pumped between.

    `inner` are the three descriptors for the program; `controlling` is the slave of the pty, or None. Raises
    NotGiven.
    """

    def __init__(self) -> None:
        self.controlling: int | None = None
        self._master: int | None = None
        self._size_from = 0
        self._lent: list[int] = []  # the program's ends, ours until it has them
        self._sinks: dict[tuple[int, int, int], int] = {}  # what takes output of the bubble, by what it is
        self._sources: list[Pump] = []
        self._files: list[FileInput] = []
        self.trouble = ""  # why output that the program has written was lost
        self._input: Pump | None = None  # the keys
        self._output: Pump | None = None  # the screen
        self._pumps: dict[Pump, tuple[int, int] | None] = {}
        self._selector: selectors.EpollSelector | None = None
        self._before: list[Any] | None = None
        for fd, name in enumerate(NAMES):
            if words := _refusal(fd):
                raise NotGiven(f"{name} {words}")
        self.inner = [self._inner(fd) for fd in range(3)]
        self._connect_terminal()

    def _inner(self, fd: int) -> int:
        try:
            found = os.fstat(fd)
        except OSError:
            return self._lend(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        if os.isatty(fd):
            return self._slave(fd)
        if stat.S_ISCHR(found.st_mode) or (fd != 0 and stat.S_ISFIFO(found.st_mode)):
            return fd
        return self._source() if fd == 0 else self._sink(fd, found)

    def _source(self) -> int:
        """A pipe from which the program reads what comes by standard input."""
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write, False)
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
        pump = self._add(Pump(_reopened(0, os.O_RDONLY) if is_pipe else os.dup(0), write))
        self._sources.append(pump)
        if pump.source.is_file:
            self._files.append(FileInput(0, pump, os.dup(read)))
        return self._lend(read)

    def _sink(self, fd: int, found: os.stat_result) -> int:
        """A pipe into which the program writes; one for both where output and errors go to the same."""
        same = found.st_dev, found.st_ino, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if same not in self._sinks:
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            self._add(Pump(read, os.dup(fd)))
            self._sinks[same] = self._lend(write)
        return self._sinks[same]

    def _lend(self, fd: int) -> int:
        self._lent.append(fd)
        return fd

    def _add(self, pump: Pump) -> Pump:
        self._pumps[pump] = None
        return pump

    # -- the pty -----------------------------------------------------------------------------------

    def _slave(self, fd: int) -> int:
        if self.controlling is None:
            master, slave = os.openpty()
            os.set_blocking(master, False)
            self._master, self.controlling, self._size_from = master, self._lend(slave), fd
            if _in_foreground(fd):  # in the background its modes are the shell's own
                termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(fd))
            self.resize()
        return self.controlling

    def _connect_terminal(self) -> None:
        """The keys if they are ours to read; the screen wherever there is one, for /dev/tty has it too."""
        if self._master is None:
            return
        terminals = [fd for fd in (1, 2, 0) if self.inner[fd] == self.controlling]
        self._output = self._add(Pump(self._master, _reopened(terminals[0])))
        if 0 in terminals:
            self._input = self._add(Pump(_reopened(0), os.dup(self._master)))
            self._input.paused = True

    def resize(self) -> None:
        """Give the pty the size of the person's terminal."""
        if self._master is not None:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(self._size_from, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    @property
    def awaits_terminal(self) -> bool:
        """Whether the keys would be ours if this were the terminal's foreground job."""
        return self._input is not None and self._input.paused

    def take_terminal(self, *, resumed: bool = False) -> None:
        """As the foreground job: the terminal raw, so that every key is the program's. Else leave it alone.

        `resumed`: this process was stopped, and the shell has used the terminal since.
        """
        in_foreground = _in_foreground(0)
        if self._input is None or (self._input.paused != in_foreground and not resumed):
            return
        self._input.paused = not in_foreground
        if in_foreground:
            with contextlib.suppress(termios.error):
                self._before = self._before or termios.tcgetattr(0)
                raw = termios.tcgetattr(0)
                tty.cfmakeraw(raw)
                termios.tcsetattr(0, termios.TCSANOW, raw)
        self._watch(self._input)

    def _give_terminal_back(self) -> None:
        if self._before is not None and _in_foreground(0):
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._before)
        self._before = None

    # -- pumping -----------------------------------------------------------------------------------

    def keep_inner(self) -> None:
        """In the process that the program comes from: close what is not the program's.

        A copy of the writing end of its input would hide the input's end from it.
        """
        for pump in self._pumps:
            pump.close()
        for file in self._files:
            file.close()
        self._pumps.clear()
        self._files.clear()

    def started(self) -> None:
        """Close the program's ends here, after it has them, and begin to pump."""
        while self._lent:
            os.close(self._lent.pop())
        self._selector = selectors.EpollSelector()
        for pump in list(self._pumps):
            self._watch(pump)

    def fileno(self) -> int:
        """Readable when `pump` has something to do."""
        assert self._selector is not None
        return self._selector.fileno()

    def pump(self) -> None:
        """Move what can be moved now."""
        assert self._selector is not None
        for key, _ in self._selector.select(0):
            self._advance(key.data)

    def drain(self) -> bool:
        """After the program's end: move what it wrote last; whether some of it still waits to be taken.

        Each source is read, not asked: a pty hands on what was written a moment later, in a work queue, and
        epoll knows nothing of it until then; a read waits for that queue.
        """
        for pump in (self._input, *self._sources):
            if pump is not None:
                self._end(pump)
        for pump in list(self._pumps):
            while pump in self._pumps and self._advance(pump):
                pass
        return any(pump.pending for pump in self._pumps)

    def _advance(self, pump: Pump) -> bool:
        try:
            moved = pump.advance()
        except OSError as error:
            if pump.target.is_file:
                self.trouble = os.strerror(error.errno) if error.errno else str(error)
            self._end(pump)
            if pump is self._output and self._input is not None:
                self._end(self._input)  # with the last master closed, the program's terminal hangs up
            return False
        self._watch(pump)
        return moved

    def _watch(self, pump: Pump) -> None:
        """Wait for what the pump waits for."""
        if self._selector is None or pump not in self._pumps:
            return
        awaited, before = pump.awaited(), self._pumps[pump]
        if awaited is None:
            self._end(pump)
            return
        if pump.paused and awaited[1] == selectors.EVENT_READ:
            awaited = None
        if awaited != before:
            if before is not None:
                self._selector.unregister(before[0])
            if awaited is not None:
                self._selector.register(*awaited, pump)
            self._pumps[pump] = awaited

    def _end(self, pump: Pump) -> None:
        if pump in self._pumps:
            before = self._pumps.pop(pump)
            if before is not None and self._selector is not None:
                self._selector.unregister(before[0])
            pump.close()
        if pump is self._output:
            self._master = None

    def close(self) -> None:
        """Give the terminal back, and what was read ahead; close everything that was opened here."""
        self._give_terminal_back()
        while self._files:
            file = self._files.pop()
            file.put_back()
            file.close()
        for pump in list(self._pumps):
            self._end(pump)
        while self._lent:
            os.close(self._lent.pop())
        if self._selector is not None:
            self._selector.close()


def _in_foreground(fd: int) -> bool:
    """Whether the keys of this terminal are ours: so too where it is no terminal of our session."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


def _reopened(fd: int, access: int = os.O_RDWR) -> int:
    """The same terminal or pipe, opened for us alone: O_NONBLOCK would be everybody's who shares `fd`."""
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # another user's, as after su: it may then block
        return os.dup(fd)


def _refusal(fd: int) -> str:
    """Why a descriptor goes to no bubble, with the cure; "" where it may, or is closed."""
    try:
        found, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError:
        return ""
    if stat.S_ISDIR(found.st_mode):
        return "is a directory, from which a program reaches what it should not see; to give one: --share DIR"
    known = (stat.S_ISREG, stat.S_ISBLK, stat.S_ISFIFO, stat.S_ISSOCK)
    if os.isatty(fd) or found.st_rdev in _HARMLESS or any(is_one(found.st_mode) for is_one in known):
        return "is no open file but the name of one (O_PATH); open it" if flags & os.O_PATH else ""
    return "is a device that a bubble may not have; have cat read or write it, by a pipe"
