"""Amounts as people read them: bytes, bytes in a second, ages."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """`512 B`, `1.5 KiB`, `230 MiB`."""
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count, power = count / 1024, power + 1
    unit = _UNITS[power]
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def rate(per_second: float) -> str:
    """`1.5 KiB/s`; nothing where nothing moves."""
    return f"{size(per_second)}/s" if per_second >= 0.5 else ""


def age(seconds: float) -> str:
    """`3 s`, `5 min`, `2 h 10 min`, `4 d 3 h`."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def count(number: int, what: str) -> str:
    """`1 flow`, `2 flows`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
