"""Records as a worker writes them, for the tests of audit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from proxy.audit import EndRecord, VerdictRecord
from proxy.flow import Because, Origin, Protocol, Verdict

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


def verdict(**changes: Any) -> VerdictRecord:
    return replace(
        VerdictRecord(
            at=NOW,
            flow="f1",
            zone="corporate",
            user="alice",
            bubble="b1",
            name="intranet.example",
            address=None,
            port=443,
            protocol=Protocol.TLS,
            verdict=Verdict.TUNNEL,
            because=Because(Origin.RULE, "intranet", "the intranet is for everyone", "corporate.yaml:12:3"),
            policy="sha256:abcd",
            tunnel="hq",
            peer="SHA256:peer",
            proof_age_s=0.25,
            enforcement="structural",
        ),
        **changes,
    )


def end(of: VerdictRecord | None = None, **changes: Any) -> EndRecord:
    record = EndRecord(
        at=NOW + timedelta(seconds=2),
        of=of or verdict(),
        bytes_up=10,
        bytes_down=2000,
        duration_s=2.0,
        why="closed by both",
    )
    return replace(record, **changes)
