"""Where things lie: a table of environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy import paths


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    uid: int
    run: str
    state: str
    home: str
    sockets: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "root's daemon serves the machine",
            0,
            "/run/zonegate",
            "/var/lib/zonegate",
            "/root/.local/share/zonegate/zones/corporate/home",
            ("/run/zonegate/admin.sock",),
            {"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/elsewhere"},
        ),
        Case(
            "a user's serves that user",
            1000,
            "/run/user/1000/zonegate",
            "/home/ana/.local/state/zonegate",
            "/home/ana/.local/share/zonegate/zones/corporate/home",
            ("/run/user/1000/zonegate/admin.sock", "/run/zonegate/admin.sock"),
            {"HOME": "/home/ana", "XDG_RUNTIME_DIR": "/run/user/1000"},
        ),
        Case(
            "a user without a runtime directory",
            1000,
            "/tmp/zonegate-1000",
            "/home/ana/.local/state/zonegate",
            "/home/ana/.local/share/zonegate/zones/corporate/home",
            ("/tmp/zonegate-1000/admin.sock", "/run/zonegate/admin.sock"),
            {"HOME": "/home/ana", "XDG_RUNTIME_DIR": ""},
        ),
        Case(
            "the user's own places",
            1000,
            "/r/zonegate",
            "/s/zonegate",
            "/d/zonegate/zones/corporate/home",
            ("/r/zonegate/admin.sock", "/run/zonegate/admin.sock"),
            {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d"},
        ),
        Case(
            "relative places are ignored",
            1000,
            "/tmp/zonegate-1000",
            "/h/.local/state/zonegate",
            "/h/.local/share/zonegate/zones/corporate/home",
            ("/tmp/zonegate-1000/admin.sock", "/run/zonegate/admin.sock"),
            {"HOME": "/h", "XDG_RUNTIME_DIR": "r", "XDG_STATE_HOME": "./s", "XDG_DATA_HOME": "../d"},
        ),
        Case(
            "a socket that is named is the only one",
            1000,
            "/tmp/zonegate-1000",
            "/h/.local/state/zonegate",
            "/h/.local/share/zonegate/zones/corporate/home",
            ("/demo/admin.sock",),
            {"HOME": "/h", "ZONEGATE_SOCKET": "/demo/admin.sock"},
        ),
    ],
    ids=str,
)
def test_places(case: Case) -> None:
    assert paths.run_directory(case.uid, case.environment) == Path(case.run)
    assert paths.state_directory(case.uid, case.environment) == Path(case.state)
    assert paths.zone_home("corporate", case.environment) == Path(case.home)
    assert paths.admin_sockets(case.uid, case.environment) == [Path(path) for path in case.sockets]


@pytest.mark.parametrize("zone", ["", ".", "..", "../../..", "/etc", "a/b", "a\0b"])
def test_a_zone_is_a_name_and_leads_nowhere_else(zone: str) -> None:
    with pytest.raises(ValueError, match="is no name of a zone"):
        paths.zone_home(zone, {"HOME": "/home/ana"})


def test_the_site_file_is_the_one_named_or_the_one_here_or_the_users_or_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"HOME": "/home/ana"}
    assert paths.site_file(Path("x.yaml"), 1000, environment) == Path("x.yaml")
    assert paths.site_file(None, 1000, environment) == Path("/home/ana/.config/zonegate/zonegate.yaml")
    assert paths.site_file(None, 1000, {"XDG_CONFIG_HOME": "/c"}) == Path("/c/zonegate/zonegate.yaml")
    assert paths.site_file(None, 0, environment) == Path("/etc/zonegate/zonegate.yaml")
    Path("zonegate.yaml").touch()
    assert paths.site_file(None, 0, environment) == Path("zonegate.yaml")
