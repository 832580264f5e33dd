"""The inner holder of a packet tunnel: stands in the tunnel's namespace, probes, and connects sockets there.

A socket that is made here can leave through the tunnel only, whoever holds it. It decides nothing: it says
when the peer's side answered, and connects what a worker asks for. It reads and sends no byte of a flow; it
knows no zone, no policy and no key. Standard library only. Argument: the descriptor of its link to the outer
holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence

from proxy import holder_process, ipc, prctl, tunnel_namespace
from proxy.link import Link
from proxy.messages.holding import Serve
from proxy.messages.packets import (
    TO_INNER,
    Begin,
    Connect,
    Connected,
    DeviceIsThere,
    Failed,
    Made,
    Probed,
    ToInner,
)
from proxy.namespaces import NamespaceError
from proxy.probing import Prober, ask_for_ever
from proxy.tunnel_namespace import Device

LAST_WORD_S = 0.5


def main(arguments: Sequence[str]) -> None:
    """Serve until the outer holder's end of the link is gone. Does not return."""
    holder_process.serve(arguments[0], _begin)


def _begin(sock: socket.socket) -> None:
    begin, _ = ipc.receive(sock, [Begin])
    try:
        _serve(sock, begin)
    except (NamespaceError, OSError) as error:
        with contextlib.suppress(ipc.LinkBroken):
            sock.setblocking(True)
            ipc.send(sock, Failed(f"the tunnel's namespace cannot be made: {error}"))


def _serve(sock: socket.socket, begin: Begin) -> None:
    """Everything that needs a privilege first; then what is heard from the other side of the tunnel."""
    packets = begin.tunnel.packets
    assert packets is not None
    is_host_root = os.geteuid() == 0
    made = tunnel_namespace.make(begin.device)
    ipc.send(sock, Made(), made)
    ipc.close_all(made)
    ipc.receive(sock, [DeviceIsThere])
    device = Device(begin.device)
    tunnel_namespace.address(begin.device, packets)
    prober = Prober(packets.probe)
    if is_host_root and begin.drop_to_uid:
        os.setgroups([])
        os.setgid(begin.drop_to_uid)
        os.setuid(begin.drop_to_uid)
    prctl.give_up_capabilities()
    prctl.no_core_dump()
    asyncio.Runner().run(_hold(sock, begin, device, prober))


async def _hold(sock: socket.socket, begin: Begin, device: Device, prober: Prober) -> None:
    outer: Link[ToInner] = Link(sock, TO_INNER)

    def look() -> None:
        if trouble := device.gone():
            outer.send(Failed(trouble))
            loop.remove_reader(device.sock)
            loop.call_later(LAST_WORD_S, outer.close)  # it is heard before the end of the link is

    loop = asyncio.get_running_loop()
    loop.add_reader(device.sock, look)
    look()  # it may have gone before anybody listened
    asking = ask_for_ever(
        prober,
        begin.probe_every_ms / 1000,
        begin.probe_limit_ms / 1000,
        lambda answered_ns, words: outer.send(Probed(answered_ns, words)),
    )
    probing = asyncio.create_task(asking)
    probing.add_done_callback(lambda _: outer.close())  # a holder that does not probe is none
    tasks = {probing}
    try:
        while True:
            message, fds = await outer.receive()
            if not isinstance(message, Serve):
                raise ipc.LinkBroken("a holder holds one tunnel")
            worker: Link[Connect] = Link(socket.socket(fileno=fds[0]), [Connect])
            task = asyncio.create_task(serve(worker))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        if probing.done() and not probing.cancelled():
            probing.result()


async def serve(worker: Link[Connect]) -> None:
    """Answer one worker, until it is gone, with sockets that wait for nobody here."""

    def connect(wanted: Connect, _: list[int]) -> None:
        try:
            sock = tunnel_namespace.connecting(wanted.transport, wanted.address, wanted.port)
        except OSError as error:
            worker.send(Connected(wanted.number, error.strerror or str(error)))
        except (ValueError, KeyError, OverflowError):
            worker.send(Connected(wanted.number, "no tunnel leads there"))
        else:
            with sock:
                worker.send(Connected(wanted.number, ""), [sock.fileno()])

    with contextlib.suppress(ipc.LinkBroken):
        await worker.hear(connect)
    worker.close()
