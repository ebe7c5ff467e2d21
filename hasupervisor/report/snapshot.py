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
from hasupervisor.model.gpu import CardJudged, DriverView, KernelLogView


@dataclass(frozen=True, slots=True)
class GpusView:
    """The GPUs as the last cycle judged them."""

    driver: DriverView
    kernel_log: KernelLogView
    cards: tuple[CardJudged, ...] = ()
    room: int | None = None  # how many more instances find a place; None: no GPU limits them
    no_room: str | None = None  # with no room: why


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
    gpus: GpusView | None = None  # None: nobody looks at GPUs
