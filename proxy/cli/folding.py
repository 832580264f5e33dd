"""Lines of a report as a terminal shows them best: broken between words, what follows set in below.

A line of `word  more` goes on below `more`. What goes to a pipe or a file stays one line.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

import click
from rich.console import Console

PIPED_WIDTH = 160  # of tables, where no terminal says how wide it is
_LEAST_TEXT = 30  # columns that a label must leave, or its text goes on near the margin
_BEGINNING = re.compile(r" *(?:[^ ]+(?: [^ ]+)*  +)?(?=[^ ])")


def columns() -> int:
    """How wide the terminal is; 0 where the output goes to none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def console() -> Console:
    """What tables and coloured lines are printed to."""
    return Console(highlight=False, soft_wrap=True, width=None if columns() else PIPED_WIDTH)


def fold(text: str, width: int) -> str:
    """Every line with breaks between its words, at most so wide where its words are; 0 leaves it whole."""
    return "\n".join(_fold(line, width) for line in text.split("\n")) if width else text


def tell(text: str) -> None:
    """Print lines of a report."""
    click.echo(fold(text, columns()))


def _fold(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    beginning = _BEGINNING.match(line)
    hang = beginning.end() if beginning else 0
    if hang > width - _LEAST_TEXT or not line[:hang].strip():
        hang = len(line) - len(line.lstrip()) + 4
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
