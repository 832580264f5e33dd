"""How the programs of a bubble come to trust the inspection CA: files and variables, and no key.

Three ways, since programs look in three places: the system's bundle of roots, variables that name a bundle,
and the policies of browsers, which have roots of their own. Says what is to be where; binds nothing (see
bubble).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PLACE = Path("/run/zonegate")
ROOTS, BUNDLE = PLACE / "inspection.crt", PLACE / "ca-bundle.crt"
# Debian and Arch, Red Hat, SUSE, Alpine and BSD.
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# What reads a bundle in place of the system's; Node adds to its own.
VARIABLES: Mapping[str, Path] = {
    **dict.fromkeys(
        (
            "SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE",
            "PIP_CERT", "CARGO_HTTP_CAINFO", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        ),
        BUNDLE,
    ),
    "NODE_EXTRA_CA_CERTS": ROOTS,
}  # fmt: skip
# Where Chromium and its kin look for what the machine's owner says, below a directory that they bring.
_CHROMIUM = ("/etc/chromium", "/etc/opt/chrome", "/etc/opt/edge", "/etc/brave")
_FIREFOX = (
    ("/etc/firefox", "policies"),
    ("/usr/lib/firefox", "distribution"),
    ("/usr/lib/firefox-esr", "distribution"),
    ("/usr/lib64/firefox", "distribution"),
)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")


def files(roots: bytes) -> Iterator[tuple[Path, bytes]]:
    """What is to stand in a bubble that trusts `roots` (PEM), beside or in place of the machine's files."""
    yield ROOTS, roots
    bundles = [Path(bundle) for bundle in SYSTEM_BUNDLES if Path(bundle).is_file()]
    system = bundles[0].read_bytes() if bundles else b""
    yield BUNDLE, _joined(system, roots)
    for bundle in bundles:
        yield bundle, _joined(bundle.read_bytes(), roots)
    certificates = ["".join(found.split()) for found in _PEM.findall(roots.decode("ascii"))]
    for directory in _CHROMIUM:
        if Path(directory).is_dir():
            policy = json.dumps({"CACertificates": certificates}).encode()
            yield Path(directory, "policies/managed/zonegate-inspection.json"), policy
    for directory, below in _FIREFOX:
        if Path(directory).is_dir():
            place = Path(directory, below, "policies.json")
            yield place, json.dumps(_with_root(_read(place))).encode()


def _joined(one: bytes, two: bytes) -> bytes:
    return one + (b"" if not one or one.endswith(b"\n") else b"\n") + two


def _read(place: Path) -> dict[str, Any]:
    """The policies that a browser has already; what is not to be understood is as none."""
    try:
        found = json.loads(place.read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _with_root(policies: dict[str, Any]) -> dict[str, Any]:
    inside = policies.get("policies")
    inside = dict(inside) if isinstance(inside, dict) else {}
    certificates = inside.get("Certificates")
    certificates = dict(certificates) if isinstance(certificates, dict) else {}
    install = certificates.get("Install")
    certificates["Install"] = [*(install if isinstance(install, list) else []), str(ROOTS)]
    return {**policies, "policies": {**inside, "Certificates": certificates}}


def is_roots(text: bytes) -> bool:
    """Whether a text is certificates in PEM and nothing else: no key ever enters a bubble."""
    try:
        words = text.decode("ascii")
        found = _PEM.findall(words)
        return bool(found) and not _PEM.sub("", words).strip() and all(map(_is_der, found))
    except (UnicodeDecodeError, ValueError):
        return False


def _is_der(text: str) -> bool:
    return base64.b64decode("".join(text.split()), validate=True)[:1] == b"\x30"
