"""The small texts of a policy: domain patterns, networks, ports, sizes, windows, versions.

Each parser takes one text and raises ValueError with what is wrong and the cure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

import idna
from publicsuffixlist import PublicSuffixList

from proxy.addresses import IPNetwork, inner, parse_host, parse_name
from proxy.policy.model import MAX_SIZE, Bounds, Condition, Span
from proxy.policy.reading import parse_size

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60
WEEK = 7 * DAY

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TOKEN = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")  # methods of HTTP are case-sensitive, RFC 9110 section 9.1
MEDIA = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/(\*|[a-z0-9][a-z0-9!#$&^_.+-]{0,126})")
_PORT = re.compile(r"(0|[1-9][0-9]{0,4})(?:-(0|[1-9][0-9]{0,4}))?")
_SIZE = re.compile(r"(<=|>=|<|>) ?(.+)")
_VERSION = re.compile(r"(>=|<=|>|<) ?([0-9]{1,9}(\.[0-9]{1,9}){0,7})")
_WINDOW = re.compile(r"([a-z,-]+) ([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")
_LENGTH = re.compile("0|[1-9][0-9]{0,2}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%-]+")

# Names that belong to one site only, though they have one label above them (RFC 8375, ICANN .internal).
_PRIVATE_SUFFIXES = frozenset({"internal", "home.arpa"})


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_encoded_idn=False)  # the list's own words are Unicode; see _spans_owners


def _spans_owners(name: str) -> bool:
    """Whether anybody can register below a name."""
    shown = idna.decode(name) if "xn--" in name else name
    return bool(_public_suffixes().is_public(shown))


def looks_like_network(text: str) -> bool:
    """Whether a text can only be meant as an address or a network."""
    return "/" in text or ":" in text or text.rpartition(".")[2].isdigit()


def parse_network(text: str) -> IPNetwork:
    """A CIDR, or an address as the network of itself alone."""
    address_text, slash, length = text.partition("/")
    address = parse_host(address_text)
    if isinstance(address, str):
        raise ValueError(f'"{text}" is not a network; write it as in 10.20.0.0/16')
    width = address.max_prefixlen
    if not slash:
        length = str(width)
    if not _LENGTH.fullmatch(length) or int(length) > width:
        raise ValueError(f'"{text}" has no prefix length from 0 to {width}; write it as in 10.20.0.0/16')
    network = ip_network((int(address), int(length)) if width == 32 else (address, int(length)), strict=False)
    if network.network_address != address:
        raise ValueError(f"{text} has host bits set; write {network} or {address}/{width}")
    if isinstance(network, IPv6Network) and isinstance(address, IPv6Address):
        within = inner(address)
        if isinstance(within, IPv4Address) and network.prefixlen >= 16 and within != address:
            raise ValueError(f"{text} holds IPv4 addresses, which are judged as such; write the IPv4 network")
    return network


def parse_domain(text: str) -> str:
    """A domain of two labels or more, or `*.` and a domain that belongs to one owner."""
    wild = text.startswith("*.")
    base = text[2:] if wild else text
    if "*" in base:
        raise ValueError(
            f'"{text}" has a wildcard elsewhere; * may only be the whole first label; no `to` is any place'
        )
    name = parse_name(base)
    if wild and name not in _PRIVATE_SUFFIXES and _spans_owners(name):
        raise ValueError(f'"{text}" spans a public suffix and would match unrelated owners; name the owners')
    if "." not in name and not (wild and name in _PRIVATE_SUFFIXES):
        raise ValueError(f'"{text}" has one label; write the whole name, such as {name}.corp.example')
    return f"*.{name}" if wild else name


def domain_matches(pattern: str, name: str) -> bool:
    """Whether a name is a pattern's domain, or below it where the pattern is a wildcard."""
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


@lru_cache(1000)
def parse_port(text: str) -> Bounds:
    """`443` or `8000-8099`."""
    found = _PORT.fullmatch(text)
    if not found:
        raise ValueError(f'"{text}" is not a port; write a number or a range, such as 443 or 8000-8099')
    low = int(found[1])
    high = int(found[2]) if found[2] else low
    if high > 65535:
        raise ValueError(f'"{text}" is above 65535; write a port from 0 to 65535')
    if low > high:
        raise ValueError(f'"{text}" runs backwards; write {high}-{low}')
    return Bounds(low, high)


