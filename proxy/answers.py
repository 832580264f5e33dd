"""A supervisor's orders to one worker, each waiting for its own answer.

A worker that does not answer in time, or is gone, is an error that whoever ordered must act on: what was to
be cut may be open still.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from proxy import ipc
from proxy.messages.worker import Cut, Done, FlowPage, Lock, NewPolicy, TellFlows

HAND_LIMIT_S = 2.0
POLICY_LIMIT_S = 30.0  # it is compiled beside the worker's traffic


class NoAnswer(Exception):
    """The worker did not do what it was told; one line."""


class _Send(Protocol):
    def __call__(self, message: object, fds: Sequence[int] = (), /) -> None: ...


class Answers:
    """Orders over a link; `send` never waits."""

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._questions = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Done | FlowPage]] = {}

    def answered(self, answer: Done | FlowPage) -> None:
        """Hand an answer to who waits for it; one that nobody waits for any more is dropped."""
        waiter = self._waiting.get(answer.question)
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def fail(self) -> None:
        """The worker is gone."""
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(NoAnswer("the worker has ended"))

    async def lock(self, words: str) -> int:
        """Lock, or without words unlock; how many flows were cut. Raises NoAnswer."""
        return await self._done(lambda number: Lock(number, words))

    async def cut(
        self, because: str, *, flow: str = "", host: str = "", port: int = 0, user: str = ""
    ) -> int:
        """Cut the flows that fit; how many there were. Raises NoAnswer."""
        return await self._done(lambda number: Cut(number, flow, host, port, because, user))

    async def replace_policy(self, text: bytes, file: str) -> int:
        """Give it a new policy; how many flows that cut. Raises NoAnswer."""
        fd = ipc.memory_file("policy", text)
        try:
            return await self._done(lambda number: NewPolicy(number, file), [fd], POLICY_LIMIT_S)
        finally:
            ipc.close_all([fd])

    async def flows(self, after: int, most: int) -> FlowPage:
        """A page of its open flows. Raises NoAnswer."""
        answer = await self._ask(lambda number: TellFlows(number, after, most), (), HAND_LIMIT_S)
        if not isinstance(answer, FlowPage):
            raise NoAnswer("the worker answered something else")
        return answer

    async def _done(
        self, order: Callable[[int], object], fds: Sequence[int] = (), limit_s: float = HAND_LIMIT_S
    ) -> int:
        answer = await self._ask(order, fds, limit_s)
        if not isinstance(answer, Done) or answer.trouble:
            raise NoAnswer(getattr(answer, "trouble", "") or "the worker answered something else")
        return answer.cut

    async def _ask(
        self, order: Callable[[int], object], fds: Sequence[int], limit_s: float
    ) -> Done | FlowPage:
        number = next(self._questions)
        waiter: asyncio.Future[Done | FlowPage] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            self._send(order(number), fds)
            async with asyncio.timeout(limit_s):
                return await waiter
        except TimeoutError as error:
            raise NoAnswer(f"the worker did not answer in {limit_s:g} s") from error
        finally:
            del self._waiting[number]
