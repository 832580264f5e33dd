"""docs/gateway.md is true: its file is read, and its openssl commands make certificates that work."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from pathlib import Path

from loopback import pair

from proxy.certificates import spki_pin
from proxy.channel import client_context, server_context, tls_client, tls_server
from proxy.gateway.config import Limits, read_config
from proxy.gateway.judge import SENSITIVE
from proxy.gateway.revoked import parse_revocations

TEXT = (Path(__file__).parent.parent / "docs" / "gateway.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_file_is_read_and_shows_the_defaults() -> None:
    config = read_config(block("yaml").encode(), Path("gateway.yaml"))
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


def test_the_commands_make_certificates_that_work(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-ec", block("sh")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ca = (tmp_path / "clients-ca.crt").read_text()

    async def main() -> None:
        ours, theirs = pair()
        for_server = server_context(
            client_ca_pem=ca, certificate=tmp_path / "gateway.crt", key=tmp_path / "gateway.key"
        )
        for_client = client_context(
            ca_pem=ca, certificate=tmp_path / "laptop.crt", key=tmp_path / "laptop.key"
        )
        serving = asyncio.create_task(tls_server(theirs, for_server, 30))
        pin = _pin(tmp_path / "gateway.crt")
        client = await tls_client(ours, for_client, "gw.corp.example", {pin}, 30)
        server = await serving
        await client.write(b"both know each other")
        assert await server.read() == b"both know each other"
        client.abort()
        server.abort()

    asyncio.run(main())


def _pin(certificate: Path) -> str:
    return spki_pin(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
