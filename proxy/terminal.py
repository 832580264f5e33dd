"""The terminal between a person and a bubble: a pty of its own, raw on this side, resized as it is.

The bubble never holds the person's terminal (TIOCSTI would type into the outer shell), nor a socket that
happens to be standard input. Files and pipes are the caller's gift and go through as they are. Nothing
here blocks: a program that reads nothing, or a terminal that is paused, holds up neither signals nor the
daemon's word.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import stat
import termios
import tty
from typing import Any

CHUNK = 65536


class _End:
    """A descriptor of our own that bytes come from or go to, without waiting."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._sock = socket.socket(fileno=fd) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None

    def read(self) -> bytes:
        return self._sock.recv(CHUNK, socket.MSG_DONTWAIT) if self._sock else os.read(self.fd, CHUNK)

    def write(self, data: bytes) -> int:
        if self._sock:
            return self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self.fd, data)

    def close(self) -> None:
        if self._sock:
            self._sock.close()
        else:
            os.close(self.fd)


class _Pump:
    """Bytes from one end to another. What the target does not take yet is kept, and no more is read."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = _End(source), _End(target)
        self.pending = b""
        self.paused = self._at_end = False

    def awaited(self) -> tuple[int, int] | None:
        """The descriptor and the event that it waits for; None for the end of all."""
        if self.pending:
            return self.target.fd, selectors.EVENT_WRITE
        return None if self._at_end else (self.source.fd, selectors.EVENT_READ)

    def advance(self) -> bool:
        """Move what can be moved now; whether anything was. OSError when the target takes no more."""
        moved = False
        if not self.pending:
            try:
                self.pending = self.source.read()
            except BlockingIOError:
                return False
            except OSError:
                pass  # EIO: the last program has left the pty, or the terminal is gone
            self._at_end = not self.pending
            moved = True
        if self.pending:
            with contextlib.suppress(BlockingIOError):
                self.pending = self.pending[self.target.write(self.pending) :]
                moved = True
        return moved

    def close(self) -> None:
        self.source.close()
        self.target.close()


class Stdio:
    """Standard input, output and error as a bubble gets them, and the bytes pumped between.

    `inner` are the three descriptors for the program; `controlling` is the slave of the pty, or None.
    """

    def __init__(self) -> None:
        self.controlling: int | None = None
        self._master: int | None = None
        self._size_from = 0
        self._lent: list[int] = []  # the program's ends, ours until it has them
        self._input: _Pump | None = None  # the keys
        self._output: _Pump | None = None  # the screen
        self._pumps: dict[_Pump, tuple[int, int] | None] = {}
        self._selector: selectors.EpollSelector | None = None
        self._before: list[Any] | None = None
        self.inner = [self._inner(fd) for fd in range(3)]
        self._connect_terminal()

    def _inner(self, fd: int) -> int:
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            return self._lend(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        if os.isatty(fd):
            return self._slave(fd)
        if stat.S_ISSOCK(mode):
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(write if fd == 0 else read, False)
            self._add(_Pump(os.dup(0), write) if fd == 0 else _Pump(read, os.dup(fd)))
            return self._lend(read if fd == 0 else write)
        return fd

    def _lend(self, fd: int) -> int:
        self._lent.append(fd)
        return fd

    def _add(self, pump: _Pump) -> _Pump:
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
        self._output = self._add(_Pump(self._master, _reopened(terminals[0])))
        if 0 in terminals:
            self._input = self._add(_Pump(_reopened(0), os.dup(self._master)))
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
        self._pumps.clear()

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
        if self._input is not None:
            self._end(self._input)
        for pump in list(self._pumps):
            while pump in self._pumps and self._advance(pump):
                pass
        return any(pump.pending for pump in self._pumps)

    def _advance(self, pump: _Pump) -> bool:
        try:
            moved = pump.advance()
        except OSError:
            self._end(pump)
            if pump is self._output and self._input is not None:
                self._end(self._input)  # with the last master closed, the program's terminal hangs up
            return False
        self._watch(pump)
        return moved

    def _watch(self, pump: _Pump) -> None:
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

    def _end(self, pump: _Pump) -> None:
        if pump in self._pumps:
            before = self._pumps.pop(pump)
            if before is not None and self._selector is not None:
                self._selector.unregister(before[0])
            pump.close()
        if pump is self._output:
            self._master = None

    def close(self) -> None:
        """Give the terminal back and close everything that was opened here."""
        self._give_terminal_back()
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


def _reopened(fd: int) -> int:
    """The same terminal, opened for us alone: O_NONBLOCK would be everybody's who shares `fd`."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # another user's, as after su: it may then block
        return os.dup(fd)
