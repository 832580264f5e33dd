"""`zonegate passwd`: the logins of an explicit listener."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import click

from proxy import passwords
from proxy.cli.errors import fail


@click.command("passwd", short_help="logins and passwords of explicit listeners")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("user")
@click.option("--delete", is_flag=True, help="Take the login out of the file.")
def command(file: Path, user: str, delete: bool) -> None:
    """Give USER a password in FILE, or a new one. The file is made if it is missing, readable by you alone.

    The password is asked for twice; where there is no terminal it is the first line of standard input. Only a
    hash of it is kept (scrypt).

    \b
    Examples:
      zonegate passwd people.passwd alice
      printf '%s\\n' "$PASSWORD" | zonegate passwd people.passwd builder
      zonegate passwd --delete people.passwd alice
    """
    try:
        text = file.read_text() if file.exists() else ""
        known = passwords.read(text.encode())
        if delete and user not in known:
            raise ValueError(f'"{user}" is not in {file}')
        new = "" if delete else passwords.line(user, _asked(user).encode())
        _write(file, passwords.with_line(text, user, new))
    except passwords.BadPasswords as error:
        fail(f"{file}: {error}")
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    what = "is out" if delete else "has a new password"
    click.echo(f"{file}: {user} {what}; a running daemon takes it by: zonegate reload")


def _asked(user: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    word: str = click.prompt(f"password of {user}", hide_input=True, confirmation_prompt=True)
    return word


def _write(file: Path, text: str) -> None:
    """In place of the old file, whole or not at all, ours alone."""
    fd, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # 0600
    try:
        with os.fdopen(fd, "w") as there:
            there.write(text)
            there.flush()
            os.fsync(there.fileno())
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
