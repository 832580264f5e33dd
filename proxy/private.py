"""Secrets as files for as long as somebody must read them: OpenSSL takes a key from a file only.

In a sealed process they lie in its private memory (sandbox), elsewhere in a directory of mode 0700.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECRETS = Path("/secrets")


@contextmanager
def private_files(**contents: bytes) -> Iterator[dict[str, Path]]:
    """Files of mode 0600 with these contents, by name, until the block ends."""
    place = SECRETS if SECRETS.is_dir() else Path(tempfile.mkdtemp())
    files = {name: place / name for name in contents}
    try:
        for name, content in contents.items():
            files[name].touch(mode=0o600)
            files[name].write_bytes(content)
        yield files
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)
        if place != SECRETS:
            with contextlib.suppress(OSError):
                place.rmdir()
