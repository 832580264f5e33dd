"""How a refusal looks: readable where the protocol has words, and nothing of it is obeyed or executed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesParser
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import refusals
from proxy.flow import Because, Origin, Refusal
from proxy.refusals import Notice

BLOCKED = Refusal(
    Because(Origin.RULE, "no-games", "Games are for later"),
    "ask the owner of the policy",
    ask="the games desk",
)
AT = datetime(2026, 11, 22, 11, 12, 5, tzinfo=UTC)
NO_TUNNEL = Refusal(Because(Origin.GATE, "tunnel", "no answer"), "wait", "gw")
PLAIN = b"GET / HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n"
BROWSER = b"GET / HTTP/1.1\r\nHost: a.example\r\nAccept: Text/HTML,*/*;q=0.8\r\n\r\n"


def answer(refusal: Refusal, first: bytes, destination: str, reference: str) -> bytes:
    return refusals.answer(Notice(refusal, destination, reference, AT), first)


def parsed(answer: bytes) -> tuple[str, dict[str, str], str]:
    head, end, body = answer.partition(b"\r\n\r\n")
    assert end
    status, _, fields = head.partition(b"\r\n")
    found = BytesParser().parsebytes(fields + b"\r\n\r\n")
    assert not found.defects
    return status.decode(), {name.lower(): value for name, value in found.items()}, body.decode()


def test_a_program_reads_one_line() -> None:
    status, fields, body = parsed(answer(BLOCKED, PLAIN, "a.example:80", "w-1"))
    assert status == "HTTP/1.1 403 Forbidden"
    assert body == (
        "zonegate: a.example:80 is blocked by rule no-games (Games are for later);"
        " ask the owner of the policy; ask the games desk [w-1]\n"
    )
    assert fields["zonegate-because"] == "rule no-games (Games are for later)"
    assert int(fields["content-length"]) == len(body.encode())
    assert fields["connection"] == "close"
    assert fields["cache-control"] == "no-store"


def test_a_missing_tunnel_is_for_now() -> None:
    assert parsed(answer(NO_TUNNEL, PLAIN, "a.example:80", "w-1"))[0].startswith("HTTP/1.1 503 ")


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words += [data.strip()] if data.strip() else []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def read(page: str) -> Text:
    text = Text()
    text.feed(page)
    return text


def test_a_person_reads_a_page() -> None:
    status, fields, body = parsed(answer(BLOCKED, BROWSER, "a.example:80", "w-1"))
    assert status == "HTTP/1.1 403 Forbidden"
    assert fields["content-type"] == "text/html; charset=utf-8"
    words = read(body).words
    for said in (
        "a.example:80",
        "Games are for later",
        "What to do: ask the owner of the policy",
        "rule no-games",
        "22 November 2026, 11:12:05 UTC",
        "the games desk",
        "w-1",
    ):
        assert said in words
    without = read(parsed(answer(Refusal(BLOCKED.because), BROWSER, "a:80", "w-1"))[2]).words
    assert [word for word in without if "What to do: if you need this, send the reference below" in word]
    nameless = read(parsed(answer(Refusal(BLOCKED.because), BROWSER, "a:80", ""))[2]).words
    assert not [word for word in nameless if "What to do" in word or word == "Reference"]


def test_a_command_in_a_page_is_set_as_one_and_is_nothing_else() -> None:
    refusal = Refusal(BLOCKED.because, "see `zonegate status`, `<b>` and ` alone")
    page = parsed(answer(refusal, BROWSER, "a:80", "w-1"))[2]
    assert "see <code>zonegate status</code>, <code>&lt;b&gt;</code> and ` alone" in page
    assert "b" not in read(page).tags


def test_what_is_said_is_neither_markup_nor_a_header() -> None:
    evil = "<script>x</script>\r\nSet-Cookie: a=b\r\n\r\n\0\u2028ü"
    refusal = Refusal(Because(Origin.RULE, evil, evil), evil)
    for request in (PLAIN, BROWSER):
        status, fields, body = parsed(answer(refusal, request, evil, evil))
        assert "set-cookie" not in fields
        assert status == "HTTP/1.1 403 Forbidden"
        assert "\r" not in body
        if request is BROWSER:
            assert "script" not in read(body).tags
        else:
            assert body.count("\n") == 1


def test_head_has_no_body() -> None:
    shown = answer(BLOCKED, PLAIN.replace(b"GET", b"HEAD"), "a:80", "w")
    status, fields, body = parsed(shown)
    assert body == ""
    assert int(fields["content-length"]) > 0
    assert status.startswith("HTTP/1.1 403")


@dataclass(frozen=True, slots=True)
class Other:
    sentence: str
    first: bytes
    answer: bytes

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Other("TLS has an alert", b"\x16\x03\x01\0\x05hello", bytes.fromhex("15030300020231")),
        Other("even for a part of a hello", b"\x16", refusals.TLS_ALERT),
        Other("silence has a reset", b"", b""),
        Other("ssh has a reset", b"SSH-2.0-x\r\n", b""),
        Other("half a request line has a reset", b"GET / HT", b""),
        Other("HTTP/2 has a reset", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
        Other("HTTP/0.9 has a reset", b"GET /\r\n", b""),
    ],
    ids=str,
)
def test_other_protocols(case: Other) -> None:
    assert answer(BLOCKED, case.first, "a:1", "w") == case.answer


@given(st.binary(max_size=200), st.text(max_size=40))
def test_it_never_raises(first: bytes, text: str) -> None:
    refusal = Refusal(Because(Origin.GUARD, text, text), text, text)
    for data in (first, b"GET / HTTP/1.1\r\n" + first, BROWSER + first):
        shown = answer(refusal, data, text, text)
        if shown.startswith(b"HTTP"):
            _, fields, body = parsed(shown)
            assert int(fields["content-length"]) == len(body.encode())
