"""The corporate end of the demonstration: a namespace of its own with an intranet site and the gateway.

The gateway's listening socket was opened outside, on the host's loopback, and handed in: that socket is
the only thing that the namespace shares with the machine. Standard library only until the gateway starts.
Arguments: the descriptor of the listening socket, gateway.yaml, and the gateway's command.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from proxy import namespaces, prctl

INTRANET = "10.20.0.80"
NAME = "intranet.corp.example"
PAGE = (
    "<!doctype html><title>Acme intranet</title><h1>Acme intranet</h1><p>You reached it through the tunnel.\n"
)
CHUNK, STREAM_PAUSE_S = b"." * 262_144, 0.02


class Site(BaseHTTPRequestHandler):
    """The intranet: a page, a slow download without end, and a fast one."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A page, /stream or /bytes."""
        if self.path in ("/stream", "/bytes"):
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            while True:
                self.wfile.write(CHUNK[: 4096 if self.path == "/stream" else None])
                time.sleep(STREAM_PAUSE_S if self.path == "/stream" else 0)
        content = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
        """The demonstration tells what is to be told."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was cut is what the demonstration is about."""


def serve_site(address: str) -> None:
    """Be the intranet, for ever."""
    _Server((address, 80), Site).serve_forever()


def main(arguments: Sequence[str]) -> None:
    """Make the namespace, serve the intranet in a child, become the gateway. Does not return."""
    listener, directory, *command = arguments
    parent = os.getppid()
    namespaces.enter_new(os.getuid(), os.getgid())
    prctl.die_with_parent(parent)
    setup = f"link set lo up\naddr add {INTRANET}/32 dev lo\n"
    subprocess.run(["ip", "-batch", "-"], input=setup, text=True, check=True, capture_output=True)
    gateway = os.getpid()
    if os.fork() == 0:
        prctl.die_with_parent(gateway)
        serve_site(INTRANET)
    os.dup2(int(listener), 3)
    os.chdir(Path(directory))
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(gateway), "PATH": os.environ.get("PATH", "")}
    os.execvpe(command[0], command, environment)
