"""A worker's questions about names: each answer finds who waits for it, and what is none is none."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from loopback import turns

from proxy import ipc
from proxy.allocator import Synthetic
from proxy.asking import Asking
from proxy.flow import Because, Origin, Refusal
from proxy.messages.worker import AddressAnswer, AskAddress, AskName, NameAnswer

BUBBLE = "0-0123456789ab"
FOUND = Synthetic.at(300)


def addresses(question: int, found: Synthetic = FOUND) -> NameAnswer:
    return NameAnswer(question, str(found.v4), str(found.v6), "", "", "")


async def ask(asking: Asking, *names: str) -> list[asyncio.Task[Synthetic | Refusal]]:
    tasks = [asyncio.create_task(asking.address_of(BUBBLE, name)) for name in names]
    await turns()
    return tasks


def test_answers_find_their_questions_in_any_order() -> None:
    async def main() -> None:
        sent: list[object] = []
        asking = Asking(sent.append)
        one, two = await ask(asking, "one.example", "two.example")
        assert sent == [AskName(1, BUBBLE, "one.example"), AskName(2, BUBBLE, "two.example")]
        asking.answered(addresses(2, Synthetic.at(400)))
        asking.answered(addresses(1))
        assert (await one, await two) == (FOUND, Synthetic.at(400))

    asyncio.run(main())


def test_a_refusal_comes_back_as_it_was_meant() -> None:
    async def main() -> None:
        asking = Asking(lambda _: None)
        (one,) = await ask(asking, "one.example")
        asking.answered(NameAnswer(1, "", "", "names-quota", "too many", "leave"))
        assert await one == Refusal(Because(Origin.GATE, "names-quota", "too many"), "leave")

    asyncio.run(main())


@pytest.mark.parametrize("name, expected", [("one.example", "one.example"), ("", None)])
def test_the_name_behind_an_address(name: str, expected: str | None) -> None:
    async def main() -> None:
        sent: list[object] = []
        asking = Asking(sent.append)
        task = asyncio.create_task(asking.name_of(BUBBLE, ip_address("198.18.1.44")))
        await turns()
        assert sent == [AskAddress(1, BUBBLE, "198.18.1.44")]
        asking.answered(AddressAnswer(1, name))
        assert await task == expected

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        AddressAnswer(1, "one.example"),
        NameAnswer(1, "192.0.2.1", "2001:db8::1", "", "", ""),
        NameAnswer(1, "198.18.0.0", "fd00:7a67::", "", "", ""),
        NameAnswer(1, "", "", "", "", ""),
        NameAnswer(1, "not an address", "", "", "", ""),
    ],
    ids=["of another kind", "a real address", "an address of no name", "nothing", "junk"],
)
def test_what_is_no_answer_gives_no_address(answer: NameAnswer | AddressAnswer) -> None:
    async def main() -> None:
        asking = Asking(lambda _: None)
        (one,) = await ask(asking, "one.example")
        asking.answered(answer)
        with pytest.raises((ipc.LinkBroken, ValueError)):
            await one

    asyncio.run(main())


def test_an_answer_of_another_kind_to_an_address_is_none() -> None:
    async def main() -> None:
        asking = Asking(lambda _: None)
        task = asyncio.create_task(asking.name_of(BUBBLE, ip_address("198.18.1.44")))
        await turns()
        asking.answered(addresses(1))
        with pytest.raises(ipc.LinkBroken):
            await task

    asyncio.run(main())


def test_an_answer_to_nobody_or_too_late_or_twice_is_dropped() -> None:
    async def main() -> None:
        asking = Asking(lambda _: None)
        asking.answered(addresses(7))
        one, two = await ask(asking, "one.example", "two.example")
        one.cancel()
        await turns()
        asking.answered(addresses(1))
        asking.answered(addresses(2))
        asking.answered(addresses(2, Synthetic.at(500)))
        assert await two == FOUND
        assert one.cancelled()

    asyncio.run(main())
