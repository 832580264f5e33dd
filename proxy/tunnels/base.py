"""What is proved of a tunnel: evidence in, attestation out. Pure; the clock is a parameter.

A driver's own opinion never decides. A tunnel is attested while its peer, and it is the pinned one,
answered a probe that was sent no longer than `MAX_AGE_NS` ago.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from proxy.flow import TunnelState
from proxy.messages.holding import Evidence

SECOND_NS = 1_000_000_000
MAX_AGE_NS = 5 * SECOND_NS // 2  # the law says 3 s for a silent loss; the rest is for scheduling
GIVE_UP_NS = 10 * SECOND_NS  # stale for that long is down


@dataclass(frozen=True, slots=True)
class Attestation:
    """The judgement of a tunnel at one moment. Times are CLOCK_BOOTTIME in nanoseconds.

    `deadline_ns` is 0 unless the state is ATTESTED; `peer` is the pin that the peer proved, or the one
    that it showed instead; `words` is one line for people.
    """

    state: TunnelState
    words: str
    peer: str = ""
    proof_at_ns: int = 0
    deadline_ns: int = 0


def attest(
    evidence: Evidence | None,
    peer: str,
    pins: Collection[str],
    last: Attestation,
    now_ns: int,
) -> Attestation:
    """Judge what a holder saw last. `peer` is the pin of the certificate in `evidence`, "" without one.

    `evidence` None means that there is no holder. `last` is the judgement before this one; it gives the
    last proof of a peer that has fallen silent.
    """
    if evidence is None:
        return Attestation(TunnelState.DOWN, "its holder is not running")
    if evidence.wrong_peer:
        return Attestation(TunnelState.REFUSED, evidence.words)
    if peer and peer not in pins:
        cure = "if that is its key, put it under pins"
        words = f"the gateway showed {peer}, which is not pinned; {cure}"
        return Attestation(TunnelState.REFUSED, words, peer)
    if evidence.broken:
        return Attestation(TunnelState.DOWN, evidence.words)
    if evidence.answered_ns > now_ns:
        return Attestation(TunnelState.DOWN, "its proof lies in the future")
    if evidence.answered_ns and not peer:
        return Attestation(TunnelState.DOWN, "an answer without the peer's certificate proves nothing")
    proof_at_ns = evidence.answered_ns or last.proof_at_ns
    proved = peer or last.peer
    if not proof_at_ns or proved not in pins:
        return Attestation(TunnelState.CONNECTING, evidence.words)
    age_s = (now_ns - proof_at_ns) / SECOND_NS
    silent = f"no proof of the peer for {age_s:.0f} s: {evidence.words}"
    return by_age(proved, proof_at_ns, now_ns, "the pinned peer answers", silent)


def by_age(peer: str, proof_at_ns: int, now_ns: int, answers: str, silent: str) -> Attestation:
    """The judgement of a pinned peer by the age of its last proof, with the words for each case."""
    age_ns = now_ns - proof_at_ns
    if age_ns <= MAX_AGE_NS:
        return Attestation(TunnelState.ATTESTED, answers, peer, proof_at_ns, proof_at_ns + MAX_AGE_NS)
    state = TunnelState.STALE if age_ns <= GIVE_UP_NS else TunnelState.DOWN
    return Attestation(state, silent, peer, proof_at_ns)
