"""Bytes moved from one descriptor to another, without waiting: files, pipes, terminals and sockets.

Knows no bubble and no terminal's modes. Whoever has the loop asks what a pump waits for, and lets it advance.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import selectors
import socket
import stat
import termios

CHUNK = 65536


class End:
    """A descriptor of our own that bytes come from or go to. A file is always ready, and epoll takes none."""

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self.fd = fd
        self.is_file = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self._sock = socket.socket(fileno=fd) if stat.S_ISSOCK(mode) else None

    def read(self) -> bytes:
        return self._sock.recv(CHUNK, socket.MSG_DONTWAIT) if self._sock else os.read(self.fd, CHUNK)

    def write(self, data: bytes) -> int:
        """How much was taken; a file takes all of it, or raises OSError."""
        if self._sock:
            return self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        written = os.write(self.fd, data)
        while self.is_file and written < len(data):
            written += os.write(self.fd, data[written:])
        return written

    def close(self) -> None:
        if self._sock:
            self._sock.close()
        else:
            os.close(self.fd)


class Pump:
    """Bytes from one end to another. What the target does not take yet is kept, and no more is read."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = End(source), End(target)
        self.pending = b""
        self.paused = self._at_end = False

    def awaited(self) -> tuple[int, int] | None:
        """The descriptor and the event that it waits for; None for the end of all."""
        if self.pending:
            return self.target.fd, selectors.EVENT_WRITE
        if self._at_end:
            return None
        if self.source.is_file:
            return self.target.fd, selectors.EVENT_WRITE
        return self.source.fd, selectors.EVENT_READ

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


class FileInput:
    """A file that is read ahead of a program, by a pump into a pipe of which `pipe` is a reading end.

    What the program has not taken in the end is put back: the file's offset is the caller's too.
    """

    def __init__(self, file: int, pump: Pump, pipe: int) -> None:
        self._file, self._pump, self._pipe = file, pump, pipe

    def put_back(self) -> None:
        """Set the file's offset behind what the program took."""
        left = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._pipe, termios.FIONREAD, left)
            os.lseek(self._file, -left[0] - len(self._pump.pending), os.SEEK_CUR)

    def close(self) -> None:
        os.close(self._pipe)
