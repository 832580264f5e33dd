"""A hostile program: `bombs.py HOST COUNT`. Says how its connections fare.

They are requests with a chunk whose head has no end, a megabyte of each. One beside them, into which nobody
looks, has to live on.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys

LIMIT_S = 120.0
HEAD_BYTES = 1_000_000


def main(host: str, count: int) -> None:
    with socket.create_connection((host, 7001), LIMIT_S) as beside:
        print("beside", spoken(beside), flush=True)
        bombs = [socket.create_connection((host, 80), LIMIT_S) for _ in range(count)]
        waiting = selectors.DefaultSelector()
        left: dict[socket.socket, bytes] = {}
        for sock in bombs:
            sock.setblocking(False)
            start = f"DELETE /bomb HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n1;"
            left[sock] = start.encode() + b"a" * HEAD_BYTES
            waiting.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        heard = dict.fromkeys(bombs, b"")
        while waiting.get_map():
            for key, _ in waiting.select(1):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if not alive(one, left, heard):
                    waiting.unregister(one)
                elif not left[one]:
                    waiting.modify(one, selectors.EVENT_READ)
        refused = sum(b"nothing is deleted" in said for said in heard.values())
        print(f"ended {count}, answered by the gate {refused}", flush=True)
        print("beside", spoken(beside), flush=True)


def alive(sock: socket.socket, left: dict[socket.socket, bytes], heard: dict[socket.socket, bytes]) -> bool:
    try:
        with contextlib.suppress(BlockingIOError):
            left[sock] = left[sock][sock.send(left[sock]) if left[sock] else 0 :]
        with contextlib.suppress(BlockingIOError):
            if not (said := sock.recv(65536)):
                return False
            heard[sock] += said
    except OSError:
        return False
    return True


def spoken(sock: socket.socket) -> str:
    """What an echo says."""
    try:
        sock.sendall(b"hello")
        return sock.recv(99).decode()
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
