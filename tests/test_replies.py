"""What a resolver's reply says: a table of good, odd and hostile messages, and bytes of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.replies import MAX_ADDRESSES, MAX_ALIASES, MAX_TTL_S, NEGATIVE_TTL_S, Question, Reply, ask, read

NAME = "git.corp.example"
type Message = dns.message.Message


def reply(question: Question, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> Message:
    message = dns.message.make_response(question.message)
    message.set_rcode(rcode)
    for record in records:
        owner, ttl, kind, data = record.split()
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, *data.split(",")))
    return message


def aliases(count: int) -> list[str]:
    names = [f"{NAME}.", *(f"a{at}.example." for at in range(count))]
    chain = [f"{one} 60 CNAME {other}" for one, other in pairwise(names)]
    return [*chain, f"{names[-1]} 60 A 10.77.0.80"]


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    records: tuple[str, ...]
    reply: Reply | None
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    kind: str = "A"

    def __str__(self) -> str:
        return self.sentence


FOUND, FOUND6 = (ip_address("10.77.0.80"),), (ip_address("fd77::80"),)
TARGET = "x.example. 9 A 10.77.0.80"
TOO_MANY = Reply(failed=f"more than {MAX_ALIASES} aliases")
MANY = ",".join(f"10.77.1.{at}" for at in range(MAX_ADDRESSES + 9))
CASES = [
    Case("an address", (f"{NAME}. 60 A 10.77.0.80",), Reply(FOUND, 60)),
    Case("in another case", ("GIT.corp.Example. 60 A 10.77.0.80",), Reply(FOUND, 60)),
    Case("an IPv6 address", (f"{NAME}. 60 AAAA fd77::80",), Reply(FOUND6, 60), kind="AAAA"),
    Case("a day is too long", (f"{NAME}. 86400 A 10.77.0.80",), Reply(FOUND, MAX_TTL_S)),
    Case("an alias with its address", (f"{NAME}. 60 CNAME x.example.", TARGET), Reply(FOUND, 9)),
    Case("an alias that is short-lived", (f"{NAME}. 3 CNAME x.example.", TARGET), Reply(FOUND, 3)),
    Case("an alias alone", (f"{NAME}. 60 CNAME X.example.",), Reply(ttl_s=60, alias="x.example")),
    Case("an alias of itself", (f"{NAME}. 60 CNAME {NAME}.",), TOO_MANY),
    Case("as many aliases as may be", tuple(aliases(MAX_ALIASES)), Reply(FOUND, 60)),
    Case("one alias too many", tuple(aliases(MAX_ALIASES + 1)), TOO_MANY),
    Case("an address of another name", ("evil.example. 60 A 10.6.6.6",), Reply(ttl_s=NEGATIVE_TTL_S)),
    Case("nothing of the kind", (), Reply(ttl_s=NEGATIVE_TTL_S)),
    Case("no such name", (), Reply(ttl_s=NEGATIVE_TTL_S, exists=False), rcode=dns.rcode.NXDOMAIN),
    Case("a failure", (), Reply(failed="SERVFAIL"), rcode=dns.rcode.SERVFAIL),
    Case("a refusal", (), Reply(failed="REFUSED"), rcode=dns.rcode.REFUSED),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_reply_says(case: Case) -> None:
    question = ask(NAME, case.kind)
    assert read(question, reply(question, *case.records, rcode=case.rcode).to_wire()) == case.reply


def test_more_addresses_than_are_taken() -> None:
    question = ask(NAME, "A")
    found = read(question, reply(question, f"{NAME}. 60 A {MANY}").to_wire())
    assert found is not None and len(found.addresses) == MAX_ADDRESSES


def test_a_reply_that_was_cut_short() -> None:
    question = ask(NAME, "A")
    message = reply(question)
    message.flags |= dns.flags.TC
    assert read(question, message.to_wire()) == Reply(truncated=True)


def _other_number(message: Message) -> None:
    message.id ^= 1


def _other_name(message: Message) -> None:
    message.question = ask("other.corp.example", "A").message.question


def _other_kind(message: Message) -> None:
    message.question = ask(NAME, "AAAA").message.question


def _no_question(message: Message) -> None:
    message.question = []


def _no_reply(message: Message) -> None:
    message.flags &= ~dns.flags.QR


@pytest.mark.parametrize("change", [_other_number, _other_name, _other_kind, _no_question, _no_reply])
def test_an_answer_to_another_question_is_none(change: Callable[[Message], None]) -> None:
    question = ask(NAME, "A")
    message = reply(question, f"{NAME}. 60 A 10.6.6.6")
    assert read(question, message.to_wire()) is not None
    change(message)
    assert read(question, message.to_wire()) is None


def test_questions_have_numbers_of_their_own() -> None:
    assert len({ask(NAME, "A").message.id for _ in range(64)}) > 48


@given(st.binary(max_size=80), st.integers(0, 60))
def test_no_bytes_raise(junk: bytes, at: int) -> None:
    question = ask(NAME, "A")
    good = reply(question, f"{NAME}. 60 A 10.77.0.80").to_wire()
    for data in (junk, question.wire[:2] + junk, good[:at], good[:at] + junk, good + junk):
        read(question, data)
