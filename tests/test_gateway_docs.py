"""docs/gateway.md is true: its files are read, and its commands make what it and the README say.

The README's two configurations come up on files made by those commands, and the site of one machine works.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from loopback import free_port

from proxy.gateway.config import Limits, read_config
from proxy.gateway.judge import SENSITIVE
from proxy.gateway.revoked import parse_revocations

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "gateway.md").read_text()
README = (ROOT / "README.md").read_text()
COMMAND = (sys.executable, "-m", "proxy.cli")
ON_LOOPBACK = "listen: 127.0.0.1:0"


def block(text: str, language: str, begin: str = "") -> str:
    """The first block in a language, after the words `begin`, and that begins so where it is YAML."""
    found = re.search(rf"```{language}\n(.*?)```", text[text.index(begin) :], re.DOTALL)
    assert found is not None
    return found[1]


def site(text: str) -> str:
    """The site file that a text shows."""
    return block(text, "yaml", "```yaml\nzonegate: 1\n")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What the commands under Certificates make beside a checkout."""
    checkout = tmp_path / "zonegate"
    checkout.mkdir()
    (checkout / "policies").symlink_to(ROOT / "policies")
    commands = block(TEXT, "sh", "## Certificates")
    done = subprocess.run(
        ["/bin/sh", "-ec", commands], cwd=checkout, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stderr
    made = tmp_path / "site"
    (made / "printed").write_text(done.stdout.splitlines()[-1])
    return made


def test_the_file_is_read_and_shows_the_defaults() -> None:
    config = read_config(block(TEXT, "yaml").encode(), Path("gateway.yaml"))
    assert config.limits == Limits(clients_at=config.limits.clients_at)
    assert len(config.allowances) == 3


def test_the_file_of_revocations_is_read() -> None:
    found = re.search(r"    # lost on the train\n(    .*\n)+", TEXT)
    assert found is not None
    assert len(parse_revocations(found[0].encode())) == 2


def test_the_sensitive_addresses_that_have_no_name_are_listed() -> None:
    named = {"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/96", "fe80::/10", "fec0::/10", "ff00::/8"}
    for network in SENSITIVE:
        shown = str(network)
        assert shown in named or shown.removesuffix("/32").removesuffix("/128") in TEXT


def test_the_gateway_of_the_readme_comes_up_on_what_the_commands_make(directory: Path) -> None:
    shown = block(README, "yaml", "```yaml\ngateway: 1\n")
    assert "listen: 0.0.0.0:8443" in shown
    (directory / "gateway.yaml").write_text(shown.replace("listen: 0.0.0.0:8443", ON_LOOPBACK))
    with subprocess.Popen(
        [*COMMAND, "gateway", "-c", directory / "gateway.yaml"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
        finally:
            process.terminate()
        assert process.wait(90) == 0
    assert said.startswith("zonegate: gateway listening on 127.0.0.1:")
    assert said.rstrip().endswith("key " + (directory / "printed").read_text())


def test_the_site_of_the_readme_is_good_on_what_the_commands_make(directory: Path) -> None:
    (directory / "zonegate.yaml").write_text(site(README))
    done = subprocess.run(
        [*COMMAND, "up", "--check", "-c", directory / "zonegate.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_file_that_belongs_somewhere_is_there(directory: Path) -> None:
    table = TEXT[TEXT.index("| where | files |") : TEXT.index("The last command prints the pin")]
    files = set(re.findall(r"`([a-z.]+)`", table))
    assert files == {entry.name for entry in directory.iterdir()} - {"printed"} | {
        "gateway.yaml",
        "zonegate.yaml",
    }


def test_the_site_of_one_machine_works(directory: Path) -> None:
    """Its commands as they stand, but for the ports, the pin, and where daemon and home lie."""
    here = TEXT[TEXT.index("## Try it on one machine") :]
    ports = {"8443": str(free_port()), "8080": str(free_port())}
    (directory / "gateway.yaml").write_text(_with_ports(block(here, "yaml"), ports))
    pin = (directory / "printed").read_text()
    shown = re.sub(r"sha256:[A-Za-z0-9+/]{43}=", pin, site(here))
    assert pin in shown
    (directory / "zonegate.yaml").write_text(_with_ports(shown, ports) + "run: run\nstate: state\n")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ZONEGATE_SOCKET": str(directory / "run" / "admin.sock"),
        "XDG_DATA_HOME": str(directory / "data"),
    }
    with subprocess.Popen(
        ["/bin/bash", "-c", _with_ports(block(here, "sh"), ports)],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=90)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "\nhello\n" in said
    assert re.search(r"other\.corp\.example:\d+ is blocked by gate unreachable", said), said
    assert process.returncode == 0


def _with_ports(text: str, ports: Mapping[str, str]) -> str:
    for shown, used in ports.items():
        text = text.replace(shown, used)
    return text
