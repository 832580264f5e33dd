"""Run by tests in new user and mount namespaces: audit and journal on a real disk that is full.

Argument: an empty folder, on which a tmpfs of 64 KiB is mounted. Ends with 0 when all held.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from audit_records import NOW, verdict

from proxy.allocator import Allocator, NameFault, Synthetic
from proxy.audit import AuditUnwritable, GapRecord, HeaderRecord, Segment, VerdictRecord
from proxy.chain import read, verify
from proxy.flow import Refusal
from proxy.segments import Segments


def audit(disk: Path) -> None:
    """Verdicts are refused while the disk is full; none is torn; the gap is told when there is room."""
    segments = Segments(disk / "audit", clock=lambda: NOW)
    opened = segments.open("corporate", "w1")
    segment = Segment(opened.fd, max_bytes=1 << 20)
    filler = disk / "filler"
    filler.write_bytes(bytes(32768))
    written = 0
    with pytest.raises(AuditUnwritable, match="cannot be written"):
        while True:
            segment.verdict(verdict(flow=f"f{written}"))
            written += 1
    assert written > 10 and segment.trouble
    with pytest.raises(AuditUnwritable):
        segments.open("corporate", "w2")
        segments.seal(opened.path)
    for _ in range(3):
        with pytest.raises(AuditUnwritable):
            segment.verdict(verdict(flow="lost"))
    assert opened.path.read_bytes().endswith(b"}\n"), "the piece of the last write was taken back"
    filler.unlink()
    segment.verdict(verdict(flow="again"))
    assert segment.trouble == ""
    records = list(read(opened.path))
    flows = [record.flow for record in records if isinstance(record, VerdictRecord)]
    assert flows == [f"f{i}" for i in range(written)] + ["again"]
    assert [type(record) for record in records[-2:]] == [GapRecord, VerdictRecord]
    assert isinstance(records[0], HeaderRecord)
    gap = records[-2]
    assert isinstance(gap, GapRecord) and gap.lost == 4
    segment.close()
    segments.seal(opened.path)
    assert verify(disk / "audit").problems == ()


def journal(disk: Path) -> None:
    """New names are refused while the disk is full, known ones stay, and a restart changes neither."""
    path = disk / "names"
    names = Allocator(path, clock=lambda: 0.0, boot="b")
    known = names.allocate("b1", "known.example")
    assert isinstance(known, Synthetic)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, room(disk))))
    told = 0
    while not isinstance(answer := names.allocate("b1", f"n{told}.example"), Refusal):
        told += 1
    assert answer.because.id == NameFault.JOURNAL
    names.close()
    names = Allocator(path, clock=lambda: 0.0, boot="b")
    assert names.name_of("b1", known.v4) == "known.example"
    assert isinstance(names.allocate("b1", "new.example"), Refusal)
    filler.unlink()
    assert isinstance(names.allocate("b1", "new.example"), Synthetic)
    names.close()
    names = Allocator(path, clock=lambda: 0.0, boot="b")
    for i in range(told):
        assert isinstance(names.allocate("b1", f"n{i}.example"), Synthetic)
    names.close()


def room(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_bsize


def main() -> None:
    for check in (audit, journal):
        disk = Path(sys.argv[1])
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(disk)], check=True)
        check(disk)
        subprocess.run(["umount", str(disk)], check=True)


if __name__ == "__main__":
    main()
