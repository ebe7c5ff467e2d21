"""What the autoscaler judges by: samples of the load, the rules, how things stand, and the opinion that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One period of `Rules.sample` seconds, as the original monitor recorded it. None: nobody could tell."""

    at: float  # when it ended, monotonic
    serving: int
    desired: int
    starting: int = 0  # on their way up; they carry nothing yet and are in no mean
    in_flight: float | None = None  # requests in all instances, worked on or queued: mean over the period
    queued: float | None = None  # of these, those that instances have told to wait; and those held by the gateway
    connections: float | None = None  # requests in flight in one serving instance: mean over instances and period
    response_time_ms: float | None = None  # mean of what users waited in the period; None too while nobody was answered
    gpu_utilization: float | None = None  # percent, mean over the GPUs on which somebody serves, and the period
    qps: float | None = None  # requests for an answer that ended, a second
    turned_away: float | None = None  # of these: the user left before an answer came, or was told that all are full
    cpu_percent: float | None = None  # of the whole host, 0..100
    memory_percent: float | None = None
    gpu_memory_used_gb: float | None = None
    gpu_memory_total_gb: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """One look, every second or two: what policy `concurrency` sees between two samples."""

    at: float  # monotonic
    in_flight: float | None  # requests in flight, queued and held, of the whole service
    serving: int
    wait_s: float | None = None  # how long a request that comes now would queue, by the queue and what ends a second


@dataclass(frozen=True, slots=True)
class Rules:
    """The [autoscale] section, and the bounds of [service]."""

    min: int
    max: int
    enabled: bool = True
    policy: str = "thresholds"  # "thresholds" | "concurrency"
    sample: float = 10.0
    evaluate: float = 30.0
    up_samples: int = 6
    up_response_time_ms: float = 5000.0
    up_gpu_utilization: float = 85.0
    up_connections: float = 50.0
    up_turned_away: float = 10.0
    down_samples: int = 12
    down_response_time_ms: float = 2000.0
    down_gpu_utilization: float = 40.0
    down_connections: float = 20.0
    slots: int = 0  # what one instance works on at once; 0: learned


@dataclass(frozen=True, slots=True)
class Lesson:
    """So many were too few for so many requests a second, then: what keeps the count from going to and fro."""

    serving: int
    qps: float
    at: float
    holds: float = 3600.0  # seconds; answers may be shorter by then, or the instances faster


@dataclass(frozen=True, slots=True)
class Situation:
    """How things stand now."""

    desired: int
    serving: int
    starting: tuple[str, ...] = ()  # starting, loading, or about to be tried again: capacity that is on its way
    leaving: tuple[str, ...] = ()  # drained and stopped for good
    ailing: tuple[str, ...] = ()  # suspect or being healed: comes back, or is restarted
    parked: tuple[str, ...] = ()  # given up for now: no capacity
    room: int | None = None  # how many more could exist; None: nothing is known that limits them
    no_room: str | None = None  # why not one more could: ports, GPU memory
    lessons: tuple[Lesson, ...] = ()
    load_seconds: float = 0.0  # from start to serving, the last that was seen


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a policy wants, why, and what held it back."""

    desired: int
    sentence: str
    inputs: Mapping[str, float | None] = field(default_factory=dict)
    held_back_by: str | None = None  # why the count stays although the inputs ask for another one
    reason: str = "steady"  # a stable word for metrics: the input that decided
    urgent: bool = False  # a burst: not to wait for the next evaluation
