"""The stand-in cluster in a process of its own, with real shells; it buffers a flood as a real cluster does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo.cluster import DEFAULT_PODS, Pod, StandIn

BUFFER_BYTES = 16 << 20
FRAME_BYTES = 5500
SHOP = tuple(Pod("default", f"shop-{i}") for i in range(4))


def main() -> None:
    """Write a kubeconfig to the file that is named, and answer jobs until there are no more."""
    pods = (*DEFAULT_PODS, *SHOP)
    with StandIn(pods=pods, buffer_bytes=BUFFER_BYTES, frame_bytes=FRAME_BYTES) as cluster:
        Path(sys.argv[1]).write_text(cluster.kubeconfig())
        print(json.dumps({"port": cluster.port}), flush=True)
        for line in sys.stdin:
            job = json.loads(line)["job"]
            answer: dict[str, object] = {}
            if job == "look":
                answer = {"waiting_bytes": cluster.waiting_bytes(), "shells": len(cluster.shells())}
            elif job == "go_down":
                cluster.go_down()
            elif job == "come_back":
                cluster.come_back()
            elif job == "replace_pod":
                cluster.delete_pod(SHOP[0].namespace, SHOP[0].name)
                cluster.add_pod(SHOP[0])
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
