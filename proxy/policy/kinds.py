"""Which of zonegate's files a file is, by the key that holds its version.

A file of another kind gets one line that names the command for it, not a dozen in the wrong grammar.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.policy.reading import Reading
from proxy.policy.source import Map, Scalar

_CURES: Mapping[str, str] = {
    "policy": "this is a policy; name its *.test.yaml",
    "policy_test": "this is a file of policy tests; run it with: zonegate test {file}",
    "zonegate": "this is a site file; check it with: zonegate up --check -c {file}",
    "gateway": "this is the configuration of a gateway; start it with: zonegate gateway -c {file}",
}


def refuse_other_kinds(reading: Reading, ours: str) -> None:
    """Raises Problems where the file says that it is of another kind.

    A site file and a test file have a path under `policy`, a policy has its version there.
    """
    if not isinstance(reading.root, Map):
        return
    keys = [k for k, value in reading.root.entries if isinstance(value, Scalar) and value.text.isdecimal()]
    kinds = {key.text: key for key in keys if key.text in _CURES}
    if kinds and ours not in kinds:
        kind, key = next(iter(kinds.items()))
        reading.problem(key, _CURES[kind].format(file=reading.filename))
        reading.finish()
