"""The inspection CA, as OpenSSL's strict verification sees what it signs."""

from __future__ import annotations

import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from proxy import inspection_ca
from proxy.inspection_ca import Authority, CaError, Intermediate
from proxy.leaves import LEAF_LIFE, CannotSign, Leaf, Leaves
from proxy.policy.inspected import Scope

NOW = datetime.now(UTC)
SCOPE = Scope(("*.dropzone.example", "git.corp.example"), ())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    inspection_ca.create(tmp_path / "inspection", "acme", NOW)
    return tmp_path / "inspection"


def accepts(trusted: bytes, leaf: Leaf, host: str, tmp_path: Path) -> bool:
    """Whether a client that trusts `trusted` accepts a leaf for a host: a whole handshake, in memory."""
    chain, key = tmp_path / "chain.pem", tmp_path / "leaf.key"
    chain.write_bytes(leaf.pem())
    key.write_bytes(
        leaf.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(chain, key)
    client_context = ssl.create_default_context(cadata=trusted.decode())
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for end in (client, server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError:
        return False
    return client.version() == "TLSv1.3"


def leaf_of(authority: Authority, host: str, scope: Scope = SCOPE) -> Leaf:
    return Leaves(authority.intermediate(scope, NOW), lambda: NOW).leaf(host)


# -- files -------------------------------------------------------------------------------------------


def test_a_root_is_its_owners_alone(directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "root-1.key").stat().st_mode) == 0o600
    assert "key" not in repr(inspection_ca.read(directory))


@pytest.mark.parametrize("name", [".", "root-1.key"])
def test_what_others_can_read_is_refused_with_the_cure(directory: Path, name: str) -> None:
    (directory / name).chmod(0o755)
    with pytest.raises(CaError, match="chmod"):
        inspection_ca.read(directory)


def test_a_directory_that_holds_something_is_left_alone(directory: Path) -> None:
    with pytest.raises(CaError, match="zonegate ca rotate"):
        inspection_ca.create(directory, "acme", NOW)


def test_no_ca_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    for directory in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(CaError, match="zonegate ca create"):
            inspection_ca.read(directory)


def test_a_key_that_is_not_the_roots_is_refused(directory: Path, tmp_path: Path) -> None:
    inspection_ca.create(tmp_path / "other", "other", NOW)
    (directory / "root-1.key").write_bytes((tmp_path / "other/root-1.key").read_bytes())
    with pytest.raises(CaError, match="is not the key"):
        inspection_ca.read(directory)


# -- what it signs -----------------------------------------------------------------------------------


def test_a_client_that_trusts_the_root_accepts_a_leaf(directory: Path, tmp_path: Path) -> None:
    authority = inspection_ca.read(directory)
    leaf = leaf_of(authority, "www.dropzone.example")
    assert accepts(authority.bundle(NOW), leaf, "www.dropzone.example", tmp_path)
    assert not accepts(authority.bundle(NOW), leaf, "git.corp.example", tmp_path)


def test_openssl_finds_nothing_wrong_with_the_chain(directory: Path, tmp_path: Path) -> None:
    authority = inspection_ca.read(directory)
    leaf = leaf_of(authority, "git.corp.example")
    (tmp_path / "root.pem").write_bytes(authority.bundle(NOW))
    (tmp_path / "chain.pem").write_bytes(leaf.pem())
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "root.pem"]
    done = subprocess.run(
        [*command, "-untrusted", "chain.pem", "chain.pem"], cwd=tmp_path, capture_output=True, timeout=90
    )
    assert done.returncode == 0, done.stderr


def test_an_intermediate_is_good_for_inspected_hosts_only(directory: Path, tmp_path: Path) -> None:
    authority = inspection_ca.read(directory)
    for host in ("www.bank.example", "dropzone.example.evil.example"):
        assert not accepts(authority.bundle(NOW), leaf_of(authority, host), host, tmp_path)
    unbound = leaf_of(authority, "www.bank.example", Scope(None, None))
    assert accepts(authority.bundle(NOW), unbound, "www.bank.example", tmp_path)


def test_addresses_are_signed_for_only_where_they_are_inspected(directory: Path, tmp_path: Path) -> None:
    authority = inspection_ca.read(directory)
    host = ip_address("192.0.2.7")
    named, numbered = Scope(("a.corp.example",), ()), Scope((), (ip_network("192.0.2.0/24"),))
    for scope, good in ((named, False), (numbered, True)):
        leaf = Leaves(authority.intermediate(scope, NOW), lambda: NOW).leaf(host)
        assert accepts(authority.bundle(NOW), leaf, "192.0.2.7", tmp_path) is good
    assert not accepts(
        authority.bundle(NOW), leaf_of(authority, "a.corp.example", numbered), "a.corp.example", tmp_path
    )


