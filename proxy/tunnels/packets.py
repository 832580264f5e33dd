"""What is proved of a tunnel that carries packets: evidence in, attestation out. Pure.

It is attested while its device is as it was made, the device's only peer has the pinned key and shook hands
lately, and a probe that was sent no longer than `MAX_AGE_NS` ago was answered. A handshake alone may be old
news; a probe alone says nothing of keys that somebody changed.
"""

from __future__ import annotations

from collections.abc import Collection

from proxy.flow import TunnelState
from proxy.messages.packets import PacketEvidence
from proxy.tunnels.base import SECOND_NS, Attestation, by_age

# REJECT_AFTER_TIME of WireGuard: a session that is older carries nothing any more.
HANDSHAKE_AGE_NS = 180 * SECOND_NS
# A handshake is dated by when it was noticed: one that answers rest on may seem that much later than they.
NOTICED_NS = 3 * SECOND_NS
_WHY_SILENT = "or datagrams are lost on the way"


def attest_packets(evidence: PacketEvidence, pins: Collection[str], now_ns: int) -> Attestation:
    """Judge what the holders of a packet tunnel saw last."""
    peer = evidence.peer
    if evidence.broken:
        return Attestation(TunnelState.DOWN, evidence.words)
    if peer and peer not in pins:
        return Attestation(
            TunnelState.REFUSED,
            f"the peer of its device is {peer}, which is not pinned: who changed it?",
            peer,
        )
    if evidence.altered:
        return Attestation(
            TunnelState.REFUSED, "its device was changed by somebody: keys or allowed addresses"
        )
    if max(evidence.answered_ns, evidence.handshake_ns) > now_ns:
        return Attestation(TunnelState.DOWN, "its proof lies in the future")
    if not peer or not evidence.handshake_ns:
        return Attestation(TunnelState.CONNECTING, _no_handshake(evidence))
    if not evidence.answered_ns:
        return Attestation(TunnelState.CONNECTING, f"{peer} is there, but {evidence.words}", peer)
    answers = f"the pinned peer answers, at {evidence.endpoint}"
    if now_ns - evidence.handshake_ns > HANDSHAKE_AGE_NS:
        proof_at_ns = min(evidence.answered_ns, evidence.handshake_ns)
        return by_age(peer, proof_at_ns, now_ns, answers, "its keys were not renewed for 180 s")
    return by_age(peer, evidence.answered_ns, now_ns, answers, _silent(evidence))


def _no_handshake(evidence: PacketEvidence) -> str:
    if evidence.underlay:
        return evidence.underlay
    if not evidence.endpoint:
        return evidence.words
    return (
        f"no handshake yet: {evidence.endpoint} has another key than the pinned one, does not know this "
        f"device's key, {_WHY_SILENT}"
    )


def _silent(evidence: PacketEvidence) -> str:
    """Why a peer that had answered does not: what is known of it, in the order of how sure it is."""
    if evidence.underlay:
        return evidence.underlay
    if evidence.handshake_ns - evidence.answered_ns > NOTICED_NS:
        return f"the peer has renewed its keys since its last answer, but {evidence.words}"
    return (
        f"{evidence.endpoint} has fallen silent: it no longer knows this device's key, another peer has "
        f"taken its place, {_WHY_SILENT}"
    )
