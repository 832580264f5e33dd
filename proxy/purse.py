"""What a worker or an inspector may still carry of quotas: portions of the supervisor, spent at the byte.

A flow has a pocket, which is filled before bytes are read that it may carry. Nothing is carried on trust:
where no answer comes, or the period of a portion is over, there is nothing left. `ask` is how a portion is
had; knows no link and no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from zoneinfo import ZoneInfo

from proxy.flow import Because, Flow, Origin, Refusal, Transfer
from proxy.policy import Policy
from proxy.policy.model import Quota

ASK_LIMIT_S = 5.0
FILL_BYTES = 1 << 20  # several times what a single read brings


@dataclass(frozen=True, slots=True)
class Got:
    """A portion: bytes until `until_s` (seconds since 1970), or why there are none."""

    granted: int
    until_s: int
    refused: str = ""


type Ask = Callable[[Quota, int], Awaitable[Got]]


@dataclass(slots=True)
class _Purse:
    left: int = 0
    until_s: int = 0
    refused: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Accounts:
    """The purses of a worker's users: one of a bubble has one, one of explicit listeners may have many."""

    def __init__(self, ask: Callable[[str, Quota, int], Awaitable[Got]], now: Callable[[], datetime]) -> None:
        self._ask, self._now = ask, now
        self._purses: dict[str, Purses] = {}

    def of(self, user: str) -> Purses:
        """The purses of a user."""
        if user not in self._purses:
            self._purses[user] = Purses(partial(self._ask, user), self._now)
        return self._purses[user]


class Purses:
    """The portions of one user, by quota. `now` is the clock."""

    def __init__(self, ask: Ask, now: Callable[[], datetime]) -> None:
        self._ask, self._now = ask, now
        self._purses: dict[Quota, _Purse] = {}

    def pocket(self, quotas: Sequence[Quota], timezone: ZoneInfo) -> Pocket:
        """The pocket of a flow."""
        return Pocket(self, tuple(quotas), timezone)

    def now_s(self) -> int:
        """Seconds since 1970."""
        return int(self._now().timestamp())

    async def reserve(self, quota: Quota, wanted: int) -> tuple[int, int, str]:
        """Bytes set aside, at most what is wanted; until when they count; why there are none."""
        purse = self._purses.setdefault(quota, _Purse())
        async with purse.lock:  # of several flows one asks, and the others find what it got
            if purse.left and purse.until_s <= self.now_s():
                purse.left = 0
            if purse.left < wanted:
                await self._refill(quota, purse, wanted - purse.left)
            given = min(purse.left, wanted)
            purse.left -= given
            return given, purse.until_s, purse.refused

    async def _refill(self, quota: Quota, purse: _Purse, wanted: int) -> None:
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                got = await self._ask(quota, wanted)
        except TimeoutError:
            purse.refused = "the daemon does not answer"
            return
        if purse.until_s != got.until_s:
            purse.left = 0  # another period: what is left of the last one is not its own
        purse.left += got.granted
        purse.until_s, purse.refused = got.until_s, got.refused

    def take_now(self, quota: Quota, wanted: int, until_s: int) -> int:
        """Bytes of the same period that are there without asking."""
        purse = self._purses.get(quota)
        if purse is None or purse.until_s != until_s:
            return 0
        given = min(purse.left, wanted)
        purse.left -= given
        return given

    def put_back(self, quota: Quota, unspent: int, until_s: int) -> None:
        """What a flow did not need; others of the same period may have it."""
        purse = self._purses.get(quota)
        if purse is not None and purse.until_s == until_s:
            purse.left += unspent


@dataclass(slots=True)
class _Reserved:
    left: int = 0
    until_s: int = 0
    refused: str = ""


class Pocket:
    """What one flow may carry now. Fill it, then take; what is short of what was wanted ends the flow."""

    def __init__(self, purses: Purses, quotas: Sequence[Quota], timezone: ZoneInfo) -> None:
        self._purses, self._timezone = purses, timezone
        self._reserved = {quota: _Reserved() for quota in quotas}

    async def fill(self, transfer: Transfer) -> None:
        """Have as much as a single read may bring, or all that is left."""
        for quota, reserved in self._of(transfer):
            if reserved.until_s <= self._purses.now_s():
                reserved.left = 0
            if reserved.left < FILL_BYTES:
                given, until_s, refused = await self._purses.reserve(quota, FILL_BYTES - reserved.left)
                if until_s != reserved.until_s:
                    reserved.left = 0
                reserved.left += given
                reserved.until_s, reserved.refused = until_s, refused

    def take(self, transfer: Transfer, wanted: int) -> int:
        """How many bytes may go of those that are wanted, counted as gone."""
        found = [reserved for _, reserved in self._of(transfer)]
        for quota, reserved in self._of(transfer):
            if (short := wanted - reserved.left) > 0:
                reserved.left += self._purses.take_now(quota, short, reserved.until_s)
        allowed = min([wanted, *(reserved.left for reserved in found)])
        for reserved in found:
            reserved.left -= allowed
        return allowed

    async def allow(self, transfer: Transfer, wanted: int) -> int:
        """How many bytes of one read may go: see Meter of relay."""
        await self.fill(transfer)
        return self.take(transfer, wanted)

    def because(self, transfer: Transfer) -> Because:
        """Why no more may go."""
        return self.refusal(transfer).because

    async def opening(self) -> Refusal | None:
        """Whether a flow may begin: the refusal where any quota of it is used up."""
        for transfer in Transfer:
            await self.fill(transfer)
        return next((self.refusal(transfer) for transfer in Transfer if self.is_empty(transfer)), None)

    def is_empty(self, transfer: Transfer) -> bool:
        """Whether nothing more may go that way now."""
        return any(not reserved.left for _, reserved in self._of(transfer))

    def refusal(self, transfer: Transfer) -> Refusal:
        """Why nothing more may go, and when something may again."""
        for quota, reserved in self._of(transfer):
            if not reserved.left:
                text = f"the {quota.transfer} quota of {quota.destination} per {quota.per} is used up"
                if reserved.refused not in ("", "used up"):
                    text = f"the quota of {quota.destination} cannot be known: {reserved.refused}"
                because = Because(Origin.GATE, "quota", text)
                return Refusal(
                    because, f"it opens again {self._when(reserved.until_s)}" if reserved.until_s else ""
                )
        return Refusal(Because(Origin.GATE, "quota", "a quota is used up"))

    def _when(self, until_s: int) -> str:
        return f"{datetime.fromtimestamp(until_s, self._timezone):%Y-%m-%d %H:%M %Z}"

    def close(self) -> None:
        """The flow has ended: what it did not need is others'."""
        for quota, reserved in self._reserved.items():
            self._purses.put_back(quota, reserved.left, reserved.until_s)
            reserved.left = 0

    def _of(self, transfer: Transfer) -> list[tuple[Quota, _Reserved]]:
        return [(quota, reserved) for quota, reserved in self._reserved.items() if quota.transfer is transfer]


def pocket_of(accounts: Accounts | None, policy: Policy, flow: Flow) -> Pocket | None:
    """The pocket of a flow that draws on quotas, None where it draws on none."""
    quotas = policy.quotas(flow)
    if not quotas:
        return None
    purses = accounts.of(flow.user) if accounts else Purses(_nothing, lambda: flow.at)
    return purses.pocket(quotas, policy.model.timezone)


async def _nothing(quota: Quota, wanted: int) -> Got:
    return Got(0, 0, "nobody keeps it here")
