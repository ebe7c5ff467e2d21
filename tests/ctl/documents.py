"""What the daemon answers, as docs/control-api.md has it: the one place to compare with the real daemon."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

Document = dict[str, Any]

NOW = "2026-11-24T03:02:11.123Z"


STATE_LINE = "2026-11-24 03:01:58  chatglm-02   state      serving -> backoff: killed by signal 9\n"
SCALE_LINE = "2026-11-24 03:02:03  chatglm      scale      2 -> 3 wanted  (alice (uid 1000))\n"
"""The two entries of HISTORY, as `history` prints them."""


def ago(seconds: float) -> str:
    """A time in a document, so many seconds before now."""
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def instance(number: int, **changes: Any) -> Document:
    """An instance that serves; `changes` says what is different."""
    return {
        "name": f"chatglm-{number:02}",
        "state": "serving",
        "colour": "green",
        "reason": "answers, 3 in flight, progressing",
        "since": "2026-11-24T02:58:59.000Z",
        "endpoint": f"127.0.0.1:{7999 + number}",
        "address": f"172.17.0.{number + 1}:8000",
        "runtime_id": f"3f1c9a{number:02}" + "d" * 56,
        "pid": 4710 + number,
        "image": "chatglm-service:v1.1.0",
        "gpus": [],
        "routed": True,
        "in_flight": 3,
        "queued": 0,
        "restarts": 1,
        "qps": 4.2,
        "latency_ms": {"mean": 900.0, "p50": 800.0, "p95": 1800.0},
        "error_rate": 0.0,
        "verdict": "serving",
        "last_failure": None,
        "attempts": {"failed": 0, "of": 5},
        "retry_in_s": None,
        **changes,
    }


def fallen_instance(number: int, **changes: Any) -> Document:
    """An instance that keeps exiting."""
    fallen = instance(
        number,
        state="backoff",
        colour="red",
        reason="exited 1, try 4 of 5 in 40 s",
        since="2026-11-24T03:01:59.000Z",
        runtime_id=None,
        pid=None,
        routed=False,
        in_flight=0,
        restarts=3,
        qps=0.0,
        latency_ms={"mean": None, "p50": None, "p95": None},
        verdict="dead",
        last_failure={"at": "2026-11-24T03:01:59.000Z", "reason": "exited 1"},
        attempts={"failed": 3, "of": 5},
        retry_in_s=40.2,
    )
    return fallen | changes


def status(*instances: Document, **changes: Any) -> Document:
    """A host on which everything serves; `changes` says what is different."""
    shown = list(instances) or [instance(1), instance(2)]
    serving = sum(one["state"] == "serving" for one in shown)
    return {
        "schema": 1,
        "service": "chatglm",
        "host": "gpu-07",
        "version": "0.1.0",
        "now": NOW,
        "health": "green" if serving == len(shown) else "yellow" if serving else "red",
        "summary": f"{serving} of {len(shown)} serving",
        "desired": len(shown),
        "serving": serving,
        "mode": "auto",
        "settled": True,
        "stale": None,
        "paused": None,
        "problems": [],
        "instances": shown,
        "gpus": [],
        "gpu_driver": None,
        "gpu_room": None,
        "nginx": {
            "ok": True,
            "generation": 41,
            "live_generation": 41,
            "servers": serving,
            "old_workers": 0,
            "held": 0,
            "reason": None,
        },
        "autoscale": {
            "policy": "thresholds",
            "desired": len(shown),
            "sentence": f"holding {len(shown)}: the autoscaler is not built yet",
            "inputs": {},
        },
        "traffic": {
            "qps": 8.1,
            "latency_ms": {"mean": 880.0, "p50": 790.0, "p95": 1900.0},
            "error_rate": 0.0,
            "in_flight": 5,
        },
        **changes,
    }


def dockerd_away() -> Document:
    """dockerd is silent, which the daemon says in general, as a problem, and of the instance that waits for it."""
    silence = "no answer in 5 s (3rd time)"
    return status(
        instance(1),
        fallen_instance(2),
        health="yellow",
        stale={"what": "dockerd", "sentence": silence, "age_s": 12.1},
        problems=[
            {
                "subject": "runtime",
                "sentence": f"{silence}; routing stays as it was",
                "hint": "chatglm-hactl history --since 10m",
            },
            {
                "subject": "chatglm-02",
                "sentence": f"its process has ended; waits: {silence}",
                "hint": "chatglm-hactl logs chatglm-02 --last-failure",
            },
        ],
    )


def troubled_status(**changes: Any) -> Document:
    """A host on which nearly everything that can be said has to be said."""
    return status(
        instance(1, gpus=["GPU-6a1f"]),
        fallen_instance(2),
        instance(3, state="loading", colour="yellow", reason="loads its model since 1m40s", routed=False, in_flight=0),
        **{
            "paused": PAUSED,
            "stale": {"what": "dockerd", "sentence": "no answer in 5 s (3rd time)", "age_s": 12.1},
            "problems": [
                {
                    "subject": "chatglm-02",
                    "sentence": "backing off: exited 1, try 4 of 5 in 40 s",
                    "hint": "chatglm-hactl logs chatglm-02 --last-failure",
                }
            ],
            "gpus": [GPU],
            "gpu_driver": GPU_DRIVER,
            "gpu_room": {"instances": 9, "reason": None},
            "nginx": {
                "ok": False,
                "generation": 42,
                "live_generation": 41,
                "servers": 1,
                "old_workers": 0,
                "held": 0,
                "reason": 'unknown directive "upstrem" in /etc/nginx/conf.d/x.conf:3',
            },
            **changes,
        },
    )


PAUSED: Document = {
    "by": "alice (uid 1000)",
    "since": "2026-11-24T02:58:59.123Z",
    "until": "2026-11-24T03:08:59.123Z",
    "reason": "new driver",
}

GPU: Document = {
    "uuid": "GPU-6a1f",
    "index": 0,
    "name": "NVIDIA H200",
    "memory_total_bytes": 150754820096,
    "memory_used_bytes": 14495514624,
    "utilization": 0.71,
    "temperature_c": 61,
    "state": "ok",
    "reason": None,
    "instances": ["chatglm-01"],
    "bus": "00000000:3B:00.0",
    "memory_available_bytes": 135722262528,
    "memory_foreign_bytes": 0,
    "memory_leaked_bytes": 0,
    "power_w": 312.4,
    "quarantine": None,
    "excluded": False,
}

GPU_DRIVER: Document = {
    "state": "ok",
    "sentence": "driver 550.163.01, 1 GPU",
    "version": "550.163.01",
    "kernel_log": {"readable": True, "sentence": None},
}


def gpu(number: int, state: str = "ok", reason: str | None = None, **changes: Any) -> Document:
    """A card; one that is lost or quarantined takes no newcomers."""
    closed = {} if state == "ok" else {"memory_available_bytes": None}
    uuid = f"GPU-{number}a1f0000-0000-4000-8000-000000000000"
    return GPU | {"uuid": uuid, "index": number, "state": state, "reason": reason} | closed | changes


def gpus(*cards: Document, **changes: Any) -> Document:
    """What `gpu list` asks for."""
    room = {"instances": 9 * sum(card["state"] == "ok" for card in cards), "reason": None}
    return {"driver": GPU_DRIVER, "room": room, "gpus": list(cards), **changes}


VERSION: Document = {"version": "0.1.0", "api": 1, "pid": 812, "started": "2026-11-24T03:00:00.000Z"}

AUTOSCALE = {
    "policy": "thresholds",
    "desired": 2,
    "sentence": "holding 2: the means are between the limits",
    "inputs": {"connections_6": 12.5, "gpu_utilization_6": None},
    "mode": "auto",
    "bounds": {"min": 2, "max": 6},
    "slots": {"count": 8, "how": "assumed"},
    "windows": {"sample": 10.0, "evaluate": 30.0, "up": 60.0, "down": 120.0},
    "samples": 7,
    "latest": {"age_s": 4.2, "serving": 2, "in_flight": 25.0, "gpu_utilization": None},
    "opinions": {
        "thresholds": {
            "desired": 2,
            "sentence": "holding 2: the means are between the limits",
            "held_back_by": None,
            "inputs": {"connections_6": 12.5, "gpu_utilization_6": None},
        },
        "concurrency": {
            "desired": 2,
            "sentence": "holding 2: 3 would be wanted",
            "held_back_by": "chatglm-03 is still on its way up",
            "inputs": {"needed": 3.0},
        },
    },
}


def _row(at: int, qps: float, in_flight: float, serving: int, desired: int, wait: float, step: str | None) -> Document:
    return {
        "at": at,
        "qps": qps,
        "in_flight": in_flight,
        "serving": serving,
        "desired": desired,
        "wait_p95_s": wait,
        "response_time_ms": 500.0,
        "step": step,
    }


REPLAY = [
    _row(10, 2.0, 1.5, 2, 2, 0.0, None),
    _row(20, 6.0, 9.0, 2, 3, 2.5, "2 -> 3: 9.0 in flight"),
    _row(30, 6.0, 3.0, 3, 3, 1.0, None),
    {
        "total": {
            "seconds": 30,
            "requests": 140,
            "steps": 1,
            "turns": 0,
            "most": 3,
            "first_step_s": 15,
            "wait_p95_s": 1.5,
            "wait_worst_s": None,
            "replica_minutes": 1.2,
        }
    },
]

HISTORY: list[Document] = [
    {
        "id": 811,
        "at": "2026-11-24T03:01:58.900Z",
        "subject": "chatglm-02",
        "event": "state",
        "sentence": "serving -> backoff: killed by signal 9",
        "by": "chatglm-ha",
    },
    {
        "id": 812,
        "at": "2026-11-24T03:02:03.000Z",
        "subject": "chatglm",
        "event": "scale",
        "sentence": "2 -> 3 wanted",
        "by": "alice (uid 1000)",
    },
]

EXPLANATION: Document = {
    "name": "chatglm-02",
    "state": "backoff",
    "colour": "red",
    "verdict": "dead",
    "reason": "exited 1, try 4 of 5 in 40 s",
    "since": "2026-11-24T03:01:59.000Z",
    "evidence": ["its process has ended: exited 1", "3 failures in the last 10 min"],
    "next": "tries again in 40 s",
    "last_failure": {
        "at": "2026-11-24T03:01:59.000Z",
        "reason": "exited 1",
        "tail": "loading /models/chatglm-6b\nOSError: no file named config.json",
    },
    "history": [HISTORY[0]],
}

DRY_RUN: Document = {"desired": 2, "wanted": 4, "steps": ["start chatglm-03", "start chatglm-04"], "refused": None}

NGINX: Document = {
    "mode": "system",
    "dir": "/var/lib/chatglm-ha/nginx",
    "generation": 41,
    "live_generation": 41,
    "ok": True,
    "reason": None,
    "files": {
        "upstream.conf": "upstream chatglm {\n    server 127.0.0.1:8000;\n}\n",
        "gateway.conf": "server {\n    listen 80;\n}\n",
    },
}

CONFIG: Document = {
    "path": "/etc/chatglm-ha/config.toml",
    "config": {
        "service": {"name": "chatglm", "instances": 2, "one_at_a_time": True},
        "docker": {"volumes": ["/models:/models:ro"], "env": {"MODEL_PATH": "/models/chatglm-6b"}},
        "health": {"interval": 2.0, "prompt": "你好"},
    },
}


def operation(sentence: str, state: str = "running", **changes: Any) -> Document:
    """Operation op-7, a scale to 4, at one point of its way."""
    return {
        "id": "op-7",
        "kind": "scale",
        "by": "alice (uid 1000)",
        "started": "2026-11-24T03:02:00.000Z",
        "ended": None if state == "running" else "2026-11-24T03:02:09.000Z",
        "state": state,
        "sentence": sentence,
        "targets": ["chatglm-04"] if state == "running" else [],
        "total": 4,
        **changes,
    }


def problem(number: int, detail: str, *, hint: str | None = None, problems: tuple[str, ...] = ()) -> Document:
    """An error, as application/problem+json."""
    titles = {400: "Bad Request", 404: "Not Found", 409: "Refused", 422: "Not valid", 500: "Failed", 503: "Unavailable"}
    return {
        "type": "about:blank",
        "title": titles[number],
        "status": number,
        "detail": detail,
        "hint": hint,
        "problems": list(problems),
    }


def unix(rfc3339: str) -> float:
    """Unix seconds of the daemon's time."""
    return datetime.fromisoformat(rfc3339).timestamp()
