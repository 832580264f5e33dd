"""What a daemon says of itself, and to whom."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy import crew
from proxy.admin import Peer
from proxy.crew import Worker
from proxy.demo.site import make_site
from proxy.directory import User
from proxy.flow import TunnelState
from proxy.locks import Locks
from proxy.messages.worker import Report
from proxy.paths import Places
from proxy.posts import Bubble, Post
from proxy.quotas import Ledger
from proxy.reloading import Reloads
from proxy.remains import Remaining
from proxy.segments import Segments
from proxy.site import Loaded, load_site, setup_of
from proxy.state import answer_question
from proxy.tunnels.base import Attestation
from proxy.tunnels.keeper import Keeper

ME = os.geteuid()
SELF = User(ME, "root", ())
OTHER = User(ME + 1, "mallory", ())


@dataclass
class Daemon:
    """A supervisor's state, as far as it is read."""

    loaded: Loaded
    keepers: dict[str, Keeper]
    workers: dict[tuple[str, int], Worker]
    bubbles: dict[str, tuple[Bubble, Peer]] = field(default_factory=dict)
    waiting: dict[str, Remaining] = field(default_factory=dict)
    structural: bool = True
    since: datetime = field(default_factory=lambda: datetime(2026, 1, 5, tzinfo=UTC))

    def __post_init__(self) -> None:
        self.places = Places(Path("/nowhere"), Path("/nowhere"))
        self.quotas = Ledger(self.loaded.site.file.parent / "quotas.jsonl", lambda: datetime.now(UTC))
        self.locks = Locks(self.places.state / "locks.json", "now")
        self.reloads = Reloads(self)  # type: ignore[arg-type] # nothing is reloaded

    def attest(self, state: TunnelState, words: str = "the pinned peer answers") -> None:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        proof = now_ns if state is TunnelState.ATTESTED else 0
        self.keepers["hq"].now = Attestation(state, words, "sha256:peer", proof, proof)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    file = make_site(tmp_path, tmp_path / "run", 9).gate
    file.write_text(file.read_text().split("people:")[0] + "people:\n  root: {zones: [corporate]}\n")
    loaded = load_site(file)
    hq = loaded.site.tunnels["hq"]
    setup = setup_of(hq)
    keepers = {"hq": Keeper(setup, loaded.files["hq"])}
    segments = Segments(tmp_path / "audit", clock=lambda: datetime.now(UTC))
    workers = {}
    bubbles: dict[str, tuple[Bubble, Peer]] = {}
    for uid, user in ((ME, "root"), (ME + 1, "mallory")):
        post = Post("corporate", user, uid, ())
        worker = Worker(post, loaded, keepers, segments, lambda _: None, structural=True, number="w")
        worker.report = Report(uid - ME + 1, 2, 3, 4, 5, "", "hash", 0)
        workers["corporate", uid] = worker
        bubble = Bubble(f"{uid}-0123456789ab", "corporate", user, uid, 4711, "structural", ())
        bubbles[bubble.id] = (bubble, Peer.__new__(Peer))
    return Daemon(loaded, keepers, workers, bubbles)


def ask(daemon: Daemon, what: str, asker: User = SELF, given: Any = None) -> dict[str, Any]:
    found = json.loads(answer_question(daemon, what, json.dumps(given or {}), asker))
    assert isinstance(found, dict)
    return found


# -- status ------------------------------------------------------------------------------------------


def test_the_whole_state_is_told_to_the_daemons_own_user(daemon: Daemon) -> None:
    daemon.attest(TunnelState.ATTESTED)
    found = ask(daemon, "status")
    assert (found["enforcement"], found["since"]) == ("structural", "2026-01-05T00:00:00+00:00")
    assert found["policy"] == {"name": "corporate", "hash": daemon.loaded.policy.hash}
    assert found["zones"] == {"corporate": {"tunnels": ["hq"], "recorded": True}}
    hq = found["tunnels"]["hq"]
    assert (hq["kind"], hq["gateway"], hq["state"], hq["attested"]) == (
        "mtls",
        "127.0.0.1:9",
        "attested",
        True,
    )
    assert 0 <= hq["proof_age_s"] < 60
    assert [bubble["user"] for bubble in found["bubbles"]] == ["root", "mallory"]
    assert [worker["open_flows"] for worker in found["workers"]] == [1, 2]
    assert found["trouble"] == []


