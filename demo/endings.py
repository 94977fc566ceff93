"""How a pod comes to its end, as its object in the API tells it. Owns the JSON; it ends nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["ENDINGS", "NOT_RUNNING", "rfc3339"]

STATUS_LISTS = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


def rfc3339(moment: float) -> str:
    """Unix seconds as the API writes them: UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _condition(kind: str, status: str, when: float, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": rfc3339(when), **more}


def _terminated(when: float, reason: str, code: int) -> dict[str, Any]:
    times = {"startedAt": rfc3339(when - 3600), "finishedAt": rfc3339(when)}
    return {"terminated": {"exitCode": code, "reason": reason, **times, "containerID": "containerd://0123456789abcdef"}}


def _evicted(pod: dict[str, Any], when: float) -> None:
    """By the kubelet of a node that runs out of memory: the pod stays as an object, failed."""
    low = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. "
    used = "Container main was using 512Mi, request is 64Mi, has larger consumption of memory. "
    disrupted = {"reason": "TerminationByKubelet", "message": low + used}
    pod["status"] = {
        "phase": "Failed",
        "reason": "Evicted",
        "message": low + used,
        "startTime": rfc3339(when - 3600),
        "conditions": [
            _condition("DisruptionTarget", "True", when, **disrupted),
            _condition("Ready", "False", when, reason="PodFailed"),
            _condition("ContainersReady", "False", when, reason="PodFailed"),
        ],
        "containerStatuses": [
            {"name": item["name"], "ready": False, "restartCount": 0, "state": _terminated(when, "Error", 137)}
            for item in pod["spec"]["containers"]
        ],
    }


def _oom_killed(pod: dict[str, Any], when: float) -> None:
    """A container went over its memory limit; the kubelet has started it again."""
    pod["status"]["conditions"] = [_condition("Ready", "True", when), _condition("ContainersReady", "True", when)]
    for item in (item for kind in STATUS_LISTS for item in pod["status"].get(kind, ())):
        running = {"running": {"startedAt": rfc3339(when + 1)}}
        item.update(ready=True, restartCount=1, state=running, lastState=_terminated(when, "OOMKilled", 137))


def _node_not_ready(pod: dict[str, Any], when: float) -> None:
    """The node was silent for 40 s: the control plane takes Ready away. The rest is the kubelet's last word."""
    pod["status"]["conditions"] = [
        _condition("Ready", "False", when),
        _condition("ContainersReady", "True", when - 3600),
    ]
    for item in pod["status"]["containerStatuses"]:
        item.update(ready=True, state={"running": {"startedAt": rfc3339(when - 3600)}})


def _node_lost(pod: dict[str, Any], when: float) -> None:
    """Five minutes later the pod is to be deleted, but nobody is there to confirm that its processes have ended."""
    _node_not_ready(pod, when)
    pod["status"].update(reason="NodeLost", message="Node node-1 which was running pod demo is unresponsive")
    _deleting(pod, when)


def _deleting(pod: dict[str, Any], when: float) -> None:
    """A delete was asked for; the object is there until the kubelet confirms the end of the processes."""
    pod["metadata"].update(deletionTimestamp=rfc3339(when + 30), deletionGracePeriodSeconds=30)


def _waiting(phase: str, reason: str, message: str = "") -> dict[str, Any]:
    more = {"message": message} if message else {}
    return {"phase": phase, "state": {"waiting": {"reason": reason, **more}}}


# Why a pod does not run: its phase, and the state of its containers, if the kubelet has told of any.
NOT_RUNNING: dict[str, dict[str, Any]] = {
    "finished": {"phase": "Succeeded", "state": _terminated(1_700_000_000, "Completed", 0)},
    "pending": _waiting("Pending", "ContainerCreating"),
    "no-image": _waiting("Pending", "ImagePullBackOff", 'Back-off pulling image "nowhere.example/demo:1"'),
    "crashing": _waiting("Running", "CrashLoopBackOff", "back-off 5m0s restarting failed container=main pod=crashing"),
    "unschedulable": {"phase": "Pending"},
}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient memory.",
}


# Each changes a pod's object so that it tells of an end at that time (Unix seconds).
ENDINGS: dict[str, Callable[[dict[str, Any], float], None]] = {
    "evicted": _evicted,
    "oom": _oom_killed,
    "node-not-ready": _node_not_ready,
    "node-lost": _node_lost,
    "deleting": _deleting,
}
