"""A worker's questions to its supervisor about names and quotas, each waiting for its own answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from ipaddress import ip_address

from proxy import allocator, ipc
from proxy.allocator import Synthetic
from proxy.flow import Because, IPAddress, Origin, Refusal
from proxy.messages.worker import AddressAnswer, AskAddress, AskName, AskQuota, NameAnswer, QuotaAnswer
from proxy.policy.model import Quota
from proxy.purse import Got

type Answer = NameAnswer | AddressAnswer | QuotaAnswer


class Asking:
    """Questions over a link. `send` never waits; an answer that never comes is the asker's to give up on."""

    def __init__(self, send: Callable[[object], None]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    def answered(self, answer: Answer) -> None:
        """An answer has come; one to no question is dropped."""
        asked = self._asked.pop(answer.question, None)
        if asked is not None and not asked.done():
            asked.set_result(answer)

    async def address_of(self, bubble: str, name: str) -> Synthetic | Refusal:
        """The synthetic addresses of a name, for BubbleNames."""
        answer = await self._ask(lambda number: AskName(number, bubble, name))
        if not isinstance(answer, NameAnswer):
            raise ipc.LinkBroken("the answer to a name is not one")
        if answer.refused:
            return Refusal(Because(Origin.GATE, answer.fault, answer.refused), answer.cure)
        offset = allocator.offset_of(ip_address(answer.v4))
        if offset is None:
            raise ipc.LinkBroken("the answer to a name is no synthetic address")
        return Synthetic.at(offset)

    async def name_of(self, bubble: str, address: IPAddress) -> str | None:
        """The name behind a synthetic address, for BubbleNames."""
        answer = await self._ask(lambda number: AskAddress(number, bubble, str(address)))
        if not isinstance(answer, AddressAnswer):
            raise ipc.LinkBroken("the answer to an address is not one")
        return answer.name or None

    async def quota(self, user: str, quota: Quota, wanted: int) -> Got:
        """A portion of a user's quota, for Accounts."""
        answer = await self._ask(
            lambda number: AskQuota(
                number, user, quota.destination, str(quota.transfer), quota.per, quota.every, wanted
            )
        )
        if not isinstance(answer, QuotaAnswer):
            raise ipc.LinkBroken("the answer to a quota is not one")
        return Got(answer.granted, answer.until_s, answer.refused)

    async def _ask(self, question: Callable[[int], AskName | AskAddress | AskQuota]) -> Answer:
        number = next(self._numbers)
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self._send(question(number))
        try:
            return await asked
        finally:
            self._asked.pop(number, None)
