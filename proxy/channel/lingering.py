"""The lingering close: a peer reads one last thing, whatever it was still saying.

An unread request would reset the answer (RFC 9112, section 9.6), so what still comes is read for a while and
thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib

from proxy.channel.plain import Channel

LINGER_S, LINGER_BYTES = 2.0, 1 << 20


async def tell(client: Channel, words: bytes) -> None:
    """Let a client read this last thing, and close. Nothing that it still says is looked at. Never raises."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(LINGER_S):
            await client.write(words)
            await client.write_eof()
            left = LINGER_BYTES
            while left > 0 and (data := await client.read()):
                left -= len(data)
            await client.close()
