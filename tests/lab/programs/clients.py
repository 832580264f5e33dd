"""Ordinary clients, as programs write them: `clients.py WHAT HOST PORT`. Says what came back, one line."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

LIMIT_S = 60.0
AT_ONCE_S = 8.0  # waiting for what a client says, or for silence, takes longer
UPLOAD = b"".join(b"canary of the upload %010d\n" % line for line in range(1 << 18))


def by_urllib(url: str, ca: str = "") -> str:
    """urllib, with the site's CA for https."""
    context = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(url, timeout=LIMIT_S, context=context) as answer:
        return str(answer.read().decode().strip())


def by_http_client(host: str, port: str) -> str:
    """http.client, with a body to send."""
    connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT_S)
    body = b"upload" * 200_000
    connection.request("POST", "/upload", body)
    answer = connection.getresponse().read().decode()
    return "same" if answer == hashlib.sha256(body).hexdigest() else f"different: {answer}"


def banner(host: str, port: str) -> str:
    """A server that speaks first."""
    with socket.create_connection((host, int(port)), LIMIT_S) as sock, sock.makefile("rwb") as stream:
        first = stream.readline().decode().strip()
        stream.write(b"SSH-2.0-client\r\n")
        stream.flush()
        return first + " / " + stream.readline().decode().strip()


def half_closed(host: str, port: str) -> str:
    """Ends its own direction, and then hears the answer."""
    body = b"x" * 3_000_000
    with socket.create_connection((host, int(port)), LIMIT_S) as sock:
        sock.sendall(body)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    good = f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode()
    return "whole" if answer == good else f"wrong: {answer!r}"


def refused(host: str, port: str) -> str:
    """How soon and how a TCP connection ends that may not be: at the connect, or at the first byte."""
    began = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), LIMIT_S) as sock:
            sock.sendall(b"canary\n")
            end = sock.recv(100)
            how = f"answered {end!r}" if end else "closed"
    except OSError as error:
        how = type(error).__name__
    return f"{how} {'at once' if time.monotonic() - began < AT_ONCE_S else 'late'}"


def refused_datagram(host: str, port: str) -> str:
    """How a UDP datagram that goes nowhere is refused."""
    began = time.monotonic()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT_S)
        try:
            sock.connect((host, int(port)))
            sock.send(b"canary")
            sock.recv(100)
            how = "answered"
        except OSError as error:
            how = type(error).__name__
    return f"{how} {'at once' if time.monotonic() - began < AT_ONCE_S else 'late'}"


def hold(host: str, port: str) -> str:
    """Reads for ever from /drip and says every tenth of a second how much has come; then how it ended."""
    total, told = 0, time.monotonic()
    with socket.create_connection((host, int(port)), LIMIT_S) as sock:
        sock.sendall(f"GET /drip HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        try:
            while data := sock.recv(65536):
                total += len(data)
                if time.monotonic() - told > 0.1:
                    told = time.monotonic()
                    print(f"flowing {total}", flush=True)
            return f"ended after {total}"
        except OSError as error:
            return f"{type(error).__name__} after {total}"


def upload(host: str, port: str) -> str:
    """Sends 8 MiB, of which every line is known, and waits for an answer; how that ended."""
    with socket.create_connection((host, int(port)), LIMIT_S) as sock:
        sock.settimeout(None)
        try:
            sock.sendall(UPLOAD)
            return f"answered {sock.recv(100)!r}"
        except OSError as error:
            return f"ended by {type(error).__name__}"


def tell_for_ever(host: str, port: str) -> str:
    """Sends a line fifty times a second and says which was the last; then how it ended."""
    number = 0
    with socket.create_connection((host, int(port)), LIMIT_S) as sock:
        sock.settimeout(None)
        try:
            while True:
                sock.sendall(b"canary told %d\n" % number)
                print(f"told {number}", flush=True)
                number += 1
                time.sleep(0.02)
        except OSError as error:
            return f"ended by {type(error).__name__} after {number}"


def ask_for_ever(host: str, port: str) -> str:
    """Asks for a page ten times a second and says each status."""
    while True:
        try:
            connection = http.client.HTTPConnection(host, int(port), timeout=3)
            connection.request("GET", "/")
            answer = connection.getresponse()
            print(f"status {answer.status} {answer.getheader('Zonegate-Because') or ''}", flush=True)
            connection.close()
        except OSError as error:
            print(f"error {type(error).__name__}", flush=True)
        except http.client.HTTPException as error:
            print(f"error {type(error).__name__}", flush=True)
        time.sleep(0.1)


WHAT: dict[str, Callable[..., str]] = {
    "urllib": by_urllib,
    "http.client": by_http_client,
    "banner": banner,
    "half-closed": half_closed,
    "refused": refused,
    "refused-datagram": refused_datagram,
    "hold": hold,
    "ask": ask_for_ever,
    "tell": tell_for_ever,
    "upload": upload,
}

if __name__ == "__main__":
    print(WHAT[sys.argv[1]](*sys.argv[2:]), flush=True)
