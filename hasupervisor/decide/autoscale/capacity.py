"""What one instance carries: configured, told by the instances, or learned from the knee of latency. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hasupervisor.decide.autoscale.facts import Sample

ASSUMED = 8
"""What model_api works on at once unless it is told otherwise (MAX_BATCH)."""

ENOUGH = 3  # samples of a load, for its latency to mean something
PAST_THE_PEAK = 0.8  # of the best power: below it the knee has been passed
TARGET = 0.7
"""The share of it that is planned for; the rest is for bursts and uneven loads (Knative's default)."""


@dataclass(frozen=True, slots=True)
class Slots:
    count: float
    how: str  # "configured", "told by the instances", "learned from latency", "assumed"

    @property
    def target(self) -> float:
        """Requests in flight that one instance is planned to have."""
        return TARGET * self.count if self.count > 1 else 1.0


def slots(configured: int, told: int | None, samples: Sequence[Sample]) -> Slots:
    """The best that is known. `told`: how many an instance worked on while others queued in it."""
    if configured:
        return Slots(configured, "configured")
    if told:
        return Slots(told, "told by the instances")
    knee = knee_of(samples)
    return Slots(knee, "learned from latency") if knee is not None else Slots(ASSUMED, "assumed")


def knee_of(samples: Sequence[Sample]) -> int | None:
    """The requests in flight of one instance where throughput over latency is best; None until it has been passed.

    Throughput is in flight over latency (Little), so this "power" is in flight over latency squared: it grows while
    more work costs no time, and falls once work only waits.
    """
    latencies: dict[int, list[float]] = {}
    for sample in samples:
        if sample.connections is not None and sample.response_time_ms and round(sample.connections) >= 1:
            latencies.setdefault(round(sample.connections), []).append(sample.response_time_ms / 1000.0)
    power = {load: load / median(seen) ** 2 for load, seen in latencies.items() if len(seen) >= ENOUGH}
    if not power:
        return None
    best = max(power, key=lambda load: (power[load], -load))
    passed = any(load > best and power[load] < PAST_THE_PEAK * power[best] for load in power)
    return best if passed else None
