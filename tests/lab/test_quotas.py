"""A quota of a real gate: cut at the byte, refused with the reason, and remembered over SIGKILL."""

from __future__ import annotations

import signal

from lab import kernel
from lab.conftest import AS_ROOT, NewGate, Watch
from lab.gate import Gate

NAME = "intranet.corp.example"
QUOTA = f"    bulk: {{to: {NAME}, quota: {{upload: 1MiB, per: user, every: month}}}}\n"
BODY = b"x" * (600 << 10)


def upload(gate: Gate) -> str:
    """What curl says that sends 600 KiB."""
    told = ("curl", "-sS", "-m", "60", "-i", "--http1.1", "-H", "Expect:", "--data-binary", "@-")
    done = gate.run(*told, f"http://{NAME}/upload", stdin=BODY)
    return done.out + done.err


@AS_ROOT
def test_a_quota_is_kept_to_the_byte_and_over_a_kill(new_gate: NewGate, watch: Watch) -> None:
    gate = new_gate(destinations=QUOTA).attested()
    assert "200" in upload(gate).partition("\n")[0]
    cut = upload(gate)
    assert "200" not in cut and "403" not in cut, cut
    end = gate.record("end", lambda row: "quota used up" in row["why"])
    both = [row["bytes_up"] for row in gate.records() if row["record"] == "end" and row["name"] == NAME]
    assert sum(both) == 1 << 20 and end["bytes_up"] < len(BODY)
    refused = upload(gate)
    assert "403" in refused.partition("\n")[0] and "quota of bulk" in refused and "opens again" in refused
    (told,) = gate.status()["quotas"]
    assert (told["destination"], told["used_bytes"], told["limit_bytes"]) == ("bulk", 1 << 20, 1 << 20)
    assert "1.0 MiB of 1.0 MiB" in gate.call("status").out
    gate.end(signal.SIGKILL)
    gate.start().attested()
    again = kernel.until("it serves again", lambda: "quota of bulk" in upload(gate))
    assert again
    watch.only_the_gateway()
