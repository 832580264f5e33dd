"""A supervisor and one of its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proxy.messages.holding import TunnelSetup
from proxy.messages.inspection import InspectorDoor, NoInspector, WantInspector


@dataclass(frozen=True, slots=True)
class Configure:
    """To a new worker, once. Descriptors: the policy, the audit segment, then for each tunnel, if it is mtls,
    the CA, the client certificate and its key, and for every tunnel a link to its holder."""

    descriptors: ClassVar[tuple[int, int]] = (2, 62)

    zone: str
    user: str
    groups: tuple[str, ...]
    policy_name: str
    policy_file: str
    enforcement: str
    tunnels: tuple[TunnelSetup, ...]
    counted_only: bool
    max_flows: int
    segment_bytes: int
    inspects: bool = False


@dataclass(frozen=True, slots=True)
class Listen:
    """The ears of a new bubble; descriptors in the order of namespaces.LISTENERS and DATAGRAM_EARS."""

    descriptors: ClassVar[tuple[int, int]] = (6, 10)

    bubble: str
    enforcement: str


@dataclass(frozen=True, slots=True)
class BubbleGone:
    """A bubble has ended: close its ears, cut its flows."""

    bubble: str


@dataclass(frozen=True, slots=True)
class ListenExplicit:
    """An explicit listener, in place of the one that had this name. Descriptors: its socket, who may log in,
    and where clients show certificates the CA of clients, its own certificate and key."""

    descriptors: ClassVar[tuple[int, int]] = (2, 5)

    name: str
    kind: str
    auth: str


@dataclass(frozen=True, slots=True)
class AssociationDoor:
    """A link to a new datagram holder of an explicit listener; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)

    listener: str


@dataclass(frozen=True, slots=True)
class Lease:
    """What is proved of a tunnel now. Past `deadline_ns` the worker admits nothing and cuts; 0 is closed."""

    tunnel: str
    state: str
    words: str
    peer: str
    proof_at_ns: int
    deadline_ns: int


@dataclass(frozen=True, slots=True)
class Door:
    """A new link to a tunnel's holder, which was started again; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)

    tunnel: str


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """A tunnel's certificate was renewed. Descriptors: CA, client certificate, its key."""

    descriptors: ClassVar[tuple[int, int]] = (3, 3)

    tunnel: str


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """The policy is replaced; one descriptor, its text. Open flows are judged again; answered by Done."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)

    question: int
    policy_file: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Cut every flow and admit none, and say these words; without words it is unlocked. Answered by Done."""

    question: int
    words: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut the open flows that fit; what is empty, or port 0, fits all. Answered by Done.

    `host` is a canonical name or an address, or `*.` and a name for every name below it.
    """

    question: int
    flow: str
    host: str
    port: int
    because: str
    user: str = ""


@dataclass(frozen=True, slots=True)
class TellFlows:
    """The open flows after a place in the list, at most so many. Answered by FlowPage."""

    question: int
    after: int
    most: int


@dataclass(frozen=True, slots=True)
class NewSegment:
    """The next audit segment; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)


@dataclass(frozen=True, slots=True)
class NoSegment:
    """There is no next audit segment; new flows are denied until there is."""

    reason: str


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """The answer to AskName: addresses, or why there are none and the cure."""

    question: int
    v4: str
    v6: str
    fault: str
    refused: str
    cure: str


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """The answer to AskAddress; an unknown address has an empty name."""

    question: int
    name: str


@dataclass(frozen=True, slots=True)
class QuotaAnswer:
    """The answer to AskQuota: bytes that may go until `until_s` (seconds since 1970), or why none may."""

    question: int
    granted: int
    until_s: int
    refused: str


TO_WORKER = (
    Configure, Listen, ListenExplicit, AssociationDoor, BubbleGone, Lease, Door, NewCertificate, NewPolicy,
    NewSegment, NoSegment, NameAnswer, AddressAnswer, QuotaAnswer, Lock, Cut, TellFlows,
    InspectorDoor, NoInspector,
)  # fmt: skip
type ToWorker = (
    Configure
    | Listen
    | ListenExplicit
    | AssociationDoor
    | BubbleGone
    | Lease
    | Door
    | NewCertificate
    | NewPolicy
    | NewSegment
    | NoSegment
    | NameAnswer
    | AddressAnswer
    | QuotaAnswer
    | Lock
    | Cut
    | TellFlows
    | InspectorDoor
    | NoInspector
)


@dataclass(frozen=True, slots=True)
class Sealed:
    """The worker's first word: it looked, and found itself unable to make a socket (or cooperative)."""

    structural: bool


@dataclass(frozen=True, slots=True)
class Serving:
    """A bubble's ears are served, or why they are not."""

    bubble: str
    trouble: str


@dataclass(frozen=True, slots=True)
class AskName:
    """A synthetic address for a name, please."""

    question: int
    bubble: str
    name: str


@dataclass(frozen=True, slots=True)
class AskAddress:
    """The name of a synthetic address that this bubble was told, please."""

    question: int
    bubble: str
    address: str


@dataclass(frozen=True, slots=True)
class AskQuota:
    """A portion of a quota, please; it counts as used from then on. `user` counts where users log in."""

    question: int
    user: str
    destination: str
    transfer: str
    per: str
    every: str
    wanted: int


@dataclass(frozen=True, slots=True)
class WantSegment:
    """The audit segment is full."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker counts, once a second. `segments` is how many NewSegment it has gone on to."""

    open_flows: int
    admitted: int
    refused: int
    bytes_up: int
    bytes_down: int
    audit_trouble: str
    policy_hash: str
    segments: int


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to NewPolicy, Lock and Cut: how many flows were cut, or why it was not done."""

    question: int
    cut: int
    trouble: str


@dataclass(frozen=True, slots=True)
class FlowRow:
    """One open flow, as people are shown it."""

    id: str
    user: str
    bubble: str
    destination: str
    protocol: str
    tunnel: str
    age_s: float
    bytes_up: int
    bytes_down: int
    because: str


@dataclass(frozen=True, slots=True)
class FlowPage:
    """The answer to TellFlows; `after` is where the next page begins, 0 when there is none."""

    question: int
    flows: tuple[FlowRow, ...]
    after: int


FROM_WORKER = (
    Sealed, Serving, AskName, AskAddress, AskQuota, WantSegment, Report, Done, FlowPage, WantInspector,
)  # fmt: skip
type FromWorker = (
    Sealed
    | Serving
    | AskName
    | AskAddress
    | AskQuota
    | WantSegment
    | Report
    | Done
    | FlowPage
    | WantInspector
)
