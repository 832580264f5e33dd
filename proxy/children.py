"""Starting the small processes and hearing of their end. The only place that spawns them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence

from proxy import ipc, sandbox, syscalls

ENVIRONMENT = {"PATH": sandbox.SYSTEM_PATH, "LC_ALL": "C.UTF-8"}


async def start(command: Sequence[str], fds: Sequence[int]) -> Process:
    """Start a process that inherits `fds` and nothing else; its errors go to our standard error.

    Who is cancelled meanwhile leaves no process behind.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=tuple(fds),
            env=ENVIRONMENT,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await end(await starting)
        raise


async def start_module(module: str, theirs: socket.socket, *fds: int, words: Sequence[str] = ()) -> Process:
    """Start `proxy.MODULE`, which has the standard library only, with its link, descriptors, and words."""
    numbers = [theirs.fileno(), *fds]
    try:
        return await start(sandbox.python_command(module, *map(str, numbers), *words, bare=True), numbers)
    finally:
        theirs.close()


async def start_sealed(module: str, theirs: socket.socket, *, structural: bool) -> Process:
    """Start `proxy.MODULE` sealed; without structural enforcement, as it is."""
    command = sandbox.python_command(module, str(theirs.fileno()))
    return await _start_filtered(
        command, theirs, syscalls.worker_filter(), sandbox.sealed if structural else None
    )


async def _start_filtered(
    command: list[str],
    theirs: socket.socket,
    program: bytes,
    seal: Callable[[list[str], int], list[str]] | None,
) -> Process:
    """Start a process with its link, in a sandbox with a seccomp program where there is one."""
    filter_fd = ipc.memory_file("seccomp", program)
    try:
        if seal is not None:
            command = seal(command, filter_fd)
        return await start(command, [theirs.fileno(), filter_fd])
    finally:
        ipc.close_all([filter_fd])
        theirs.close()


async def start_datagram_holder(theirs: socket.socket, *, structural: bool) -> Process:
    """Start `proxy.datagram_holder` sealed in the network of the host; else, as it is."""
    command = sandbox.python_command("datagram_holder", str(theirs.fileno()), bare=True)
    return await _start_filtered(
        command, theirs, syscalls.datagram_holder_filter(), sandbox.sealed_in_network if structural else None
    )


async def end(process: Process) -> None:
    """End a process and wait for it.

    With its group: a bubblewrap that is killed while it sets up leaves a child that waits for it for ever.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
