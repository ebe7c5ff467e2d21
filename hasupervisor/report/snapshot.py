"""What the reports are made from: one frozen picture of the daemon, put together after a cycle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hasupervisor.decide.autoscale.facts import Opinion, Sample
from hasupervisor.model import (
    Colour,
    GatewayView,
    Judged,
    Operation,
    Policy,
    Problem,
    RuntimeView,
    TrafficView,
    Wants,
)


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU as people are shown it."""

    uuid: str
    index: int | None = None
    name: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization: float | None = None  # 0..1
    temperature_c: float | None = None
    state: str = "ok"  # "ok" | "suspect" | "quarantined" | "lost"
    reason: str | None = None
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AutoscaleView:
    """What the autoscaler wants and why, in its own sentence."""

    policy: str  # "thresholds" | "concurrency"
    sentence: str
    inputs: Mapping[str, float | None] = field(default_factory=dict)
    opinions: Mapping[str, Opinion] = field(default_factory=dict)  # of each policy
    slots: float | None = None  # what one instance carries
    slots_how: str = ""  # where that is known from
    windows: Mapping[str, float] = field(default_factory=dict)  # name -> seconds
    samples: int = 0
    latest: Sample | None = None
    age_s: float | None = None  # of that


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the status document, the metrics and the page show."""

    service: str
    host: str
    version: str
    started_wall: float  # of the daemon
    now: float  # of this picture, monotonic
    now_wall: float
    cycled_at: float  # when the last cycle ended, monotonic: the daemon's own pulse
    cycled_wall: float
    settled: bool  # False: the daemon has just started and has not asked everybody yet
    health: Colour
    summary: str
    problems: tuple[Problem, ...]  # of the plan, and what troubles the daemon itself (its memory, its disk)
    wants: Wants
    policy: Policy
    runtime_name: str  # who is asked for instances, as people call it: "dockerd"
    runtime: RuntimeView
    gateway: GatewayView
    autoscale: AutoscaleView
    bind: str  # service.bind: where an instance that does not run will be published
    instances: tuple[Judged, ...] = ()
    traffic: TrafficView = field(default_factory=TrafficView)  # of the whole service
    operations: tuple[Operation, ...] = ()  # the oldest first
    gpus: tuple[GpuView, ...] = ()
