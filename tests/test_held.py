"""Tunnels that are held down by hand: what is remembered, and who may."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from proxy import held, locks
from proxy.directory import User
from proxy.held import Held
from proxy.orders import OrderRefused
from proxy.tunnel_orders import carry_out

OWNER, OTHER = User(os.geteuid(), "ana", ()), User(os.geteuid() + 1, "bob", ())


def test_what_is_held_outlives_the_daemon(tmp_path: Path) -> None:
    first = Held(tmp_path / "held.json")
    assert first.over("hq") == ""
    first.down("hq", "held down by ana")
    first.save()
    second = Held(tmp_path / "held.json")
    assert (second.over("hq"), second.over("backup")) == ("held down by ana", "")
    second.up("hq", ("backup",))
    assert Held(tmp_path / "held.json").over("hq") == ""


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"hq"', b"\xff"])
def test_a_file_that_cannot_be_read_holds_everything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "held.json").write_bytes(content)
    there = Held(tmp_path / "held.json")
    assert "cannot be read" in there.over("hq") and "cannot be read" in there.over("backup")
    there.up("hq", ("backup",))
    assert there.over("hq") == "" and "cannot be read" in there.over("backup")


class Kept:
    """What a keeper is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def hold_down(self, words: str) -> None:
        self.told.append(words)

    def let_go(self) -> None:
        self.told.append("up")


class Daemon:
    """A daemon with one tunnel."""

    def __init__(self, directory: Path) -> None:
        self.kept = Kept()
        self.keepers: dict[str, Any] = {"hq": self.kept}
        self.held = Held(directory / "held.json")


def do(daemon: Daemon, what: str, tunnel: object = "hq", user: User = OWNER) -> dict[str, Any]:
    return asyncio.run(carry_out(daemon, what, {"tunnel": tunnel}, user))


def test_down_and_up(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    done = do(daemon, "tunnel-down")
    assert done["trouble"] == "" and "held down by ana at " in done["held"]
    assert "zonegate tunnel up hq" in daemon.kept.told[0]
    assert Held(tmp_path / "held.json").over("hq") == done["held"]
    assert do(daemon, "tunnel-up") == {"tunnel": "hq", "held": "", "trouble": ""}
    assert daemon.kept.told[1:] == ["up"]


def test_others_may_not(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    for what in ("tunnel-down", "tunnel-up"):
        with pytest.raises(OrderRefused, match="only the user who runs the daemon"):
            do(daemon, what, user=OTHER)
    assert daemon.kept.told == []


@pytest.mark.parametrize("name", ["hp", "", None, 7, ["hq"]])
def test_a_tunnel_that_is_none(tmp_path: Path, name: object) -> None:
    with pytest.raises(OrderRefused, match="is not a tunnel of this site"):
        do(Daemon(tmp_path), "tunnel-down", name)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Down is done all the same, up is not: doubt leaves closed what is closed."""
    daemon = Daemon(tmp_path / "nowhere")
    assert "does not outlive the daemon" in do(daemon, "tunnel-down")["trouble"]
    assert daemon.kept.told[0].startswith("held down")
    assert "stays held down" in do(daemon, "tunnel-up")["trouble"]
    assert daemon.kept.told[1:] == [] and daemon.held.over("hq")


@pytest.mark.parametrize("other", ["hq", "backup"])
def test_a_tunnel_that_is_taken_down_while_one_goes_up_stays_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    daemon = Daemon(tmp_path)
    daemon.keepers["backup"] = backup = Kept()
    do(daemon, "tunnel-down")
    writing, go_on, write = threading.Event(), threading.Event(), locks.write_json

    def slow(path: Path, value: object) -> None:
        writing.set()
        assert go_on.wait(60)
        write(path, value)

    async def main() -> None:
        monkeypatch.setattr(held, "write_json", slow)
        up = asyncio.create_task(carry_out(daemon, "tunnel-up", {"tunnel": "hq"}, OWNER))
        while not writing.is_set():
            await asyncio.sleep(0.001)
        down = asyncio.create_task(carry_out(daemon, "tunnel-down", {"tunnel": other}, OWNER))
        while not (kept.told[-1:] and kept.told[-1].startswith("held down")):
            await asyncio.sleep(0.001)
        go_on.set()
        assert not (await up)["trouble"] and not (await down)["trouble"]

    kept = backup if other == "backup" else daemon.kept
    asyncio.run(main())
    assert daemon.held.over(other) and Held(tmp_path / "held.json").over(other)
    assert kept.told[-1].startswith("held down")
