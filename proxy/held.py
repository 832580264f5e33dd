"""Which tunnels are held down by hand, until somebody takes them up again.

Remembered in one file, replaced whole and synced, so that it outlives the daemon. A file that cannot be read
holds every tunnel down. Ends no tunnel itself.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from proxy.locks import write_json

FILE = "held.json"


class Held:
    """The tunnels that are held down, and the words for it. Whoever writes it down holds `changing`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unreadable = ""
        self._words: dict[str, str] = {}
        self.changing = asyncio.Lock()
        try:
            found = json.loads(path.read_bytes())
            self._words = {str(name): str(words) for name, words in found.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            words = getattr(error, "strerror", None) or "it is not as zonegate wrote it"
            self._unreadable = f"held down: {path} cannot be read: {words}"

    def over(self, tunnel: str) -> str:
        """Why a tunnel is held down; empty if it is not."""
        return self._words.get(tunnel, self._unreadable)

    def down(self, tunnel: str, words: str) -> None:
        """Hold it from now on; `save` makes it last."""
        self._words[tunnel] = words

    def up(self, tunnel: str, others: tuple[str, ...]) -> None:
        """Let it go, on disk first; OSError, and then it stays held. `others` are the site's other tunnels:
        what an unreadable file held is held one by one from now on."""
        left = {name: self.over(name) for name in others if self.over(name)}
        write_json(self._path, left)
        self._words, self._unreadable = left, ""

    def save(self) -> None:
        """Have it outlive the daemon; OSError if it cannot be written."""
        write_json(self._path, self._words)
