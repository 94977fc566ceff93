"""Conversations that are broken in many ways leave nothing behind in the server."""

from __future__ import annotations

import gc

from tests.mutations import Run
from tests.support import RunningServer, wait_until


def test_mutated_conversations_leave_no_object_behind(server: RunningServer) -> None:
    run = Run(server, seed=1)
    counts = []
    for _ in range(3):  # the first fills caches
        run.more(160)
        wait_until(lambda: not server.server._connections)
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[2] - counts[1] < 160  # less than one for each conversation
