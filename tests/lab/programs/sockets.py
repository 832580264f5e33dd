"""Connects to Unix sockets by path: `sockets.py PATH ...`. Says for each what came of it."""

from __future__ import annotations

import errno
import socket
import sys

if __name__ == "__main__":
    for path in sys.argv[1:]:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(path)
                said = "connected"
            except OSError as error:
                said = errno.errorcode.get(error.errno or 0, str(error))
        print(f"{path} {said}", flush=True)
