"""The certificate that a gateway shows, read again when its files change; connections go on.

Files that are half written, or that do not fit together, change nothing until they do.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from proxy.gateway.log import Log
from proxy.stamps import Stamps, look

LOOK_S = 0.5


async def follow(
    files: Sequence[Path],
    before: Stamps,
    read: Callable[[], tuple[ssl.SSLContext, str]],
    show: Callable[[ssl.SSLContext], None],
    log: Log,
) -> None:
    """Have a gateway show what its files hold, for ever. `before` is how they were when it last read them.

    `read` gives the context and the pin of its key, or raises; `show` takes it into use.
    """
    while True:
        await asyncio.sleep(LOOK_S)
        stamps = look(files)
        if stamps == before:
            continue
        context, words = None, ""
        try:
            context, pin = read()
        except Exception as error:  # whatever somebody writes there, what is shown stays
            words = str(error).partition("\n")[0]
        if stamps != look(files):
            continue  # they are being written: the next look sees more
        before = stamps
        if context is None:
            log.note("certificate kept", because=words)
        else:
            show(context)
            log.note("certificate renewed", pin=pin)
