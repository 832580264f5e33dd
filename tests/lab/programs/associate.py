"""UDP through SOCKS5 as programs use it: `associate.py WHAT PROXY_PORT LOGIN PASSWORD HOST PORT`.

Says what came back, in lines. Standard library only.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import sys
import time
from dataclasses import dataclass

LIMIT_S, TURN_S = 20.0, 0.3


class Refused(Exception):
    """It may not associate; the code."""


def packed(host: str, port: str) -> bytes:
    """Where something is to go, as SOCKS5 writes it."""
    try:
        address = ipaddress.ip_address(host)
        kind, raw = (1 if address.version == 4 else 4), address.packed
    except ValueError:
        kind, raw = 3, bytes((len(host),)) + host.encode()
    return bytes((kind,)) + raw + int(port).to_bytes(2, "big")


@dataclass
class Association:
    """A client's connection, and its socket of datagrams."""

    connection: socket.socket
    sock: socket.socket
    header: bytes

    def ask(self, data: bytes) -> bool:
        """Send one and hear one; whether it was the right answer, under the right header."""
        self.sock.send(self.header + data)
        return self.sock.recv(70_000) == self.header + data

    def ended(self) -> bool:
        """Whether its connection has ended."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self.sock.close()


def associate(port: str, login: str, password: str, host: str, to: str) -> Association:
    """Log in and associate. Raises Refused."""
    connection = socket.create_connection(("127.0.0.1", int(port)), LIMIT_S)
    connection.sendall(b"\5\1\2" + b"".join(
        (b"\1", bytes((len(login),)), login.encode(), bytes((len(password),)), password.encode())
    ))  # fmt: skip
    assert exactly(connection, 4) == b"\5\2\1\0"
    connection.sendall(b"\5\3\0\1" + bytes(6))
    answer = exactly(connection, 10)
    if answer[1]:
        connection.close()
        raise Refused(str(answer[1]))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(LIMIT_S)
    sock.connect((socket.inet_ntoa(answer[4:8]), int.from_bytes(answer[8:], "big")))
    return Association(connection, sock, b"\0\0\0" + packed(host, to))


def exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("it has ended")
        data += more
    return data


def ask(*arguments: str) -> str:
    """A few datagrams of all sizes, each answered."""
    try:
        there = associate(*arguments)
    except Refused as code:
        return f"refused {code}"
    return "answered" if all(there.ask(b"x" * size) for size in (1, 500, 1372, 9000)) else "another answer"


def for_ever(*arguments: str) -> str:
    """One association that goes on, and again when it has ended; a line for whatever happens."""
    while True:
        try:
            there = associate(*arguments)
            there.sock.settimeout(TURN_S)
            print("associated", flush=True)
            while not there.ended():
                try:
                    print("answered" if there.ask(b"x") else "another answer", flush=True)
                except (TimeoutError, ConnectionRefusedError):
                    print("silence", flush=True)
                time.sleep(0.02)
            there.close()
            print("ended", flush=True)
        except Refused as code:
            print(f"refused {code}", flush=True)
        except OSError as error:
            print(f"failed {error}", flush=True)
        time.sleep(0.05)


WHAT = {"ask": ask, "for-ever": for_ever}

if __name__ == "__main__":
    print(WHAT[sys.argv[1]](*sys.argv[2:]), flush=True)
