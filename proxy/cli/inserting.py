"""A site file that gets a tunnel: tried beside the one that is there, and put in its place if it loads."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from proxy.site import SiteError, load_site
from proxy.site_insertion import NotInserted, with_tunnel


class NotPut(Exception):
    """The file is as it was; every line says why."""


def put_into(file: Path, name: str, entry: str, zone: str) -> str:
    """Put a tunnel into a site file, as the last of a zone; a line of what is so now. Raises NotPut."""
    file = file.resolve()
    beside = file.with_name(f".{file.name}.new")
    try:
        made = with_tunnel(file.read_text(), name, entry, zone)
        _write(beside, made.text, file.stat())
        try:
            before, after = load_site(file).site, load_site(beside).site
            if after.zones[made.zone].tunnels != (*before.zones[made.zone].tunnels, name) or set(
                after.tunnels
            ) != {*before.tunnels, name}:
                raise NotInserted("it is written in a way that only its writer can add to; do so by hand")
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
    except (NotInserted, UnicodeDecodeError) as error:
        raise NotPut(f"{file}: {error}") from error
    except SiteError as error:
        raise NotPut(str(error).replace(str(beside), str(file))) from error
    except OSError as error:
        raise NotPut(f"{file} cannot be written: {error.strerror}") from error
    others = ", ".join(made.before)
    taken = f"takes it where {others} cannot be had" if others else "leaves by it"
    return f"tunnel {name} is in {file}; zone {made.zone} {taken}"


def _write(path: Path, text: str, like: os.stat_result) -> None:
    """A new file with the owner and mode of another."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as new:
        new.write(text)
        with contextlib.suppress(PermissionError):  # somebody else's file: it becomes one's own
            os.fchown(fd, like.st_uid, like.st_gid)
        os.fchmod(fd, stat.S_IMODE(like.st_mode))
