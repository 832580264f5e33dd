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
