"""What is looked for. A pattern tells where in some bytes it ends; it knows neither streams nor policies.

Every pattern is decided by a bounded window: `most_bytes` of its own, one byte before and, where `edged`, one
after. So a stream can be searched piece by piece, and the time per byte is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from proxy.policy.model import AWS_KEYS, CARD_NUMBERS, IBAN, PRIVATE_KEYS, Pattern


@dataclass(frozen=True, slots=True)
class Search:
    """One pattern. `ends(data, first)` are the ends of all that match from `first` on.

    `edged`: what matches must not go on with a letter or a digit, so its end is sure only with one byte more.
    """

    name: str
    most_bytes: int
    edged: bool
    ends: Callable[[bytes, int], Iterator[int]]


_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def _is_edge(data: bytes, end: int) -> bool:
    return end == len(data) or data[end] not in _WORD


# -- card numbers ------------------------------------------------------------------------------------

# (first digits from, to, lengths): ISO/IEC 7812 ranges of the schemes that are accepted for payment.
_ISSUERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("300", "305", (14,)),  # Diners Club
    ("36", "36", (14, 16)),
    ("38", "39", (14, 16)),
    ("3528", "3589", (16,)),  # JCB
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "649", (16, 19)),
    ("65", "65", (16, 19)),
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("50", "50", (16,)),  # Maestro, in the length of today's cards
    ("56", "58", (16,)),
    ("67", "67", (16,)),
)
# Each expression begins with a set of bytes, for which the engine skips ahead, and looks back from there.
_CARD = re.compile(rb"[2-6](?<![0-9A-Za-z].)(?=((?:[ -]?[0-9]){12,18}))", re.DOTALL)


def _card_ends(data: bytes, first: int) -> Iterator[int]:
    for found in _CARD.finditer(data, first):
        digits, places = bytearray(found[0]), [found.end()]
        for at, byte in enumerate(found[1], found.end() + 1):
            if byte not in b" -":
                digits.append(byte)
                places.append(at)
        for length in _lengths(digits):
            if length <= len(digits) and _is_edge(data, places[length - 1]) and _luhn(digits[:length]):
                yield places[length - 1]


def _lengths(digits: bytes | bytearray) -> Iterator[int]:
    text = digits[:4].decode("ascii")
    for low, high, lengths in _ISSUERS:
        if low <= text[: len(low)] <= high:
            yield from lengths


def _luhn(digits: bytes | bytearray) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B. One digit over and over is no number of a card."""
    total = 0
    for i, byte in enumerate(reversed(digits)):
        value = (byte - 48) * (2 if i % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and len(set(digits)) > 1


# -- IBAN --------------------------------------------------------------------------------------------

# ISO 13616 registry: country and length.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG DZ", 25: "AO CV GW LY MZ PT ST", 26: "IS TR",
        27: "BF BI CF CG CM DJ FR GA GQ GR IT KM MC MG MR SM SN",
        28: "AL AZ BJ BY CI CY DO GT HN HU LB MA ML NE NI PL SV TD TG", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
# In groups of four, with a blank between them or without. Digits are rarer than letters: it is looked for
# from its first digit, and back to its country.
_IBAN = re.compile(
    rb"[0-9](?<=(?<![0-9A-Za-z])[A-Za-z]{2}[0-9])"
    rb"(?=([0-9](?: ?[0-9A-Za-z]{4}){2,7}(?: ?[0-9A-Za-z]{1,3})?))"
)


def _iban_ends(data: bytes, first: int) -> Iterator[int]:
    for found in _IBAN.finditer(data, first):
        start = found.start() - 2
        if start < first:
            continue
        letters, places = bytearray(), []
        for at, byte in enumerate(data[start : found.end(1)], start + 1):
            if byte != 0x20:
                letters.append(byte)
                places.append(at)
        text = letters.decode("ascii").upper()
        length = _IBAN_LENGTHS.get(text[:2], 99)
        if length <= len(text) and _is_edge(data, places[length - 1]) and _mod97(text[:length]):
            yield places[length - 1]


def _mod97(text: str) -> bool:
    """ISO 7064 MOD 97-10 as ISO 13616 uses it."""
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1


# -- keys --------------------------------------------------------------------------------------------


def _by(
    expression: re.Pattern[bytes], signs: Sequence[bytes], *, edged: bool
) -> Callable[[bytes, int], Iterator[int]]:
    """The ends of the first group of an expression that is a look-ahead, so that matches may overlap.

    What has none of the `signs`, in small letters, has no match: that is looked at first, since it is fast.
    """

    def ends(data: bytes, first: int) -> Iterator[int]:
        small = data.lower()
        for found in expression.finditer(data, first) if any(sign in small for sign in signs) else ():
            if not edged or _is_edge(data, found.end(1)):
                yield found.end(1)

    return ends


# The line that begins a key and some of what follows: a text that only speaks of such a line has none.
# Line ends as they are, or written out as in JSON. RFC 7468, OpenSSH, PGP (RFC 4880), PuTTY.
_PRIVATE_KEY = re.compile(
    rb"(?=(-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rb"""(?:\\r|\\n|[\s"'+]){1,12}?(?:[A-Za-z0-9+/]{16}|Proc-Type: 4|DEK-Info: |Version: |Comment: )"""
    rb"|PuTTY-User-Key-File-[23]: [a-z0-9-]{4}))"
)
# An access key id; a secret of 40 letters only beside the word for it, since such letters are everywhere.
_AWS_KEY = re.compile(
    rb"(?=((?<![0-9A-Za-z])(?:AKIA|ASIA)[A-Z2-7]{16}"
    rb"|(?i:secret[_-]?(?:access[_-]?)?key)[\"']?[ \t]{0,4}[:=]>?[ \t]{0,4}[\"']?[0-9A-Za-z/+]{40}(?![/+=])))"
)

BUILT_IN: dict[str, Search] = {
    search.name: search
    for search in (
        Search(CARD_NUMBERS, 37, True, _card_ends),
        Search(IBAN, 42, True, _iban_ends),
        Search(PRIVATE_KEYS, 96, False, _by(_PRIVATE_KEY, (b"private key", b"putty"), edged=False)),
        Search(AWS_KEYS, 96, True, _by(_AWS_KEY, (b"akia", b"asia", b"secret"), edged=True)),
    )
}


# -- words -------------------------------------------------------------------------------------------

_GAP = rb"(?:[ \t\r\n]{1,4})"
_MOST_LETTER_BYTES = 6  # one letter's capitals may be three letters


def words(pattern: Pattern) -> Search:
    """Words of the author's own: in any case of letters, whole, in UTF-8, Latin-1 and (without its zero
    bytes) UTF-16; a blank is any one to four blanks."""
    # of two words that begin alike the shorter ends first
    alternatives = b"|".join(_word(word) for word in sorted(pattern.words, key=len))
    firsts = re.escape(bytes(sorted({form[0] for word in pattern.words for form in _forms(word[0])})))
    expression = re.compile(
        b"[" + firsts + rb"](?<![0-9a-z].)(?<=(?=(" + alternatives + rb")(?![0-9a-z])).)", re.DOTALL
    )
    most = max(len(word) for word in pattern.words) * _MOST_LETTER_BYTES

    def ends(data: bytes, first: int) -> Iterator[int]:
        # letters of ASCII are compared in lower case; lower() changes no length
        for found in expression.finditer(data.lower(), first):
            yield found.end(1)

    return Search(pattern.name, most, True, ends)


def _word(word: str) -> bytes:
    return b"".join(_GAP if letter == " " else _letter(letter) for letter in word)


def _letter(letter: str) -> bytes:
    told = [re.escape(form) for form in _forms(letter)]
    return told[0] if len(told) == 1 else b"(?:" + b"|".join(told) + b")"


def _forms(letter: str) -> Sequence[bytes]:
    """One letter in the codings that text travels in."""
    forms: dict[bytes, None] = {}
    for case in (letter.lower(), letter.upper()):
        for coding in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"):
            encoded = case.encode(coding, "ignore")
            if form := (encoded if coding in ("utf-8", "latin-1") else encoded.replace(b"\0", b"")).lower():
                forms[form] = None
    return tuple(forms)


def searches(names: Sequence[str], defined: Sequence[Pattern]) -> tuple[Search, ...]:
    """The searches of some names. Raises KeyError for a name that is neither built in nor defined."""
    own = {pattern.name: pattern for pattern in defined}
    return tuple(BUILT_IN[name] if name in BUILT_IN else words(own[name]) for name in names)
