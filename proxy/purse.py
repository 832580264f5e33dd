"""What a worker or an inspector may still carry of quotas: portions of the supervisor, spent at the byte.

Nothing is carried on trust: where no answer comes, or the period of a portion is over, there is nothing left.
`ask` is how a portion is had; knows no link and no socket.
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
READ_BYTES = 256 * 1024  # no single read brings more
MOST_READY_BYTES = 16 << 20


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
    pockets: int = 0
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
    """The portions of one user, by quota, which all flows share. `now` is the clock."""

    def __init__(self, ask: Ask, now: Callable[[], datetime]) -> None:
        self._ask, self._now = ask, now
        self._purses: dict[Quota, _Purse] = {}

    def pocket(self, quotas: Sequence[Quota], timezone: ZoneInfo) -> Pocket:
        """The pocket of a flow."""
        return Pocket(self, tuple(quotas), timezone)

    def of(self, quota: Quota) -> _Purse:
        """The purse of a quota."""
        return self._purses.setdefault(quota, _Purse())

    async def ensure(self, quota: Quota, wanted: int) -> None:
        """Have as much as is wanted, or all that is left; of several flows one asks."""
        purse = self.of(quota)
        async with purse.lock:
            await self._refill(quota, purse, wanted)

    async def reserve(self, quota: Quota, wanted: int) -> tuple[int, int]:
        """Take bytes out, fewer than are wanted only where there are no more; and until when they count."""
        purse = self.of(quota)
        async with purse.lock:
            await self._refill(quota, purse, wanted)
            given = min(purse.left, wanted)
            purse.left -= given
            return given, purse.until_s

    def put_back(self, quota: Quota, unspent: int, until_s: int) -> None:
        """What was taken out and did not go; in another period it is nobody's."""
        purse = self.of(quota)
        if purse.until_s == until_s:
            purse.left += unspent

    async def _refill(self, quota: Quota, purse: _Purse, wanted: int) -> None:
        if purse.until_s <= self._now().timestamp():
            purse.left = 0
        if purse.left >= wanted:
            return
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                got = await self._ask(quota, wanted - purse.left)
        except TimeoutError:
            purse.refused = "the daemon does not answer"
            return
        if purse.until_s != got.until_s:
            purse.left = 0  # another period: what is left of the last one is not its own
        purse.left += got.granted
        purse.until_s, purse.refused = got.until_s, got.refused


class Pocket:
    """What one flow draws on. It holds nothing itself, so that idle flows keep nothing from others."""

    def __init__(self, purses: Purses, quotas: Sequence[Quota], timezone: ZoneInfo) -> None:
        self._purses, self._quotas, self._timezone = purses, quotas, timezone
        self._open = True
        for quota in quotas:
            purses.of(quota).pockets += 1

    @property
    def quotas(self) -> Sequence[Quota]:
        """What it draws on."""
        return self._quotas

    async def allow(self, transfer: Transfer, wanted: int) -> int:
        """How many bytes may go, counted as gone: see Meter of relay."""
        taken = [(quota, await self._purses.reserve(quota, wanted)) for quota in self._of(transfer)]
        allowed = min([wanted, *(reserved for _, (reserved, _) in taken)])
        for quota, (reserved, until_s) in taken:
            self._purses.put_back(quota, reserved - allowed, until_s)
        return allowed

    async def fill(self, transfer: Transfer) -> None:
        """Have what the next reads of all flows may bring, for who cannot wait between read and take."""
        for quota in self._of(transfer):
            ready = READ_BYTES * (1 + self._purses.of(quota).pockets)
            await self._purses.ensure(quota, min(ready, MOST_READY_BYTES))

    def take(self, transfer: Transfer, wanted: int) -> int:
        """How many bytes may go of those that were filled, counted as gone."""
        purses = [self._purses.of(quota) for quota in self._of(transfer)]
        allowed = min([wanted, *(purse.left for purse in purses)])
        for purse in purses:
            purse.left -= allowed
        return allowed

    def because(self, transfer: Transfer) -> Because:
        """Why no more may go."""
        return self.refusal(transfer).because

    async def opening(self) -> Refusal | None:
        """Whether a flow may begin: the refusal where any quota of it is used up."""
        for quota in self._quotas:
            await self._purses.ensure(quota, 1)
        return next((self.refusal(transfer) for transfer in Transfer if self.is_empty(transfer)), None)

    def is_empty(self, transfer: Transfer) -> bool:
        """Whether nothing more may go that way now."""
        return any(not self._purses.of(quota).left for quota in self._of(transfer))

    def refusal(self, transfer: Transfer) -> Refusal:
        """Why nothing more may go, and when something may again."""
        found = self._of(transfer)
        quota = next((one for one in found if not self._purses.of(one).left), found[0] if found else None)
        if quota is None:
            return Refusal(Because(Origin.GATE, "quota", "a quota is used up"))
        purse = self._purses.of(quota)
        text = f"the {quota.transfer} quota of {quota.destination} per {quota.per} is used up"
        if purse.refused not in ("", "used up"):
            text = f"the quota of {quota.destination} cannot be known: {purse.refused}"
        cure = f"it opens again {self._when(purse.until_s)}" if purse.until_s else ""
        return Refusal(Because(Origin.GATE, "quota", text), cure)

    def _when(self, until_s: int) -> str:
        return f"{datetime.fromtimestamp(until_s, self._timezone):%Y-%m-%d %H:%M %Z}"

    def close(self) -> None:
        """The flow has ended."""
        if self._open:
            self._open = False
            for quota in self._quotas:
                self._purses.of(quota).pockets -= 1

    def _of(self, transfer: Transfer) -> list[Quota]:
        return [quota for quota in self._quotas if quota.transfer is transfer]


def pocket_of(accounts: Accounts | None, policy: Policy, flow: Flow) -> Pocket | None:
    """The pocket of a flow that draws on quotas, None where it draws on none."""
    quotas = policy.quotas(flow)
    if not quotas:
        return None
    purses = accounts.of(flow.user) if accounts else Purses(_nothing, lambda: flow.at)
    return purses.pocket(quotas, policy.model.timezone)


async def _nothing(quota: Quota, wanted: int) -> Got:
    return Got(0, 0, "nobody keeps it here")
