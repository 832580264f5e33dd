"""How a command says that it cannot: each line once, on standard error, and the exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import click


def fail(text: str, code: int = 2) -> NoReturn:
    """Print what is wrong and end with `code`."""
    for line in text.splitlines():
        click.echo(f"zonegate: {line}", err=True)
    sys.exit(code)


def fail_at(text: str) -> NoReturn:
    """Print what is wrong in a file, its lines shown as they are below, and end with 2."""
    click.echo(f"zonegate: {text}", err=True)
    sys.exit(2)


def warn(text: str) -> None:
    """Print what went wrong, and go on."""
    click.echo(f"zonegate: {text}", err=True)
