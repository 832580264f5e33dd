"""gRPC of every kind, by the library that programs use.

`grpc_echo.py PACKAGES ask TARGET` makes calls, and says what came of them as JSON.
`grpc_echo.py PACKAGES serve ADDRESS CERTIFICATE KEY LOG` answers them, and writes each one down.
PACKAGES is where the library lies: a bubble has the interpreter of the tests and not its packages.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

import grpc

LIMIT_S = 60.0
MIB = 1 << 20
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


# -- the server --------------------------------------------------------------------------------------


def serve(address: str, certificate: str, key: str, log: str) -> None:
    """Serve until ended; says so once it listens."""
    handlers: dict[str, Callable[..., Any]] = {
        "unary_unary": _unary,
        "unary_stream": lambda message, _: (message + b" %d" % n for n in range(100)),
        "stream_unary": lambda messages, _: b",".join(messages),
        "stream_stream": lambda messages, _: (b"heard " + message for message in messages),
    }
    methods = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(of) for kind, of in handlers.items()}
    server = grpc.server(
        futures.ThreadPoolExecutor(8),
        handlers=[
            grpc.method_handlers_generic_handler("lab.Echo", {**methods, "Delete": methods["unary_unary"]})
        ],
        interceptors=[_Log(Path(log))],
    )
    pair = Path(key).read_bytes(), Path(certificate).read_bytes()
    server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    server.start()
    print("ready", flush=True)
    threading.Event().wait()


class _Log(grpc.ServerInterceptor):  # type: ignore[misc]  # the library carries no types
    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)

    def intercept_service(self, continuation: Callable[[Any], Any], call: Any) -> Any:
        print(call.method, file=self._file)
        return continuation(call)


def _unary(message: bytes, context: Any) -> bytes:
    said = dict(context.invocation_metadata())
    if message == b"missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
    context.set_trailing_metadata((("x-said", said.get("x-say", "")), ("x-blob-bin", b"\x00\xff")))
    return message


# -- the client --------------------------------------------------------------------------------------


def ask(target: str) -> None:
    """Every kind of call, over one connection."""
    with grpc.secure_channel(target, grpc.ssl_channel_credentials()) as channel:
        calls = {kind: getattr(channel, kind)(f"/lab.Echo/{kind}") for kind in KINDS}
        answer, call = calls["unary_unary"].with_call(
            b"x" * MIB, timeout=LIMIT_S, metadata=(("x-say", "hello"),)
        )
        found: dict[str, object] = {
            "unary": len(answer),
            "trailers": {name: str(value) for name, value in call.trailing_metadata()},
            "missing": _refused(calls["unary_unary"], b"missing"),
            "served": sum(1 for _ in calls["unary_stream"](b"number", timeout=LIMIT_S)),
            "sent": calls["stream_unary"](iter([b"a", b"b", b"c"]), timeout=LIMIT_S).decode(),
            "both": _both(calls["stream_stream"]),
            "delete": _refused(channel.unary_unary("/lab.Echo/Delete"), b"all"),
        }
        beside = [calls["unary_unary"].future(b"%d" % n, timeout=LIMIT_S) for n in range(20)]
        found["beside"] = sorted(int(one.result()) for one in beside) == list(range(20))
    print(json.dumps(found))


def _both(call: Callable[..., Iterator[bytes]]) -> list[str]:
    """A conversation: nothing is said before the answer to the last thing was heard."""
    heard: list[str] = []
    answered = threading.Semaphore(1)

    def say() -> Iterator[bytes]:
        for word in (b"one", b"two", b"three"):
            answered.acquire(timeout=LIMIT_S)
            yield word

    for message in call(say(), timeout=LIMIT_S):
        heard.append(message.decode())
        answered.release()
    return heard


def _refused(call: Callable[..., bytes], message: bytes) -> str:
    try:
        return "answered " + repr(call(message, timeout=LIMIT_S))
    except grpc.RpcError as error:
        return f"{error.code().name}"


if __name__ == "__main__":
    if sys.argv[2] == "serve":
        serve(*sys.argv[3:])
    else:
        ask(sys.argv[3])
