"""An authority and what it issues, as OpenSSL's strict verification sees it."""

from __future__ import annotations

import hashlib
import ssl
import stat
import subprocess
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.certificates import (
    Issued,
    fingerprint,
    issue_client,
    issue_server,
    make_authority,
    read_issued,
    spki_pin,
    write_issued,
)

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Issued:
    return make_authority("site", now=NOW)


def test_a_key_is_readable_by_its_owner_only_and_a_file_is_never_replaced(
    authority: Issued, tmp_path: Path
) -> None:
    certificate, key = write_issued(authority, tmp_path, "ca")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(certificate.stat().st_mode) == 0o644
    with pytest.raises(FileExistsError):
        write_issued(authority, tmp_path, "ca")
    assert read_issued(certificate, key).pin == authority.pin


def test_a_certificate_with_another_key_is_refused(authority: Issued, tmp_path: Path) -> None:
    certificate, _ = write_issued(issue_client(authority, "a", now=NOW), tmp_path, "a")
    _, key = write_issued(issue_client(authority, "b", now=NOW), tmp_path, "b")
    with pytest.raises(ValueError, match="is not the key of"):
        read_issued(certificate, key)


def test_the_repr_hides_the_key(authority: Issued) -> None:
    assert "key" not in repr(authority)


def test_a_server_certificate_needs_a_name(authority: Issued) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        issue_server(authority, [], now=NOW)


def test_the_pin_is_of_the_public_key_and_outlives_the_certificate(authority: Issued) -> None:
    renewed = make_authority("other", now=NOW)
    assert renewed.pin != authority.pin
    assert authority.pin == spki_pin(authority.der)
    assert authority.fingerprint == fingerprint(authority.der)


def test_pin_and_fingerprint_agree_with_openssl(authority: Issued, tmp_path: Path) -> None:
    certificate, _ = write_issued(issue_server(authority, ["gate.example"], now=NOW), tmp_path, "s")
    public = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-pubkey"], check=True, capture_output=True
    ).stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=public, check=True, capture_output=True
    ).stdout
    issued = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert spki_pin(issued) == "sha256:" + b64encode(hashlib.sha256(der).digest()).decode()


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_verifies_each_for_its_own_use_only(authority: Issued, tmp_path: Path, purpose: str) -> None:
    ca, _ = write_issued(authority, tmp_path, "ca")
    server, _ = write_issued(issue_server(authority, ["gate.example", "192.0.2.1"], now=NOW), tmp_path, "s")
    client, _ = write_issued(issue_client(authority, "laptop", now=NOW), tmp_path, "c")
    for leaf, use in ((server, "sslserver"), (client, "sslclient")):
        run = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, leaf],
            capture_output=True,
            check=False,
        )
        assert (run.returncode == 0) is (use == purpose), run.stderr


def test_validity_counts_from_the_given_clock(authority: Issued) -> None:
    leaf = issue_client(authority, "laptop", now=NOW - timedelta(days=10), days=9)
    assert leaf.certificate.not_valid_after_utc < NOW
