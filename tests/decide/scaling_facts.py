"""Samples, looks and situations for the tests of the autoscaler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hasupervisor.decide.autoscale.facts import Load, Rules, Sample, Situation

NOW = 10_000.0
RULES = Rules(min=2, max=6)


def situation(desired: int = 2, **changes: Any) -> Situation:
    return replace(Situation(desired=desired, serving=desired), **changes)


def samples(count: int, *, now: float = NOW, every: float = 10.0, **values: Any) -> list[Sample]:
    """So many equal ones, the newest at `now`: in the middle between the limits, unless told otherwise."""
    middle: dict[str, Any] = {
        "serving": 2,
        "desired": 2,
        "in_flight": 60.0,
        "queued": 0.0,
        "connections": 30.0,
        "response_time_ms": 3000.0,
        "gpu_utilization": 60.0,
        "qps": 10.0,
    }
    one = Sample(at=now, **(middle | values))
    return [replace(one, at=now - every * back) for back in reversed(range(count))]


def quiet(count: int, **values: Any) -> list[Sample]:
    """So many that are well below every limit for going down."""
    low: dict[str, Any] = {
        "in_flight": 2.0,
        "connections": 1.0,
        "response_time_ms": 500.0,
        "gpu_utilization": 10.0,
        "qps": 1.0,
    }
    return samples(count, **(low | values))


def looks(*spans: tuple[float, float | None], serving: int = 2, now: float = NOW) -> list[Load]:
    """(seconds, in flight) one after another, a look a second, the last at `now`."""
    values = [value for seconds, value in spans for _ in range(int(seconds))]
    return [Load(now - len(values) + 1 + place, value, serving) for place, value in enumerate(values)]


def with_value(all_of_them: Sequence[Sample], place: int, **values: Any) -> list[Sample]:
    """The same with one sample changed."""
    changed = list(all_of_them)
    changed[place] = replace(changed[place], **values)
    return changed