def test_another_user_is_told_of_its_own_bubbles_and_workers_only(daemon: Daemon) -> None:
    found = ask(daemon, "status", OTHER)
    assert [bubble["user"] for bubble in found["bubbles"]] == ["mallory"]
    assert [worker["user"] for worker in found["workers"]] == ["mallory"]
    stranger = ask(daemon, "status", User(ME + 2, "eve", ()))
    assert (stranger["bubbles"], stranger["workers"]) == ([], [])
    assert "hq" in stranger["tunnels"], "what is up is no secret"


def test_no_secret_is_in_it(daemon: Daemon) -> None:
    text = answer_question(daemon, "status", "{}", SELF)
    key = daemon.loaded.files["hq"].contents()[2].decode().splitlines()[1]
    assert key not in text and "PRIVATE" not in text


@pytest.mark.parametrize("state", [state for state in TunnelState if state is not TunnelState.ATTESTED])
def test_a_tunnel_that_is_not_attested_is_said_to_be_so(daemon: Daemon, state: TunnelState) -> None:
    daemon.attest(state, "in these words")
    hq = ask(daemon, "status")["tunnels"]["hq"]
    assert (hq["state"], hq["attested"], hq["words"], hq["proof_age_s"]) == (
        state.value,
        False,
        "in these words",
        None,
    )


def test_trouble_with_records_and_less_enforcement_are_said(daemon: Daemon) -> None:
    daemon.workers["corporate", ME].report = Report(0, 0, 0, 0, 0, "the disk is full", "", 0)
    daemon.structural = False
    found = ask(daemon, "status")
    assert (found["trouble"], found["enforcement"]) == (["the disk is full"], "cooperative")


def test_before_its_first_report_a_worker_has_done_nothing(daemon: Daemon) -> None:
    daemon.workers["corporate", ME].report = crew.QUIET_REPORT
    found = ask(daemon, "status")["workers"][0]
    assert (found["pid"], found["open_flows"], found["audit_trouble"]) == (0, 0, "")


# -- explain -----------------------------------------------------------------------------------------

INTRANET = {"host": ["intranet.corp.example"], "protocol": ["http"], "port": ["80"]}


def test_a_flow_is_explained_as_things_stand(daemon: Daemon) -> None:
    daemon.attest(TunnelState.ATTESTED)
    found = ask(daemon, "explain", given=INTRANET)
    assert any("verdict  tunnel through hq" in line for line in found["lines"])
    daemon.attest(TunnelState.STALE)
    found = ask(daemon, "explain", given=INTRANET)
    assert any("verdict  block" in line for line in found["lines"])
    assert any("proof-or-nothing" in line for line in found["lines"])
    assert "tunnels  hq (stale)" in found["lines"]


def test_what_the_daemon_knows_is_not_the_askers_to_say(daemon: Daemon) -> None:
    """Else `explain` would answer what would be, if only one were somebody else and the tunnel up."""
    daemon.attest(TunnelState.DOWN)
    pretended = {"tunnels": ["hq=attested"], "tunnel": ["attested"], "user": ["boss"], "group": ["bosses"]}
    found = ask(daemon, "explain", given=INTRANET | pretended)
    assert any("verdict  block" in line for line in found["lines"])
    assert "boss" not in json.dumps(found)


def test_a_zone_that_one_may_not_enter_is_not_explained(daemon: Daemon) -> None:
    zones: list[dict[str, list[str]]] = [{}, {"zone": ["corporate"]}]
    for zone in zones:
        found = ask(daemon, "explain", OTHER, INTRANET | zone)
        assert found == {"error": "name one zone with --zone; mallory may enter none"}


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"x"',
        '{"host": 7}',
        '{"host": null}',
        '{"host": []}',
        '{"zone": [{}]}',
        '{"zone": 7}',
        '{"host": ["a b"]}',
        '{"host": ["x.example"], "port": ["-1"]}',
        '{"nonsense": ["x"]}',
        "[" * 100_000,
        '{"host": ["' + "a." * 50_000 + '"]}',
    ],
    ids=lambda text: text[:24],
)
def test_junk_is_an_error_in_words(daemon: Daemon, parameters: str) -> None:
    found = json.loads(answer_question(daemon, "explain", parameters, SELF))
    assert list(found) == ["error"] and isinstance(found["error"], str)


def test_a_question_that_nobody_knows_is_said_to_be_one(daemon: Daemon) -> None:
    assert ask(daemon, "secrets") == {"error": '"secrets" is not a question that this daemon knows'}
