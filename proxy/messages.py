"""What the processes say to each other. Who may say what is the table at the end of each section.

Values only. Times ending in `_ns` are CLOCK_BOOTTIME, which goes on while the machine sleeps.
`descriptors` is how many a message brings, (least, most); none where it is not said.
Standard library only: the holder imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

# -- supervisor <-> worker ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TunnelSetup:
    """One mtls tunnel, as holder and worker need it. Host names and pins; no key."""

    name: str
    host: str
    port: int
    server_name: str
    pins: tuple[str, ...]
    judges_addresses: bool


@dataclass(frozen=True, slots=True)
class Configure:
    """To a new worker, once. Descriptors: the policy, the audit segment, then for each tunnel the CA, the
    client certificate, its key and a link to the tunnel's holder."""

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


@dataclass(frozen=True, slots=True)
class Listen:
    """The ears of a new bubble; descriptors in the order of namespaces.LISTENERS."""

    descriptors: ClassVar[tuple[int, int]] = (6, 6)

    bubble: str
    enforcement: str


@dataclass(frozen=True, slots=True)
class BubbleGone:
    """A bubble has ended: close its ears, cut its flows."""

    bubble: str


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
class NewPolicy:
    """The policy is replaced; one descriptor, its text. Open flows are judged again."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)

    policy_file: str


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


TO_WORKER = (
    Configure, Listen, BubbleGone, Lease, Door, NewPolicy, NewSegment, NoSegment, NameAnswer, AddressAnswer,
)  # fmt: skip
type ToWorker = (
    Configure
    | Listen
    | BubbleGone
    | Lease
    | Door
    | NewPolicy
    | NewSegment
    | NoSegment
    | NameAnswer
    | AddressAnswer
)


@dataclass(frozen=True, slots=True)
class Sealed:
    """The worker's first word: it looked, and found itself unable to make a socket (or cooperative)."""

    structural: bool


@dataclass(frozen=True, slots=True)
class Serving:
    """A bubble's ears are served."""

    bubble: str


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
class WantSegment:
    """The audit segment is full."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker counts, once a second."""

    open_flows: int
    admitted: int
    refused: int
    bytes_up: int
    bytes_down: int
    audit_trouble: str
    policy_hash: str


FROM_WORKER = (Sealed, Serving, AskName, AskAddress, WantSegment, Report)
type FromWorker = Sealed | Serving | AskName | AskAddress | WantSegment | Report

# -- worker <-> the holder of a tunnel ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Connected sockets to the pinned gateway, please."""

    count: int


@dataclass(frozen=True, slots=True)
class Dialled:
    """As many descriptors as could be connected; the reason when there are fewer than asked for."""

    descriptors: ClassVar[tuple[int, int]] = (0, 64)

    trouble: str


# -- supervisor <-> the holder of a tunnel -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """To a new holder, once. Descriptors: CA, client certificate, key."""

    descriptors: ClassVar[tuple[int, int]] = (3, 3)

    tunnel: TunnelSetup
    probe_every_ms: int
    probe_limit_ms: int
    drop_to_uid: int


@dataclass(frozen=True, slots=True)
class Serve:
    """A worker's end of a link to this holder; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)


TO_HOLDER = (Hold, Serve)
type ToHolder = Hold | Serve


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a holder saw of its peer. It judges nothing.

    `certificate` is the peer's, DER in base64, empty before a handshake; `answered_ns` the moment at which
    the last answered probe was *sent*, 0 when none was on this connection; `broken` the peer refused,
    reset or could not be reached; `wrong_peer` its certificate did not verify.
    """

    certificate: str
    answered_ns: int
    broken: bool
    wrong_peer: bool
    words: str


# -- supervisor <-> door -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The zone's listeners, in the order of namespaces.LISTENERS, or why there are none."""

    descriptors: ClassVar[tuple[int, int]] = (0, 6)

    trouble: str


# -- commands <-> supervisor (the admin socket) ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """A question of a command: `status`, `explain`; parameters and answer are JSON texts."""

    what: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to Ask."""

    text: str


@dataclass(frozen=True, slots=True)
class Denied:
    """No; one line, with the cure."""

    reason: str


@dataclass(frozen=True, slots=True)
class Enter:
    """A bubble of this user wants into a zone. Descriptors: its user and its network namespace.

    `again` names the bubble that it was under an earlier daemon.
    """

    descriptors: ClassVar[tuple[int, int]] = (2, 2)

    zone: str
    again: str
    cooperative: bool
    pid: int


@dataclass(frozen=True, slots=True)
class Entered:
    """The bubble's traffic is served."""

    bubble: str
    zone: str
    enforcement: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The daemon stops and takes its bubbles with it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the daemon; with `keep_bubbles` programs stay, shut in, until the next daemon."""

    keep_bubbles: bool


TO_SUPERVISOR = (Ask, Enter, Stop)
type ToSupervisor = Ask | Enter | Stop
TO_COMMAND = (Answer, Denied, Entered, Leave)
type ToCommand = Answer | Denied | Entered | Leave
