"""Lines of a report in a terminal: broken between words and nowhere else, with what follows set in below."""

from __future__ import annotations

from io import StringIO

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from proxy.cli import folding, status
from proxy.cli.folding import fold


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        ("a line that fits", ["a line that fits"]),
        (
            "because  guard proof-or-nothing (corporate traffic needs a tunnel)",
            ["because  guard proof-or-nothing", "         (corporate traffic needs a", "         tunnel)"],
        ),
        (
            "  rule corporate-catalogue: passed over, missed on port, protocol",
            ["  rule corporate-catalogue: passed over,", "      missed on port, protocol"],
        ),
        (
            "a very long beginning of a line before  its two spaces",
            ["a very long beginning of a line before", "    its two spaces"],
        ),
        (f"key  sha256:{'x' * 60} is whole", ["key", f"     sha256:{'x' * 60}", "     is whole"]),
    ],
)
def test_a_line_is_broken_between_words(line: str, folded: list[str]) -> None:
    assert fold(line, 40).split("\n") == folded


@given(st.text(alphabet="ab -\n(", max_size=200), st.integers(20, 120))
def test_no_word_is_lost_or_broken(text: str, width: int) -> None:
    told = fold(text, width)
    assert told.split() == text.split()
    assert all(len(line) <= width or " " not in line.strip() for line in told.split("\n"))
    assert fold(text, 0) == text


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def report() -> None:
        folding.tell("word " * 100)

    assert CliRunner().invoke(report).stdout == "word " * 100 + "\n"
    monkeypatch.setattr(folding, "columns", lambda: 40)
    lines = CliRunner().invoke(report).stdout.splitlines()
    assert len(lines) > 10 and max(map(len, lines)) <= 40


def shown(width: int) -> list[str]:
    """A status in a terminal so wide: a tunnel of mutual TLS, another that is not proved, a failed reload."""
    tunnel = {
        "kind": "mtls", "state": "attested", "attested": True, "gateway": "gateway-one.corp.example:8443",
        "peer": "sha256:u9lLiOrGLD26O8Bm1wBNndFjZaoLRAARa3+osuVu2EE=", "proof_age_s": 0.5, "words": "",
    }  # fmt: skip
    lost = {"attested": False, "state": "down", "words": f"10.8.0.1 [{'quiet '}] {'has fallen silent ' * 6}"}
    found = {
        "policy": {"name": "corporate", "hash": "0" * 64},
        "reload": {
            "loaded_at": "now",
            "failed": {"at": "now", "words": 'a.yaml:3:5: "[tunnels]" is no list'},
        },
        "enforcement": "structural",
        **{key: [] for key in ("locks", "trouble", "warnings", "quotas", "listeners", "waiting", "bubbles")},
        "tunnels": {"headquarters": tunnel, "other": tunnel | lost},
        "workers": [],
    }
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, soft_wrap=True)
    status.show(found, console)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_status_is_as_wide_as_the_terminal(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "gateway-one.corp.example:8443" in text and "sha256:u9lLiOrGLD26…" in text and "0.5 s ago" in text


def test_brackets_in_what_went_wrong_are_no_markup() -> None:
    text = " ".join(" ".join(shown(80)).split())
    assert 'a.yaml:3:5: "[tunnels]" is no list' in text and "10.8.0.1 [quiet ]" in text
