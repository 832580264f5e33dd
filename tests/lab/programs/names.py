"""A resolver behind a tunnel: `names.py ADDRESS FILE LIFETIME`. FILE is a JSON map of names to addresses.

It is read for each question, and FILE.log gets a line. A list of lists alternates from question to question.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import socket
import struct
import sys
from pathlib import Path

KINDS = {1: 4, 28: 6}  # A and AAAA, and the version of the addresses they have


def answer(data: bytes, names: dict[str, list[object]], turn: int, lifetime_s: int) -> tuple[str, bytes]:
    """The name that is asked for, and the reply."""
    labels, at = [], 12
    while size := data[at]:
        labels.append(data[at + 1 : at + 1 + size].decode())
        at += size + 1
    name, (kind,) = ".".join(labels).lower(), struct.unpack("!H", data[at + 1 : at + 3])
    found = names.get(name)
    if found and isinstance(found[0], list):
        found = found[turn % len(found)]  # type: ignore[assignment] # a list of lists
    addresses = [ipaddress.ip_address(str(one)) for one in found or ()]
    right = [one.packed for one in addresses if one.version == KINDS.get(kind)]
    code = 0x8180 if found is not None else 0x8183
    head = data[:2] + struct.pack("!HHHHH", code, 1, len(right), 0, 0) + data[12 : at + 5]
    rows = [b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, lifetime_s, len(one)) + one for one in right]
    return name, head + b"".join(rows)


def main() -> None:
    """Answer until ended."""
    address, file, lifetime_s = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock, Path(f"{file}.log").open("a", buffering=1) as log:
        sock.bind((address, 53))
        print("ready", flush=True)
        for turn in itertools.count():
            data, sender = sock.recvfrom(4096)
            name, reply = answer(data, json.loads(file.read_text()), turn, lifetime_s)
            print(name, file=log)
            sock.sendto(reply, sender)


if __name__ == "__main__":
    main()
