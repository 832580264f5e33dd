"""`LAB_WITHOUT=NAME[,NAME]` takes the defences of an inspector out of these tests, too."""

from __future__ import annotations

import os

import pytest
from defences import take_out
from lab.weakened import INSPECTORS


@pytest.fixture(scope="session", autouse=True)
def weakened() -> None:
    """Take out what the environment names."""
    for name in sorted(INSPECTORS.keys() & set(os.environ.get("LAB_WITHOUT", "").split(","))):
        take_out(name)
