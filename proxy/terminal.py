"""The terminal between a person and a bubble: a pty of its own, raw on this side, resized as it is.

The bubble never holds the person's terminal (TIOCSTI would type into the outer shell), nor a socket that
happens to be standard input. Files and pipes are the caller's gift and go through as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import stat
import termios
import tty
from collections.abc import Iterator

CHUNK = 65536


class Stdio:
    """Standard input, output and error as a bubble gets them, and the bytes pumped between.

    `inner` are the three descriptors for the program; `controlling` is the slave of the pty, or None.
    """

    def __init__(self) -> None:
        self.controlling: int | None = None
        self._master: int | None = None
        self._ours: list[int] = []
        self._pumps: dict[int, int] = {}  # from -> to
        self._raw: list[object] | None = None
        self.inner = [self._inner(fd) for fd in range(3)]

    def _inner(self, fd: int) -> int:
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            return self._own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        if os.isatty(fd):
            return self._pty(fd)
        if stat.S_ISSOCK(mode):
            read, write = (self._own(end) for end in os.pipe2(os.O_CLOEXEC))
            self._pumps[fd if fd == 0 else read] = write if fd == 0 else fd
            return read if fd == 0 else write
        return fd

    def _pty(self, fd: int) -> int:
        if self.controlling is None:
            master, slave = os.openpty()
            self._master, self.controlling = self._own(master), self._own(slave)
            termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(fd))
            self._size_from = fd
            self.resize()
        assert self._master is not None
        if fd == 0:
            self._pumps[0] = self._master
        else:
            self._pumps[self._master] = fd
        return self.controlling

    def _own(self, fd: int) -> int:
        self._ours.append(fd)
        return fd

    def resize(self) -> None:
        """Give the pty the size of the person's terminal."""
        if self._master is not None:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(self._size_from, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """The person's terminal in raw mode, so that every key is the program's."""
        if 0 not in self._pumps or not os.isatty(0):
            yield
            return
        before = termios.tcgetattr(0)
        tty.setraw(0)
        try:
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def started(self) -> None:
        """Close the program's ends here, after it has them."""
        for fd in set(self.inner) - {0, 1, 2}:
            self._ours.remove(fd)
            os.close(fd)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Watch what must be pumped."""
        for source in self._pumps:
            selector.register(source, selectors.EVENT_READ, self)

    def pump(self, source: int, selector: selectors.BaseSelector) -> None:
        """Move what `source` has; at its end, pass the end on."""
        target = self._pumps[source]
        try:
            data = os.read(source, CHUNK)
            while data:
                data = data[os.write(target, data) :]
                if not data:
                    return
        except OSError:
            pass  # EIO: the last program has left the pty
        selector.unregister(source)
        del self._pumps[source]
        if source == 0 and target != self._master and target in self._ours:
            self._ours.remove(target)
            os.close(target)

    def drain(self) -> None:
        """After the program's end: what it wrote last."""
        with selectors.SelectSelector() as selector:
            for source in [source for source in self._pumps if source != 0]:
                selector.register(source, selectors.EVENT_READ)
            while selector.get_map() and (ready := selector.select(0)):
                for key, _ in ready:
                    self.pump(key.fd, selector)

    def close(self) -> None:
        """Close everything that was opened here."""
        while self._ours:
            os.close(self._ours.pop())
