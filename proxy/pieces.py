"""Answers of the daemon that are longer than one message: cut in pieces, and put together again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from proxy import ipc
from proxy.messages.admin import Answer, AnswerPart, Denied

PIECE_CHARACTERS = 16 * 1024  # each of which JSON may write as six bytes


def cut(answer: Answer | Denied) -> Iterator[AnswerPart | Answer | Denied]:
    """The messages in which an answer goes: parts, and the end of it."""
    if isinstance(answer, Answer):
        text = answer.text
        while len(text) > PIECE_CHARACTERS:
            yield AnswerPart(text[:PIECE_CHARACTERS])
            text = text[PIECE_CHARACTERS:]
        answer = Answer(text)
    yield answer


def receive(sock: socket.socket) -> Answer | Denied:
    """A whole answer from a blocking socket. Raises ipc.LinkBroken, also when the socket's time is over."""
    accepted: list[type[AnswerPart | Answer | Denied]] = [AnswerPart, Answer, Denied]
    parts = []
    while True:
        message, fds = ipc.receive(sock, accepted)
        ipc.close_all(fds)
        if isinstance(message, Denied):
            return message
        parts.append(message.text)
        if isinstance(message, Answer):
            return Answer("".join(parts))
