"""What is done by hand to a worker's flows: told page by page, cut, locked out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from proxy import ipc
from proxy.flow import NEVER, Flow, Protocol, Refusal
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import Gate
from proxy.hand import FLOWS_OF_PAGE, Hand, is_meant
from proxy.messages.worker import Cut, Done, FlowPage, FlowRow, Lock, TellFlows
from proxy.policy import load

NOW = datetime(2026, 1, 5, 10, tzinfo=UTC)
FLOW = Flow(
    zone="corporate",
    user="ana",
    port=443,
    at=NOW - timedelta(seconds=90),
    name="git.corp.example",
    protocol=Protocol.HTTPS,
)
POLICY = load(
    b"policy: 1\nname: p\ndefine: {zones: [corporate]}\nrules:\n"
    b"  - {id: all, match: {zone: corporate}, verdict: tunnel}\n",
    "p.yaml",
)


class Ground:
    """A hand on a table; what was cut leaves it a turn later."""

    def __init__(self) -> None:
        self.table, self.gate = FlowTable(1000), Gate(POLICY, ())
        self.said: list[object] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.hand = Hand(self.gate, self.table, lambda: NOW, self.said.append, self.start)

    def start(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    def open(self, number: int, flow: Flow = FLOW) -> OpenFlow:
        def reset() -> None:
            asyncio.get_running_loop().call_soon(self.table.remove, entry)

        entry = OpenFlow(
            id=f"w-{number}", bubble="b", flow=flow, tunnel="hq", policy="", reset=reset, because="rule all"
        )
        self.table.add(entry)
        return entry

    async def do(self, order: Lock | Cut | TellFlows) -> object:
        self.hand.do(order)
        await asyncio.gather(*self.tasks)
        return self.said[-1]


def test_flows_are_told_page_by_page_and_each_page_fits_one_message() -> None:
    async def main() -> None:
        ground = Ground()
        long = replace(FLOW, name=".".join(["a" * 60] * 4))
        for number in range(2 * FLOWS_OF_PAGE + 1):
            ground.open(number, long).because = "rule x (" + "é" * 5000
        told: list[FlowRow] = []
        after, pages = 0, 0
        while True:
            page = await ground.do(TellFlows(1, after, 10_000))
            assert isinstance(page, FlowPage)
            ipc.packed(page)
            told += page.flows
            pages += 1
            after = page.after
            if not after:
                break
        assert pages == 3
        assert [row.id for row in told] == [f"w-{number}" for number in range(2 * FLOWS_OF_PAGE + 1)]
        assert (told[0].age_s, told[0].destination) == (90, f"{long.name}:443")

    asyncio.run(main())


ADDRESS = replace(FLOW, name=NEVER, address=ip_address("10.0.0.1"), port=22)


@pytest.mark.parametrize(
    "flow, order, is_cut",
    [
        (FLOW, Cut(1, "", "", 0, ""), True),
        (FLOW, Cut(1, "w-1", "", 0, ""), True),
        (FLOW, Cut(1, "w-11", "", 0, ""), False),
        (FLOW, Cut(1, "", "git.corp.example", 0, ""), True),
        (FLOW, Cut(1, "", "git.corp.example", 443, ""), True),
        (FLOW, Cut(1, "", "git.corp.example", 80, ""), False),
        (FLOW, Cut(1, "", "corp.example", 0, ""), False),
        (FLOW, Cut(1, "", "", 0, "", "ana"), True),
        (FLOW, Cut(1, "", "", 0, "", "bob"), False),
        (FLOW, Cut(1, "", "*.corp.example", 0, ""), True),
        (FLOW, Cut(1, "", "*.git.corp.example", 0, ""), False),
        (FLOW, Cut(1, "", "*.orp.example", 0, ""), False),
        (ADDRESS, Cut(1, "", "10.0.0.1", 0, ""), True),
        (ADDRESS, Cut(1, "", "10.0.0.2", 0, ""), False),
        (ADDRESS, Cut(1, "", "*.0.0.1", 0, ""), False),
        (ADDRESS, Cut(1, "", "", 22, ""), True),
    ],
)
def test_an_order_means_a_flow(flow: Flow, order: Cut, is_cut: bool) -> None:
    async def main() -> None:
        assert is_meant(Ground().open(1, flow), order) is is_cut

    asyncio.run(main())


def test_what_is_cut_is_answered_when_it_has_left() -> None:
    async def main() -> None:
        ground = Ground()
        one, other = ground.open(1), ground.open(2, ADDRESS)
        assert await ground.do(Cut(7, "", "git.corp.example", 0, "killed by root")) == Done(7, 1, "")
        assert (one.cut_because, other.cut_because) == ("killed by root", "")
        assert ground.table.open_flows() == (other,)
        assert await ground.do(Cut(8, "", "git.corp.example", 0, "")) == Done(8, 0, "")

    asyncio.run(main())


def test_a_lock_cuts_all_and_refuses_in_its_own_words_until_it_is_gone() -> None:
    async def main() -> None:
        ground = Ground()
        ground.open(1)
        ground.open(2, ADDRESS)
        assert await ground.do(Lock(1, "locked by root: lost")) == Done(1, 2, "")
        assert len(ground.table) == 0
        refused = ground.gate.ask(FLOW)
        assert isinstance(refused, Refusal)
        assert (refused.because.id, refused.because.text) == ("locked", "locked by root: lost")
        assert not ground.gate.admits_still(FLOW, "hq", NOW)
        assert await ground.do(Lock(2, "")) == Done(2, 0, "")
        opened = ground.gate.ask(FLOW)
        assert not isinstance(opened, Refusal) or opened.because.id != "locked"

    asyncio.run(main())