def test_an_intermediate_makes_no_other_authority(directory: Path) -> None:
    issued = inspection_ca.read(directory).intermediate(SCOPE, NOW).issued
    extensions = issued.certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    constraints = extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert list(inspection_ca.permitted(issued.certificate)) == ["dropzone.example", "git.corp.example"]
    assert issued.certificate.not_valid_after_utc - NOW <= timedelta(days=7)


def test_too_many_names_are_no_bound() -> None:
    names = tuple(f"h{i}.corp.example" for i in range(inspection_ca.MAX_SUBTREES + 1))
    assert inspection_ca.name_constraints(Scope(names, ())) is None
    below = inspection_ca.name_constraints(Scope((*names, "*.corp.example"), ()))
    assert below is not None and below.permitted_subtrees == [x509.DNSName("corp.example")]


def test_an_expired_root_and_nothing_to_inspect_sign_nothing(directory: Path) -> None:
    authority = inspection_ca.read(directory)
    with pytest.raises(CaError, match="nothing inspected"):
        authority.intermediate(Scope((), ()), NOW)
    with pytest.raises(CaError, match="rotate"):
        authority.intermediate(SCOPE, NOW + timedelta(days=inspection_ca.ROOT_DAYS + 1))


def test_an_intermediate_travels_as_text(directory: Path) -> None:
    one = inspection_ca.read(directory).intermediate(SCOPE, NOW)
    two = Intermediate.read(one.pem(), one.issued.key_pem)
    assert two.issued.certificate == one.issued.certificate and two.above == one.above
    other = inspection_ca.read(directory).intermediate(SCOPE, NOW)
    with pytest.raises(ValueError, match="not the intermediate's"):
        Intermediate.read(one.pem(), other.issued.key_pem)


# -- rotation ----------------------------------------------------------------------------------------


def test_after_rotations_old_programs_and_new_ones_accept_what_is_signed(
    directory: Path, tmp_path: Path
) -> None:
    bundles = [inspection_ca.read(directory).bundle(NOW)]
    for _ in range(2):
        bundles.append(inspection_ca.rotate(directory, NOW).bundle(NOW))
    leaf = leaf_of(inspection_ca.read(directory), "git.corp.example")
    newest = inspection_ca.read(directory).trusted[0].public_bytes(serialization.Encoding.PEM)
    for bundle in (*bundles, newest):
        assert accepts(bundle, leaf, "git.corp.example", tmp_path)
    assert sorted(path.name for path in directory.glob("*.key")) == ["root-3.key"]


def test_a_distrusted_root_vouches_for_nothing(directory: Path, tmp_path: Path) -> None:
    before = inspection_ca.read(directory)
    after = inspection_ca.rotate(directory, NOW, distrust=True)
    leaf = leaf_of(after, "git.corp.example")
    assert accepts(after.bundle(NOW), leaf, "git.corp.example", tmp_path)
    assert not accepts(before.bundle(NOW), leaf, "git.corp.example", tmp_path)
    assert not accepts(after.bundle(NOW), leaf_of(before, "git.corp.example"), "git.corp.example", tmp_path)


def test_a_rotation_that_was_cut_short_changes_nothing(directory: Path) -> None:
    before = inspection_ca.read(directory)
    inspection_ca.rotate(directory, NOW)
    (directory / "cross-2.crt").unlink()
    (directory / "root-1.key").write_bytes(before.root.key_pem)
    (directory / "root-1.key").chmod(0o600)
    assert inspection_ca.read(directory).root.certificate == before.root.certificate
    assert inspection_ca.rotate(directory, NOW).root.certificate != before.root.certificate


# -- leaves ------------------------------------------------------------------------------------------


def test_each_name_has_a_key_of_its_own_that_is_not_what_signs(directory: Path) -> None:
    by = inspection_ca.read(directory).intermediate(SCOPE, NOW)
    leaves = Leaves(by, lambda: NOW)
    one, two = leaves.leaf("git.corp.example"), leaves.leaf("a.dropzone.example")
    keys = [one.key.public_key(), two.key.public_key(), by.issued.key.public_key()]
    assert len({key.public_numbers() for key in keys}) == 3
    assert leaves.leaf("git.corp.example") is one
    names = one.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("git.corp.example")]
    assert "key" not in repr(one)


def test_leaves_are_bounded_and_renewed_before_they_end(directory: Path) -> None:
    clock = [NOW]
    leaves = Leaves(inspection_ca.read(directory).intermediate(SCOPE, NOW), lambda: clock[0], most=3)
    first = leaves.leaf("a.dropzone.example")
    for name in "bcd":
        leaves.leaf(f"{name}.dropzone.example")
    assert len(leaves) == 3 and leaves.leaf("a.dropzone.example") is not first
    early = leaves.leaf("b.dropzone.example")
    clock[0] += LEAF_LIFE / 2 + timedelta(seconds=1)
    assert leaves.leaf("b.dropzone.example") is not early
    clock[0] = NOW + timedelta(days=inspection_ca.INTERMEDIATE_DAYS)
    with pytest.raises(CannotSign):
        leaves.leaf("b.dropzone.example")
