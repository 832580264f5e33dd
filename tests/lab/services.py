"""Pretended services of a host, as Unix sockets: `services.py LOG PATH ...`. Logs what is said to each.

They answer by hanging up, as a service does that does not know its client. Standard library only.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path


async def main() -> None:
    """Serve until ended; says so once everything listens."""
    log = Path(sys.argv[1]).open("a", buffering=1)  # noqa: ASYNC230, SIM115  a file of the lab, for ever

    async def serve(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                said = await reader.read(4096)
        except (TimeoutError, OSError):
            said = b""
        print(f"{path} {said!r}", file=log)
        writer.close()

    for path in sys.argv[2:]:

        async def one(r: asyncio.StreamReader, w: asyncio.StreamWriter, path: str = path) -> None:
            await serve(path, r, w)

        await asyncio.start_unix_server(one, path)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.umask(0)
    for old in sys.argv[2:]:
        Path(old).unlink(missing_ok=True)
    asyncio.run(main())
