"""DNS as a client: a question for the addresses of a name, and what a reply to it says. Pure.

A reply comes from a network that may lie or break: whatever is not an answer to the very question is nothing,
and what is one is bounded. Nothing in a packet may raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from proxy.flow import IPAddress

PAYLOAD_BYTES = 1232  # DNS flag day 2020: what is never fragmented
MAX_ADDRESSES, MAX_ALIASES = 16, 8
MAX_TTL_S, NEGATIVE_TTL_S = 3600, 30


@dataclass(frozen=True, slots=True)
class Question:
    """One question and its bytes on the wire. `kind` is "A" or "AAAA"."""

    name: str
    kind: str
    message: dns.message.Message
    wire: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What a resolver said. `alias` is the name to ask for next, where only that was told; `failed` is the
    reason when it gave no answer; `truncated`: ask again over TCP."""

    addresses: tuple[IPAddress, ...] = ()
    ttl_s: int = 0
    alias: str = ""
    exists: bool = True
    truncated: bool = False
    failed: str = ""


def ask(name: str, kind: str) -> Question:
    """A question with a number that nobody can know before (dnspython draws it from the system)."""
    message = dns.message.make_query(name + ".", kind, use_edns=0, payload=PAYLOAD_BYTES)
    return Question(name, kind, message, message.to_wire())


def read(question: Question, data: bytes) -> Reply | None:
    """What a reply says, None where it is no answer to this question."""
    try:
        return _read(question, dns.message.from_wire(data, raise_on_truncation=False))
    except Exception:  # dnspython raises many kinds for what is no message
        return None


def _read(question: Question, message: dns.message.Message) -> Reply | None:
    if not question.message.is_response(message) or not message.question:
        return None
    if message.flags & dns.flags.TC:
        return Reply(truncated=True)
    rcode = message.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Reply(failed=dns.rcode.to_text(rcode))
    name, ttl_s = dns.name.from_text(question.name), MAX_TTL_S
    wanted = dns.rdatatype.from_text(question.kind)
    for _ in range(MAX_ALIASES + 1):
        found = message.get_rrset(message.answer, name, dns.rdataclass.IN, wanted)
        if found is not None:
            addresses = tuple(ip_address(record.address) for record in list(found)[:MAX_ADDRESSES])
            return Reply(addresses, min(ttl_s, found.ttl))
        alias = message.get_rrset(message.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias is None:
            break
        ttl_s = min(ttl_s, alias.ttl)
        name = alias[0].target
    else:
        return Reply(failed=f"more than {MAX_ALIASES} aliases")
    if rcode == dns.rcode.NXDOMAIN:
        return Reply(ttl_s=min(ttl_s, NEGATIVE_TTL_S), exists=False)
    if name != dns.name.from_text(question.name):
        return Reply(ttl_s=ttl_s, alias=name.to_text(omit_final_dot=True).lower())
    return Reply(ttl_s=min(ttl_s, NEGATIVE_TTL_S))