def parse_size_test(text: str) -> Bounds:
    """`">10MiB"`: the sizes that satisfy the comparison."""
    found = _SIZE.fullmatch(text)
    size = parse_size(found[2]) if found else None
    if not found or size is None:
        number = re.match("[0-9]+", text.lstrip("<>= "))
        raise ValueError(
            f'"{text}" needs a comparison and a binary unit, such as "<={number[0] if number else 25}MiB"'
        )
    if (found[1] == "<" and size == 0) or size >= MAX_SIZE:
        raise ValueError(f'"{text}" can match no size; write another bound')
    bounds: Mapping[str, Bounds] = {
        "<=": Bounds(0, size),
        "<": Bounds(0, size - 1),
        ">=": Bounds(size, MAX_SIZE),
        ">": Bounds(size + 1, MAX_SIZE),
    }
    return bounds[found[1]]


def parse_path(text: str) -> str:
    """A path that is matched by whole segments: `/api` is `/api` and all below it, not `/apiary`."""
    if not text.startswith("/"):
        raise ValueError(f'"{text}" does not start with /; write "/{text}"')
    if "*" in text or "?" in text or "#" in text:
        raise ValueError(f'"{text}" is not a plain path; it covers all below it, so write no * ? or #')
    segments = text.rstrip("/").split("/")[1:]
    for segment in segments:
        if segment in (".", "..") or "%" in segment or not _SEGMENT.fullmatch(segment):
            raise ValueError(
                f'"{text}" has the segment "{segment}"; write plain segments without . .. % or //'
            )
    return "/" + "/".join(segments)


def canonical_path(text: str) -> str | None:
    """The path that is judged, or None where two servers could read it in two ways."""
    path = text.partition("?")[0].partition("#")[0]
    if not path.startswith("/"):
        return None
    lowered = path.lower()
    if any(mark in lowered for mark in ("//", "\\", "%2f", "%5c", "%2e", "%00", "%25", ";")):
        return None
    if any(segment in (".", "..") for segment in path.split("/")):
        return None
    return re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), path)


def parse_condition(fact: str, text: str) -> Condition:
    """What a posture needs of one fact: `true`, a text, or `">=14"`."""
    if found := _VERSION.fullmatch(text):
        compare = {">=": ">=", "<=": "<=", ">": ">", "<": "<"}[found[1]]
        return Condition(fact, compare, found[2])  # type: ignore[arg-type]  # the table holds the literals
    if text[0] in "<>=":
        raise ValueError(f'"{text}" is not a version; write it as in ">=14" or ">=14.2"')
    return Condition(fact, "=", text)


def parse_window(text: str) -> tuple[Span, ...]:
    """`mon-fri 07:00-19:00`, `sat,sun 10:00-24:00`, `daily 22:00-06:00` (into the next day)."""
    found = _WINDOW.fullmatch(text)
    if not found:
        raise ValueError(f'"{text}" is not a window; write it as in "mon-fri 07:00-19:00"')
    days = _days(found[1], text)
    start, end = (_minute(found[i], found[i + 1], text) for i in (2, 4))
    if start in (DAY, end):
        raise ValueError(f'"{text}" starts where it ends; write 00:00-24:00 for whole days')
    length = (end - start) % DAY or DAY
    return tuple(Span(day * DAY + start, day * DAY + start + length) for day in days)


def _minute(hour: str, minute: str, text: str) -> int:
    if int(minute) > 59 or int(hour) * 60 + int(minute) > DAY:
        raise ValueError(f'"{text}" has the time {hour}:{minute}; write 00:00 to 24:00')
    return int(hour) * 60 + int(minute)


def _days(words: str, text: str) -> list[int]:
    if words == "daily":
        return list(range(7))
    days: list[int] = []
    for word in words.split(","):
        first, dash, last = word.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f'"{text}" has the day "{word}"; write {", ".join(DAYS)}, a range or daily')
        begin = DAYS.index(first)
        count = (DAYS.index(last) - begin) % 7 + 1 if dash else 1
        days += [(begin + i) % 7 for i in range(count)]
    return sorted(set(days))


def merge_spans(spans: list[Span]) -> tuple[Span, ...]:
    """Spans cut at the end of the week, sorted, touching ones joined."""
    flat = [
        piece
        for span in spans
        for piece in ((span,) if span.end <= WEEK else (Span(span.start, WEEK), Span(0, span.end - WEEK)))
    ]
    joined: list[Span] = []
    for span in sorted(flat, key=lambda s: s.start):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return tuple(joined)


def parse_date(text: str) -> date:
    """`2027-03-31`."""
    try:
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a date; write it as in 2027-03-31') from None
