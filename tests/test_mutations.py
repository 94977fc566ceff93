"""Conversations that are broken in many ways leave nothing behind in the server."""

from __future__ import annotations

import gc

from tests.mutations import Run
from tests.support import RunningServer, wait_until


def test_mutated_conversations_leave_no_object_behind(server: RunningServer) -> None:
    run = Run(server, seed=1)
    for _ in range(2):  # the first fills caches
        run.more(160)
        wait_until(lambda: not server.server._connections)
    before = objects()
    run.more(160)
    # Less than one for each conversation, once what they started has ended.
    wait_until(lambda: objects() - before < 160, "the end of all objects of the conversations")


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())
