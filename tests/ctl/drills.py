"""What the daemon answers about drills, as docs/control-api.md has it."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

PLAN: Document = {
    "fault": "kill",
    "name": "chatglm-02",
    "rate": 10.0,
    "seconds": 60.0,
    "what": "SIGKILL to chatglm-02 (pid 4712): a stream that it is sending is cut, whatever else it has is answered",
    "refused": None,
    "problems": [],
}
HURTS: Document = PLAN | {
    "refused": "it could hurt",
    "problems": ["1 of 2 serve; at least 2 have to", "chatglm-01 is backoff: exited 1"],
}
EVENT: Document = {
    "id": 815,
    "at": "2026-11-24T03:02:05.540Z",
    "subject": "chatglm-02",
    "event": "routing",
    "sentence": "out of the gateway: generation 42",
    "by": "chatglm-ha",
}


def drill(sentence: str, state: str = "running", **changes: Any) -> Document:
    """drill-3, a kill of chatglm-02, at one point of its way; `changes` says what is different."""
    has_ended = state != "running"
    return {
        "id": "drill-3",
        "fault": "kill",
        "name": "chatglm-02",
        "by": "alice (uid 1000)",
        "state": state,
        "sentence": sentence,
        "started": "2026-11-24T03:02:04.000Z",
        "fault_at": "2026-11-24T03:02:05.320Z",
        "ended": "2026-11-24T03:02:09.000Z" if has_ended else None,
        "load": load(),
        "until": {
            "out_of_rotation_s": 0.22,
            "fenced_s": None,
            "serving_again_s": 0.941 if has_ended else None,
        },
        "findings": [],
        "history": [EVENT],
        **changes,
    }


def load(failures: dict[str, int] | None = None, **changes: Any) -> Document:
    """What became of the prompts."""
    found = failures or {}
    return {
        "rate": 10.0,
        "seconds": 60.0,
        "patience_s": 100.0,
        "sent": 33,
        "answered": 33 - sum(found.values()),
        "shed": 0,
        "failed": sum(found.values()),
        "failures": [{"what": what, "count": count} for what, count in found.items()],
        "slowest_s": 0.104,
        "late_s": 0.002,
        **changes,
    }
