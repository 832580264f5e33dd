"""The register of open flows: what is lost is reset, all of it, whatever a single flow does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from proxy.flow import Flow
from proxy.flow_table import FlowTable, OpenFlow

FLOW = Flow(zone="corporate", user="ana", port=443, at=datetime(2026, 1, 1, tzinfo=UTC))


def nothing() -> None:
    pass


def opened(
    number: int, bubble: str = "b", tunnel: str = "t", reset: Callable[[], None] = nothing
) -> OpenFlow:
    return OpenFlow(id=str(number), bubble=bubble, flow=FLOW, tunnel=tunnel, policy="", reset=reset)


def test_only_what_is_lost_is_reset_and_told_why() -> None:
    table = FlowTable(10)
    reset: list[str] = []
    flows = [opened(at, tunnel="ab"[at % 2], reset=lambda at=at: reset.append(str(at))) for at in range(6)]  # type: ignore[misc] # the default is the loop's
    for flow in flows:
        table.add(flow)
    assert table.cut(lambda flow: flow.tunnel == "a", "tunnel a lost") == 3
    assert sorted(reset) == ["0", "2", "4"]
    assert [flow.cut_because for flow in flows] == ["tunnel a lost", ""] * 3


def test_every_program_is_told_before_any_destination() -> None:
    table = FlowTable(10)
    done: list[str] = []

    def hang_up() -> None:
        done.append("program")
        raise OSError

    for at in range(3):
        table.add(replace(opened(at, reset=lambda: done.append("both")), hang_up=hang_up))
    assert table.cut(lambda _: True, "locked") == 3
    assert done == ["program"] * 3 + ["both"] * 3


def test_a_reset_that_raises_keeps_no_other_open() -> None:
    table = FlowTable(10)
    reset = []

    def broken() -> None:
        reset.append("broken")
        raise OSError

    for at in range(5):
        table.add(opened(at, reset=broken if at % 2 else lambda: reset.append("good")))
    assert table.cut(lambda _: True, "stopped") == 5
    assert Counter(reset) == {"good": 3, "broken": 2}


def test_a_flow_that_cannot_be_judged_is_lost() -> None:
    table = FlowTable(10)
    table.add(opened(1))
    assert table.cut(lambda flow: flow.missing, "replaced") == 1  # type: ignore[attr-defined] # on purpose


def test_a_flow_that_leaves_while_all_are_cut_is_no_trouble() -> None:
    table = FlowTable(10)
    flows: list[OpenFlow] = []

    def remove_all() -> None:
        for flow in flows:
            table.remove(flow)

    for at in range(5):
        flows.append(opened(at, reset=remove_all))
        table.add(flows[-1])
    assert table.cut(lambda _: True, "stopped") == 5
    assert len(table) == 0


def test_the_first_reason_stays() -> None:
    table = FlowTable(10)
    flow = opened(1)
    table.add(flow)
    assert table.cut(lambda _: True, "tunnel lost") == 1
    assert table.cut(lambda _: True, "the daemon stopped") == 0
    assert flow.cut_because == "tunnel lost"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9))))
def test_what_is_counted_is_what_is_open(steps: list[tuple[bool, int]]) -> None:
    table, flows = FlowTable(10), [opened(at, bubble="abc"[at % 3]) for at in range(10)]
    oracle: set[int] = set()
    for add, at in steps:
        (table.add if add else table.remove)(flows[at])
        (oracle.add if add else oracle.discard)(at)
    assert len(table) == len(oracle)
    for number, bubble in enumerate("abc"):
        assert table.of_bubble(bubble) == sum(at % 3 == number for at in oracle)
    assert set(table._of_bubble) == {"abc"[at % 3] for at in oracle}  # bubbles that are gone are forgotten
