"""What is attested of a packet tunnel: a table of evidence and of the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flow import TunnelState
from proxy.messages.packets import PacketEvidence
from proxy.tunnels.base import GIVE_UP_NS, MAX_AGE_NS, SECOND_NS
from proxy.tunnels.packets import HANDSHAKE_AGE_NS, NOTICED_NS, attest_packets

PIN, OTHER = "the pinned key", "another key"
NOW = 1000 * SECOND_NS
GOOD = PacketEvidence(PIN, "gw:1", NOW, NOW, broken=False, altered=False, underlay="", words="answering")
NEVER = replace(GOOD, handshake_ns=0, answered_ns=0, words="no answer to the probe")
ATTESTED, CONNECTING, DOWN, REFUSED, STALE = (
    TunnelState.ATTESTED,
    TunnelState.CONNECTING,
    TunnelState.DOWN,
    TunnelState.REFUSED,
    TunnelState.STALE,
)


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    evidence: PacketEvidence
    state: TunnelState
    words: str
    later_ns: int = 0

    def __str__(self) -> str:
        return self.sentence


CASES = [
    Case("an answer and a handshake", GOOD, ATTESTED, "the pinned peer answers, at gw:1"),
    Case("the endpoint has moved", replace(GOOD, endpoint="gw:2"), ATTESTED, "answers, at gw:2"),
    Case("an old handshake that still holds", GOOD, ATTESTED, "answers", later_ns=MAX_AGE_NS),
    Case("the moment after the last answer's time", GOOD, STALE, "has fallen silent", MAX_AGE_NS + 1),
    Case("silent for long", GOOD, DOWN, "has fallen silent", later_ns=GIVE_UP_NS + 1),
    Case(
        "silent, and the network says why",
        replace(GOOD, underlay="gw:1 cannot be reached: Connection refused"),
        STALE,
        "cannot be reached: Connection refused",
        MAX_AGE_NS + 1,
    ),
    Case(
        "a target of the probe that is gone, and a peer that is there",
        replace(GOOD, handshake_ns=NOW + NOTICED_NS + 1, words="no answer to the probe"),
        STALE,
        "has renewed its keys since its last answer, but no answer to the probe",
        NOTICED_NS + 2,
    ),
    Case(
        "a handshake that was noticed a little after the answer that rests on it",
        replace(GOOD, handshake_ns=NOW + SECOND_NS, words="no answer to the probe"),
        STALE,
        "has fallen silent",
        MAX_AGE_NS + 1,
    ),
    Case(
        "answers under keys that should be gone",
        replace(GOOD, answered_ns=NOW + HANDSHAKE_AGE_NS + 1),
        DOWN,
        "not renewed for 180 s",
        HANDSHAKE_AGE_NS + 1,
    ),
    Case("no handshake", NEVER, CONNECTING, "has another key than the pinned one, does not know"),
    Case("an answer without a handshake", replace(GOOD, handshake_ns=0), CONNECTING, "no handshake yet"),
    Case(
        "no handshake, and the network says why",
        replace(NEVER, underlay="gw cannot be reached: No route to host"),
        CONNECTING,
        "No route to host",
    ),
    Case("no device yet", replace(NEVER, peer="", endpoint="", words="connecting"), CONNECTING, "connecting"),
    Case("a handshake, and no answer", replace(NEVER, handshake_ns=NOW), CONNECTING, "but no answer to the"),
    Case("another peer", replace(GOOD, peer=OTHER), REFUSED, "is another key, which is not pinned"),
    Case("one peer too many", replace(GOOD, peer=f"{PIN},{OTHER}"), REFUSED, "which is not pinned"),
    Case("other allowed addresses", replace(GOOD, altered=True), REFUSED, "was changed by somebody"),
    Case("no peer, and it was altered", replace(GOOD, peer="", altered=True), REFUSED, "was changed"),
    Case(
        "no device any more", replace(GOOD, broken=True, words="its device is gone"), DOWN, "device is gone"
    ),
    Case("an answer from the future", replace(GOOD, answered_ns=NOW + 1), DOWN, "lies in the future"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_judgements(case: Case) -> None:
    judged = attest_packets(case.evidence, [PIN], NOW + case.later_ns)
    assert (judged.state, case.words in judged.words) == (case.state, True), judged
    assert (judged.deadline_ns > 0) is (case.state is ATTESTED)


@given(
    st.builds(
        PacketEvidence,
        st.sampled_from(["", PIN, OTHER, f"{PIN},{OTHER}"]),
        st.just("gw:1"),
        st.integers(0, 3 * NOW),
        st.integers(0, 3 * NOW),
        st.booleans(),
        st.booleans(),
        st.just(""),
        st.just("words"),
    ),
    st.integers(0, 3 * NOW),
)
def test_only_the_whole_proof_attests(evidence: PacketEvidence, now_ns: int) -> None:
    """The oracle: every clause of the rule, said once more."""
    judged = attest_packets(evidence, [PIN], now_ns)
    whole = (
        evidence.peer == PIN
        and not evidence.broken
        and not evidence.altered
        and 0 < evidence.handshake_ns <= now_ns <= evidence.handshake_ns + HANDSHAKE_AGE_NS
        and 0 < evidence.answered_ns <= now_ns <= evidence.answered_ns + MAX_AGE_NS
    )
    assert (judged.state is ATTESTED) is whole
    if whole:
        assert judged.deadline_ns == evidence.answered_ns + MAX_AGE_NS
    else:
        assert judged.deadline_ns == 0
