"""The shapes that CONTRACT 4 and docs/control-api.md promise, and a check of a document against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Shape = Any
"""A type, a pattern for text, a set of words, a Maybe, [shape of items], or {key: shape} with exactly these keys."""


@dataclass(frozen=True)
class Maybe:
    """Null, or that."""

    shape: Shape


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NUMBER = (int, float)
STATES = {"starting", "loading", "serving", "suspect", "draining", "stopping", "backoff", "parked"}
COLOURS = {"green", "yellow", "red"}
VERDICTS = {"serving", "busy", "loading", "suspect", "hung", "sick", "dead", "unknown"}
FLOW = {
    "qps": NUMBER,
    "latency_ms": {"mean": Maybe(NUMBER), "p50": Maybe(NUMBER), "p95": Maybe(NUMBER)},
    "error_rate": NUMBER,
}

PAUSED = {"by": str, "since": TIME, "until": Maybe(TIME), "reason": str}

INSTANCE = {
    "name": str,
    "state": STATES,
    "colour": COLOURS,
    "verdict": VERDICTS,
    "reason": str,
    "since": TIME,
    "endpoint": re.compile(r"\S+:\d+"),
    "address": Maybe(str),
    "runtime_id": Maybe(str),
    "pid": Maybe(int),
    "image": Maybe(str),
    "gpus": [str],
    "routed": bool,
    "in_flight": Maybe(int),
    "queued": Maybe(int),
    "restarts": int,
    "attempts": {"failed": int, "of": int},
    "retry_in_s": Maybe(NUMBER),
    "last_failure": Maybe({"at": TIME, "reason": str}),
    **FLOW,
}

GPU = {
    "uuid": str,
    "index": Maybe(int),
    "name": Maybe(str),
    "memory_total_bytes": Maybe(int),
    "memory_used_bytes": Maybe(int),
    "utilization": Maybe(NUMBER),
    "temperature_c": Maybe(NUMBER),
    "state": {"ok", "suspect", "quarantined", "lost"},
    "reason": Maybe(str),
    "instances": [str],
    "bus": Maybe(str),
    "memory_available_bytes": Maybe(int),
    "memory_foreign_bytes": Maybe(int),
    "memory_leaked_bytes": Maybe(int),
    "power_w": Maybe(NUMBER),
    "quarantine": Maybe({"reason": str, "needs": {"reset", "reboot", "repair", "word"}, "by": str, "since": TIME}),
    "excluded": bool,
}

GPU_DRIVER = {
    "state": {"unknown", "ok", "absent", "mismatched", "wedged", "failed"},
    "sentence": str,
    "version": Maybe(str),
    "kernel_log": Maybe({"readable": bool, "sentence": Maybe(str)}),
}

GPU_ROOM = {"instances": Maybe(int), "reason": Maybe(str)}

GPUS = {"driver": Maybe(GPU_DRIVER), "room": Maybe(GPU_ROOM), "gpus": [GPU]}

AUTOSCALE = {"policy": {"thresholds", "concurrency"}, "desired": int, "sentence": str, "inputs": dict}

OPINION = {"desired": int, "sentence": str, "held_back_by": Maybe(str), "inputs": dict}

SAMPLE = {
    "age_s": Maybe(NUMBER),
    "serving": int,
    "desired": int,
    "starting": int,
    **dict.fromkeys(
        (
            *("in_flight", "queued", "connections", "response_time_ms", "gpu_utilization", "qps", "cpu_percent"),
            *("memory_percent", "gpu_memory_used_gb", "gpu_memory_total_gb", "turned_away"),
        ),
        Maybe(NUMBER),
    ),
}

AUTOSCALE_WHOLE = {
    **AUTOSCALE,
    "mode": {"auto", "manual"},
    "bounds": {"min": int, "max": int},
    "slots": Maybe({"count": NUMBER, "how": str}),
    "windows": {"sample": NUMBER, "evaluate": NUMBER, "up": NUMBER, "down": NUMBER},
    "samples": int,
    "latest": Maybe(SAMPLE),
    "opinions": {"thresholds": OPINION, "concurrency": OPINION},
}

REPLAY_ROW = {
    "at": NUMBER,
    "qps": NUMBER,
    "in_flight": NUMBER,
    "serving": int,
    "desired": int,
    "wait_p95_s": Maybe(NUMBER),
    "response_time_ms": Maybe(NUMBER),
    "step": Maybe(str),
}

REPLAY_TOTAL = {
    "total": {
        "seconds": NUMBER,
        "requests": int,
        "steps": int,
        "turns": int,
        "most": int,
        "first_step_s": Maybe(NUMBER),
        "wait_p95_s": Maybe(NUMBER),
        "wait_worst_s": Maybe(NUMBER),
        "replica_minutes": NUMBER,
    }
}

STATUS = {
    "schema": {1},
    "service": str,
    "host": str,
    "version": str,
    "now": TIME,
    "health": COLOURS,
    "summary": str,
    "desired": int,
    "serving": int,
    "mode": {"auto", "manual"},
    "paused": Maybe(PAUSED),
    "settled": bool,
    "stale": Maybe({"what": str, "sentence": str, "age_s": Maybe(NUMBER)}),
    "problems": [{"subject": str, "sentence": str, "hint": str}],
    "instances": [INSTANCE],
    "gpus": [GPU],
    "gpu_driver": Maybe(GPU_DRIVER),
    "gpu_room": Maybe(GPU_ROOM),
    "nginx": Maybe(
        {
            "ok": bool,
            "generation": int,
            "live_generation": Maybe(int),
            "servers": int,
            "old_workers": int,
            "held": int,
            "reason": Maybe(str),
        }
    ),
    "autoscale": AUTOSCALE,
    "traffic": {**FLOW, "in_flight": Maybe(int)},
}

OPERATION = {
    "id": re.compile(r"op-\d+"),
    "kind": {"scale", "restart", "drain", "undrain"},
    "by": str,
    "started": TIME,
    "ended": Maybe(TIME),
    "state": {"running", "done", "failed", "cancelled"},
    "sentence": str,
    "targets": [str],
    "total": int,
}

ENTRY = {"id": int, "at": TIME, "subject": str, "event": str, "sentence": str, "by": str}

EXPLANATION = {
    "name": str,
    "state": STATES,
    "colour": COLOURS,
    "verdict": VERDICTS,
    "reason": str,
    "since": TIME,
    "evidence": [str],
    "next": str,
    "last_failure": Maybe({"at": TIME, "reason": str, "tail": str}),
    "history": [ENTRY],
}

DRY_RUN = {"desired": int, "wanted": int, "steps": [str], "refused": Maybe(str)}

PROBLEM = {
    "type": {"about:blank"},
    "title": str,
    "status": int,
    "detail": re.compile(r".+", re.DOTALL),
    "hint": Maybe(str),
    "problems": [str],
}


def misfits(value: Any, shape: Shape, where: str = "$") -> list[str]:
    """What does not conform, a sentence each; nothing for a document as promised."""
    match shape:
        case Maybe():
            return [] if value is None else misfits(value, shape.shape, where)
        case re.Pattern():
            like = isinstance(value, str) and shape.fullmatch(value) is not None
            return [] if like else [f"{where}: {value!r} is not like {shape.pattern}"]
        case set():
            return [] if not isinstance(value, bool) and value in shape else [f"{where}: {value!r} is not in {shape}"]
        case [item]:
            if not isinstance(value, list):
                return [f"{where}: {value!r} is no list"]
            return [found for index, one in enumerate(value) for found in misfits(one, item, f"{where}[{index}]")]
        case dict():
            if not isinstance(value, dict):
                return [f"{where}: {value!r} is no object"]
            wrong = [f"{where}.{key}: is not promised" for key in value.keys() - shape.keys()]
            wrong += [f"{where}.{key}: is missing" for key in shape.keys() - value.keys()]
            return wrong + [
                found
                for key in value.keys() & shape.keys()
                for found in misfits(value[key], shape[key], f"{where}.{key}")
            ]
        case _:
            fits = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
            return [] if fits else [f"{where}: {value!r} is no {shape}"]


def conforms(value: Any, shape: Shape) -> bool:
    """Fails the test with all that does not conform."""
    assert misfits(value, shape) == []
    return True
