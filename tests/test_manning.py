"""A worker at each post; what a daemon does with one is in test_supervisor."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from proxy.allocators import Allocators
from proxy.demo.site import make_site
from proxy.manning import Manning
from proxy.paths import Places
from proxy.posts import Post
from proxy.segments import Segments
from proxy.site import load_site
from proxy.supervisor import Supervisor


def test_a_post_whose_zone_is_gone_is_manned_no_more(tmp_path: Path) -> None:
    """Its worker may end in the moment in which a reload takes the zone away; that stops nobody."""

    async def main() -> None:
        loaded = load_site(make_site(tmp_path, tmp_path / "run", 9).gate)
        loaded = replace(loaded, site=replace(loaded.site, zones={}))
        supervisor = Supervisor(loaded, Places(tmp_path, tmp_path), structural=True)
        segments = Segments(tmp_path / "audit", clock=lambda: datetime.now(UTC))
        manning = Manning(
            supervisor, segments, Allocators(tmp_path, (), supervisor._start), supervisor._start
        )
        await manning._man(Post("corporate", "alice", os.getuid(), ()))
        assert not supervisor.faulty and not supervisor.workers

    asyncio.run(main())
