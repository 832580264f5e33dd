"""Commands to the supervisor, over the admin socket, and its answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """A question of a command: `status`, `explain`, `flows`; parameters and answer are JSON texts."""

    what: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Order:
    """A command that changes something: `reload`, `kill`, `lock`, `unlock`; JSON texts as with Ask."""

    what: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to Ask and Order."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """The beginning, or more, of an answer that is longer than a message; its end is an Answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Denied:
    """No; one line, with the cure."""

    reason: str


@dataclass(frozen=True, slots=True)
class Enter:
    """A bubble wants into a zone: the namespaces of process `pid`, a child of who asks.

    A number and no descriptors: closing what somebody else has opened may take as long as they like. `again`
    names the bubble that it was under an earlier daemon; `attached` says, for people, which namespace it is
    that was there before, and is empty for a bubble of its own.
    """

    zone: str
    again: str
    cooperative: bool
    pid: int
    attached: str


@dataclass(frozen=True, slots=True)
class Entered:
    """The bubble's traffic is served. `roots` (PEM) are to be trusted in it, if the zone is inspected."""

    bubble: str
    zone: str
    enforcement: str
    roots: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The daemon stops and takes its bubbles with it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the daemon; with `keep_bubbles` programs stay, shut in, until the next daemon."""

    keep_bubbles: bool


TO_SUPERVISOR = (Ask, Order, Enter, Stop)
type ToSupervisor = Ask | Order | Enter | Stop
TO_COMMAND = (AnswerPart, Answer, Denied, Entered, Leave)
type ToCommand = AnswerPart | Answer | Denied | Entered | Leave
