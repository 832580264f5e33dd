"""What is attested: a table of evidence, of what was judged before, and of the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flow import TunnelState
from proxy.messages.holding import Evidence
from proxy.tunnels.base import GIVE_UP_NS, MAX_AGE_NS, SECOND_NS, Attestation, attest

PIN, OTHER = "sha256:right", "sha256:wrong"
NOW = 1000 * SECOND_NS
DOWN = Attestation(TunnelState.DOWN, "")
GOOD = Attestation(TunnelState.ATTESTED, "the pinned peer answers", PIN, NOW, NOW + MAX_AGE_NS)
ANSWER = Evidence("certificate", NOW, broken=False, wrong_peer=False, words="answering")
SILENCE = Evidence("", 0, broken=False, wrong_peer=False, words="no answer from gw:1 in 1 s")


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    evidence: Evidence | None
    peer: str
    state: TunnelState
    words: str
    last: Attestation = DOWN
    later_ns: int = 0

    def __str__(self) -> str:
        return self.sentence


CASES = [
    Case("no holder", None, "", TunnelState.DOWN, "its holder is not running", last=GOOD),
    Case("an answer of the pinned peer", ANSWER, PIN, TunnelState.ATTESTED, "the pinned peer answers"),
    Case(
        "an answer of another", ANSWER, OTHER, TunnelState.REFUSED, "showed sha256:wrong, which is not pinned"
    ),
    Case("another, after the right one", ANSWER, OTHER, TunnelState.REFUSED, "is not pinned", last=GOOD),
    Case(
        "a certificate that does not verify",
        replace(SILENCE, broken=True, wrong_peer=True, words="expired"),
        "",
        TunnelState.REFUSED,
        "expired",
        last=GOOD,
    ),
    Case(
        "a wrong peer is refused even with the right pin",
        replace(ANSWER, wrong_peer=True, words="expired"),
        PIN,
        TunnelState.REFUSED,
        "expired",
    ),
    Case(
        "a connection that broke closes at once",
        replace(SILENCE, broken=True, words="reset"),
        "",
        TunnelState.DOWN,
        "reset",
        last=GOOD,
    ),
    Case(
        "even if it had answered",
        replace(ANSWER, broken=True, words="reset"),
        PIN,
        TunnelState.DOWN,
        "reset",
        last=GOOD,
    ),
    Case("a proof from the future", ANSWER, PIN, TunnelState.DOWN, "lies in the future", later_ns=-1),
    Case(
        "an answer without a certificate proves nothing",
        replace(ANSWER, certificate=""),
        "",
        TunnelState.DOWN,
        "proves nothing",
        last=GOOD,
    ),
    Case(
        "a handshake and no answer yet",
        replace(ANSWER, answered_ns=0),
        PIN,
        TunnelState.CONNECTING,
        "answering",
    ),
    Case("silence from the beginning", SILENCE, "", TunnelState.CONNECTING, "no answer"),
    Case(
        "silence while the proof is fresh",
        SILENCE,
        "",
        TunnelState.ATTESTED,
        "",
        last=GOOD,
        later_ns=MAX_AGE_NS,
    ),
    Case(
        "silence past that",
        SILENCE,
        "",
        TunnelState.STALE,
        "no proof of the peer for 3 s: no answer",
        last=GOOD,
        later_ns=MAX_AGE_NS + 1,
    ),
    Case("silence for long", SILENCE, "", TunnelState.STALE, "10 s", last=GOOD, later_ns=GIVE_UP_NS),
    Case("silence for good", SILENCE, "", TunnelState.DOWN, "10 s", last=GOOD, later_ns=GIVE_UP_NS + 1),
    Case(
        "the machine slept",
        ANSWER,
        PIN,
        TunnelState.DOWN,
        "no proof of the peer for 3600 s",
        last=GOOD,
        later_ns=3600 * SECOND_NS,
    ),
    Case(
        "silence after a refused peer is not its proof",
        SILENCE,
        "",
        TunnelState.CONNECTING,
        "no answer",
        last=Attestation(TunnelState.REFUSED, "", OTHER),
    ),
    Case(
        "silence of a peer that is pinned no more",
        SILENCE,
        "",
        TunnelState.CONNECTING,
        "no answer",
        last=replace(GOOD, peer=OTHER),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attest(case: Case) -> None:
    judged = attest(case.evidence, case.peer, [PIN], case.last, NOW + case.later_ns)
    assert judged.state is case.state
    assert case.words in judged.words
    assert "\n" not in judged.words


def test_nobody_is_attested_without_pins() -> None:
    assert attest(ANSWER, PIN, [], GOOD, NOW).state is TunnelState.REFUSED
    assert attest(SILENCE, "", [], GOOD, NOW).state is TunnelState.CONNECTING


EVIDENCE = st.builds(
    Evidence,
    certificate=st.sampled_from(["", "certificate"]),
    answered_ns=st.integers(-1, 30 * SECOND_NS),
    broken=st.booleans(),
    wrong_peer=st.booleans(),
    words=st.just("words"),
)


@given(
    st.lists(st.tuples(EVIDENCE | st.none(), st.sampled_from(["", PIN, OTHER]), st.integers(0, SECOND_NS)))
)
def test_a_lease_always_rests_on_a_fresh_answer_of_the_pinned_peer(
    story: list[tuple[Evidence | None, str, int]],
) -> None:
    judged, now_ns = DOWN, 0
    answers: list[int] = []
    for evidence, peer, passed_ns in story:
        now_ns += passed_ns
        judged = attest(evidence, peer, [PIN], judged, now_ns)
        if evidence is not None and evidence.answered_ns and peer == PIN:
            answers.append(evidence.answered_ns)
        if judged.state is TunnelState.ATTESTED:
            assert judged.peer == PIN
            assert judged.proof_at_ns in answers
            assert judged.proof_at_ns <= now_ns <= judged.deadline_ns == judged.proof_at_ns + MAX_AGE_NS
            assert evidence is not None
            assert not evidence.broken
        else:
            assert judged.deadline_ns == 0
