"""What decides a property test: its examples, the same in every run, and never how fast the machine is.

`pytest --hypothesis-profile default` looks for other examples.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady",
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")
