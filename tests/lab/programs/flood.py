"""Opens many connections and leaves them: `flood.py HOST PORT COUNT`. Says how many there are, and waits."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import sys
import time

if __name__ == "__main__":
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    kept: list[socket.socket] = []
    waiting = selectors.DefaultSelector()
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        kept.append(sock)
        waiting.register(sock, selectors.EVENT_WRITE)
    until = time.monotonic() + 60
    opened = 0
    while waiting.get_map() and time.monotonic() < until:
        for key, _ in waiting.select(1):
            waiting.unregister(key.fileobj)
            opened += 1
    print(f"opened {opened}", flush=True)
    sys.stdin.read()
