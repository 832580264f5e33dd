"""DNS questions of a zone: what is asked, and how an answer is written. Pure; no socket, clock or loop.

Decides which questions have an answer at all. It does not know the policy: every name has an address
here, and it is the flow to that address that is judged. Input is hostile: nothing in a packet may raise.

Messages, and the one name in them, are read and written here: every new connection asks twice, the few forms
that are answered are fixed ones, and dnspython takes several times as long for them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.edns
import dns.exception
import dns.flags
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.wire

from proxy.addresses import parse_name
from proxy.allocator import NameFault, Synthetic, is_synthetic
from proxy.flow import IPAddress, Refusal

TTL_S = 60
MAX_QUERY_BYTES = 4096
_PAYLOAD_BYTES = 1232  # what we take; answers are shorter than 512 bytes
_REASON_BYTES = 160  # keeps an answer with the longest name and a reason below 512 bytes

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHHIH")  # owner (a pointer to the question), type, class, TTL, length
_OPT = struct.Struct("!BHHIH")  # root, type, our payload, extended rcode and version and flags, length
_OPTION = struct.Struct("!HHH")  # code, length, and the first field of an EDE option
_TYPE = struct.Struct("!HH")  # type and class of a question
_OWNER_IS_QUESTION = 0xC000 | _HEADER.size
_OPCODE = 0x7800
_DO = 0x8000
# Plain numbers: an operation on dnspython's enumeration costs more than a whole answer.
_QR, _QR_RA = int(dns.flags.QR), int(dns.flags.QR | dns.flags.RA)
_RD, _RD_CD = int(dns.flags.RD), int(dns.flags.RD | dns.flags.CD)
_MAX_LABEL, _MAX_WIRE_NAME = 63, 255  # RFC 1035, section 2.3.4
_LOOPBACK = Synthetic(IPv4Address("127.0.0.1"), IPv6Address("::1"))

# Names that do not exist here, with all below them.
_ABSENT: Mapping[str, str] = {
    "invalid": "RFC 6761, section 6.4",
    "onion": "RFC 7686: never asked of DNS",
    "ipv4only.arpa": "RFC 8880: there is no NAT64 in a zone, and no prefix may be learnt from an answer",
    "resolver.arpa": "RFC 9462: there is no encrypted resolver to move to",
    "use-application-dns.net": "the name by which Firefox asks whether it may use DNS over HTTPS",
}
_BELOW_ABSENT = tuple(f".{name}" for name in _ABSENT)

# RFC 8914, section 4; every other refusal is "other".
_EDE_CODES: Mapping[str, dns.edns.EDECode] = {
    NameFault.JOURNAL: dns.edns.EDECode.NOT_READY,
    NameFault.UNREACHABLE: dns.edns.EDECode.NOT_READY,
}


@dataclass(frozen=True, slots=True)
class Query:
    """One question as it came: `question` is its section on the wire, echoed in its own case (0x20), `labels`
    its name without the root."""

    ident: int
    flags: int
    question: bytes
    labels: tuple[bytes, ...]
    rdtype: int
    rdclass: int
    edns: int | None  # the extended flags with the version, None without EDNS


@dataclass(frozen=True, slots=True)
class AddressWanted:
    """A or AAAA of a canonical name: ask the allocator, then `answer`."""

    name: str
    query: Query

    def answer(self, found: Synthetic | Refusal) -> bytes:
        """The reply on the wire."""
        if isinstance(found, Refusal):
            return _refused(self.query, found)
        return _reply(self.query, data=_address(self.query, found))


@dataclass(frozen=True, slots=True)
class NameWanted:
    """PTR of a synthetic address: ask for its name, then `answer`."""

    address: IPAddress
    query: Query

    def answer(self, found: str | Refusal) -> bytes:
        """The reply on the wire."""
        if isinstance(found, str):
            return _reply(self.query, data=dns.name.from_text(found).to_wire())
        if found.because.id == NameFault.UNKNOWN:
            return _reply(self.query, dns.rcode.NXDOMAIN)
        return _refused(self.query, found)


type Wanted = AddressWanted | NameWanted


def understand(packet: bytes) -> bytes | Wanted | None:
    """A finished reply, or what must be looked up for one, or None for what gets no reply at all.

    No reply: shorter than a header, or itself a reply (two servers could answer each other for ever).
    """
    if len(packet) < _HEADER.size:
        return None
    ident, flags, questions, *_ = _HEADER.unpack_from(packet)
    if flags & _QR:
        return None
    if flags & _OPCODE:
        return _bare(ident, flags, dns.rcode.NOTIMP)
    if questions != 1:
        return _bare(ident, flags, dns.rcode.FORMERR)
    try:
        query = _read(packet)
    except (dns.exception.DNSException, ValueError, IndexError, struct.error):
        return _bare(ident, flags, dns.rcode.FORMERR)
    return _dispatch(query)


def _read(packet: bytes) -> Query:
    """Raises DNSException, ValueError, IndexError or struct.error for what is not one whole message with one
    question."""
    ident, flags, _, answers, authorities, additional = _HEADER.unpack_from(packet)
    labels, end = _labels(packet, _HEADER.size)
    rdtype, rdclass = _TYPE.unpack_from(packet, end)
    end += _TYPE.size
    edns = None
    if end < len(packet) or answers + authorities + additional:
        edns = _read_edns(dns.wire.Parser(packet, end), answers + authorities, additional)
    return Query(ident, flags, packet[_HEADER.size : end], labels, rdtype, rdclass, edns)


def _labels(packet: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """The labels of a name, and where it ends; ValueError or IndexError for what is no whole name."""
    labels, start = [], at
    while size := packet[at]:
        if size > _MAX_LABEL:
            raise ValueError("the name of the question is compressed, with nothing before it to point to")
        at += 1 + size
        labels.append(packet[at - size : at])
    if at + 1 - start > _MAX_WIRE_NAME:
        raise ValueError("a name that is too long")
    return tuple(labels), at + 1


def _read_edns(parser: dns.wire.Parser, before: int, additional: int) -> int | None:
    """The extended flags in what follows the question; raises as `_read` does."""
    edns: int | None = None
    for number in range(before + additional):
        owner = dns.name.from_wire_parser(parser)
        kind, _, extended, length = parser.get_struct("!HHIH")
        parser.get_bytes(length)
        if kind == dns.rdatatype.OPT:
            if edns is not None or owner != dns.name.root or number < before:
                raise ValueError("more than one OPT record, or one out of place")  # RFC 6891, section 6.1.1
            edns = extended
    if parser.remaining():
        raise ValueError("something follows the message")
    return edns


def _dispatch(query: Query) -> bytes | Wanted:
    if query.edns is not None and query.edns >> 16 & 0xFF:
        return _reply(query, dns.rcode.BADVERS)  # RFC 6891, section 6.1.3
    if query.rdclass != dns.rdataclass.IN:
        return _unsupported(query)
    match query.rdtype:
        case dns.rdatatype.A | dns.rdatatype.AAAA | dns.rdatatype.ANY:
            return _named(query)
        case dns.rdatatype.HTTPS | dns.rdatatype.SVCB:
            return _reply(query)  # exists, says nothing: its address hints would go around the gate
        case dns.rdatatype.PTR:
            return _reverse(query)
        case _:
            # MX, TXT, SRV … need a resolver that knows: a packet tunnel has one, an mtls gateway has not.
            return _unsupported(query)


def _named(query: Query) -> bytes | Wanted:
    if not query.labels:
        return _reply(query)  # NXDOMAIN would say that there is no name at all (RFC 8020)
    name = _host_name(query.labels)
    if name is None:
        return _reply(query, dns.rcode.NXDOMAIN)
    if query.rdtype == dns.rdatatype.ANY:
        return _reply(query, data=b"\x07RFC8482\x00", rdtype=dns.rdatatype.HINFO)  # RFC 8482, section 4.2
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return _reply(query, data=_address(query, _LOOPBACK))
    return AddressWanted(name, query)


@functools.lru_cache(maxsize=256)
def _host_name(labels: tuple[bytes, ...]) -> str | None:
    """The canonical name of a host that may exist; None for what is none, or does not exist here.

    Remembered, since a program asks for both its addresses each time that it connects.
    """
    try:
        if any(b"." in label for label in labels):  # one label that would read as two
            return None
        name = parse_name(b".".join(labels).decode("ascii"))
    except ValueError:
        return None
    return None if name in _ABSENT or name.endswith(_BELOW_ABSENT) else name


def _reverse(query: Query) -> bytes | Wanted:
    try:
        address = ip_address(dns.reversename.to_address(dns.name.Name([*query.labels, b""])))
    except (ValueError, dns.exception.DNSException):
        return _unsupported(query)
    if address.is_loopback:
        return _reply(query, data=dns.name.from_text("localhost").to_wire())
    return NameWanted(address, query) if is_synthetic(address) else _unsupported(query)


def _address(query: Query, found: Synthetic) -> bytes:
    return (found.v4 if query.rdtype == dns.rdatatype.A else found.v6).packed


def _refused(query: Query, refusal: Refusal) -> bytes:
    code = _EDE_CODES.get(refusal.because.id, dns.edns.EDECode.OTHER)
    return _reply(query, dns.rcode.SERVFAIL, reason=(code, str(refusal)))


def _unsupported(query: Query) -> bytes:
    text = "only addresses are answered here; this zone has no resolver for other questions"
    return _reply(query, dns.rcode.REFUSED, reason=(dns.edns.EDECode.NOT_SUPPORTED, text))


def _reply(
    query: Query,
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    *,
    data: bytes | None = None,
    rdtype: int | None = None,
    reason: tuple[dns.edns.EDECode, str] | None = None,
) -> bytes:
    """A reply with at most one record, always below 512 bytes. A reason reaches those who speak EDNS."""
    flags = _QR_RA | query.flags & _RD_CD | rcode & 0xF
    header = _HEADER.pack(query.ident, flags, 1, data is not None, 0, query.edns is not None)
    answer = extra = b""
    if data is not None:
        kind = query.rdtype if rdtype is None else rdtype
        answer = _RECORD.pack(_OWNER_IS_QUESTION, kind, dns.rdataclass.IN, TTL_S, len(data)) + data
    if query.edns is not None:
        option = b"" if reason is None else _extended_error(*reason)
        extended = rcode >> 4 << 24 | query.edns & _DO
        extra = _OPT.pack(0, dns.rdatatype.OPT, _PAYLOAD_BYTES, extended, len(option)) + option
    return header + query.question + answer + extra


def _extended_error(code: dns.edns.EDECode, text: str) -> bytes:
    """RFC 8914; cut between characters."""
    said = text.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    return _OPTION.pack(dns.edns.OptionType.EDE, 2 + len(said), code) + said


def _bare(ident: int, flags: int, rcode: dns.rcode.Rcode) -> bytes:
    """A reply of a header alone, for what could not be read."""
    return _HEADER.pack(ident, _QR_RA | flags & (_OPCODE | _RD) | rcode, 0, 0, 0, 0)
