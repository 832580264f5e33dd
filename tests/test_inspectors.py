"""An inspector as its supervisor has it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopback import runner

from proxy import ipc
from proxy.demo.site import make_site
from proxy.flow import TunnelState
from proxy.inspectors import Inspector
from proxy.link import Link
from proxy.messages.worker import FROM_WORKER, Lease
from proxy.posts import Post
from proxy.segments import Segments
from proxy.site import load_site

UP = Lease("hq", TunnelState.ATTESTED, "it answers", "sha256:peer", 1, 1 << 62)


def test_one_that_came_while_its_zone_was_locked_has_leases_when_it_is_opened(tmp_path: Path) -> None:
    async def main() -> None:
        words = ["locked by ana"]
        loaded = load_site(make_site(tmp_path, tmp_path / "run", 9).gate)
        segments = Segments(tmp_path / "audit", clock=lambda: datetime.now(UTC))
        how: dict[str, Any] = {"structural": True, "number": "i1", "locked": lambda: words[0]}
        post = Post("corporate", "alice", os.getuid(), ())
        inspector = Inspector(post, loaded, {}, segments, lambda _: None, **how)
        ours, theirs = ipc.pair()
        inspector._link = Link(ours, FROM_WORKER)
        for locked in ("locked by ana", "", "locked by ben", ""):
            words[0] = locked
            inspector.lease(UP)
            lease, _ = ipc.receive(theirs, [Lease])
            assert (lease.deadline_ns == 0, lease.words) == (bool(locked), locked or UP.words)
        inspector._link.close()
        theirs.close()

    runner("asyncio")(main())
