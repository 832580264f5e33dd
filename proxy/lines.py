"""Files of whole lines: a line is in the file entirely, or its writer hears that it is not.

Used for what must be remembered before it is acted on (the names' journal, audit segments, their
manifest). Touches one descriptor that it is handed. Never knows what a line says.

Nothing is fsynced here: a line in the page cache outlives every process, SIGKILL included. Only the
machine's own crash loses it, and that also ends whatever was let through because of it.
"""

from __future__ import annotations

import errno
import os


class LineFile:
    """Appends to `fd`, which is O_APPEND, has one writer, and from then on belongs to this object.

    `size` is how much of the file is whole lines, when the caller knows that what lies behind is torn.
    """

    def __init__(self, fd: int, size: int | None = None) -> None:
        self._fd = fd
        found = os.fstat(fd).st_size
        self.size_bytes = found if size is None else size
        self._torn = self.size_bytes != found

    def append(self, line: bytes) -> None:
        """Write one line by one write(2); raises OSError, and then nothing of it stays in the file.

        A piece that could not be taken back at once is taken back before the next line, so that two
        records never run into each other.
        """
        self._mend()
        written = os.write(self._fd, line)
        if written != len(line):  # a disk that fills takes a part of the last write
            self._torn = True
            self._mend()
            raise OSError(errno.ENOSPC, "only a part could be written")
        self.size_bytes += written

    def sync(self) -> None:
        """Wait until the lines are on the disk; raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _mend(self) -> None:
        if self._torn:
            os.ftruncate(self._fd, self.size_bytes)
            self._torn = False


def whole_lines(content: bytes) -> tuple[list[bytes], int]:
    """The complete lines of a file without their ends, and the bytes they take.

    What follows the last newline is a write that was cut short: nobody was told that it succeeded.
    """
    size = content.rfind(b"\n") + 1
    return (content[: size - 1].split(b"\n") if size else []), size
