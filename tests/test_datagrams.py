"""The table of UDP exchanges against a naive one; the packets that the gate makes, read by another hand."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.datagrams import DatagramTable
from proxy.ip_packets import MAX_PAYLOAD, End, checksum, datagram, refusal

MOST, IDLE_S = 3, 10.0


def ends(number: int) -> tuple[End, End]:
    return End(ip_address("100.64.0.1"), 1000 + number), End(ip_address("192.0.2.7"), 53)


class Naive:
    """Every use with its time, in a list."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, str]] = []  # last use, number, exchange

    def use(self, number: int, now: float) -> str | None:
        for row in self.rows:
            if row[1] == number:
                self.rows.remove(row)
                self.rows.append((now, number, row[2]))
                return row[2]
        return None

    def add(self, number: int, exchange: str, now: float) -> str | None:
        self.rows = [row for row in self.rows if row[1] != number]
        self.rows.append((now, number, exchange))
        return self.rows.pop(0)[2] if len(self.rows) > MOST else None

    def silent(self, now: float) -> list[str]:
        gone = [row for row in self.rows if now - row[0] >= IDLE_S]
        self.rows = [row for row in self.rows if row not in gone]
        return [row[2] for row in gone]


@given(
    st.lists(
        st.tuples(st.sampled_from(["use", "add", "silent", "remove"]), st.integers(0, 5), st.integers(0, 4))
    )
)
def test_the_table_does_what_a_list_would(steps: list[tuple[str, int, int]]) -> None:
    table: DatagramTable[tuple[End, End], str] = DatagramTable(MOST, IDLE_S)
    naive = Naive()
    now = 0.0
    for at, (what, number, pause_s) in enumerate(steps):
        now += pause_s
        match what:
            case "use":
                assert table.use(ends(number), now) == naive.use(number, now)
            case "add":
                assert table.add(ends(number), f"e{at}", now) == naive.add(number, f"e{at}", now)
            case "silent":
                assert list(table.silent(now)) == naive.silent(now)
            case "remove":
                there = naive.use(number, now)
                if there is not None:
                    assert table.use(ends(number), now) == there
                    table.remove(ends(number), "another")  # which has its place no more
                    assert table.use(ends(number), now) == there
        assert len(table) == len(naive.rows) <= MOST
        assert list(table.all()) == [(ends(row[1]), row[2]) for row in naive.rows]


# -- packets -----------------------------------------------------------------------------------------

FOUR = End(ip_address("100.64.0.1"), 40000), End(ip_address("203.0.113.9"), 443)
SIX = End(ip_address("fd00:7a67:1::1"), 40000), End(ip_address("2001:db8::9"), 443)


def naive_sum(data: bytes) -> int:
    """The ones' complement sum, word by word (RFC 1071)."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=200))
def test_what_has_a_checksum_sums_up_to_all_ones(data: bytes) -> None:
    data = data[: len(data) // 2 * 2]
    assert naive_sum(data + checksum(data).to_bytes(2)) == 0xFFFF


@pytest.mark.parametrize("payload", [b"", b"x", b"ping", bytes(1400), b"\xff" * 1399])
def test_a_datagram_over_ipv6_adds_up(payload: bytes) -> None:
    client, target = SIX
    packet = datagram(target, client, payload)
    assert packet[40:44] == struct.pack("!HH", 443, 40000) and packet[48:] == payload
    covered = packet[8:40] + struct.pack("!II", len(packet) - 40, 17) + packet[40:]
    assert naive_sum(covered) == 0xFFFF
    assert packet[8:24] == target.address.packed and packet[24:40] == client.address.packed


def test_a_datagram_over_ipv4_has_its_ends_and_length() -> None:
    client, target = FOUR
    packet = datagram(target, client, b"ping")
    assert naive_sum(packet[:20]) == 0xFFFF
    assert struct.unpack("!H", packet[2:4])[0] == len(packet) == 32
    assert (socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])) == ("203.0.113.9", "100.64.0.1")
    assert packet[20:26] == struct.pack("!HHH", 443, 40000, 12) and packet[28:] == b"ping"


def test_what_does_not_fit_is_no_datagram() -> None:
    assert len(datagram(*FOUR, bytes(MAX_PAYLOAD))) == 65535
    with pytest.raises(ValueError, match="no datagram"):
        datagram(*FOUR, bytes(MAX_PAYLOAD + 1))


def test_an_error_says_which_datagram_it_is_about() -> None:
    client, target = FOUR
    packet = refusal(client, target, b"ping" * 100)
    assert (packet[9], packet[20], packet[21]) == (1, 3, 13)
    assert naive_sum(packet[20:]) == 0xFFFF
    inner = packet[28:]
    assert inner[12:16] == client.address.packed and inner[16:20] == target.address.packed
    assert inner[20:24] == struct.pack("!HH", 40000, 443)
    client, target = SIX
    packet = refusal(client, target, b"ping")
    assert (packet[6], packet[40], packet[41]) == (58, 1, 1)
    covered = packet[8:40] + struct.pack("!II", len(packet) - 40, 58) + packet[40:]
    assert naive_sum(covered) == 0xFFFF
