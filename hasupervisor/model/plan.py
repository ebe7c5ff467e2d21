"""What a decision is made from, and what is decided: the snapshot of one cycle and its plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hasupervisor.model.facts import Address, Fact, GatewayView, Outcome, ProbeView, RuntimeView, TrafficView
from hasupervisor.model.gpu import CardJudged, Gpus
from hasupervisor.model.record import Record
from hasupervisor.model.states import Colour, State, VerdictKind
from hasupervisor.model.wants import Operation, Wants


@dataclass(frozen=True, slots=True)
class GpuPolicy:
    """How instances are placed on GPUs."""

    need_bytes: int  # of one instance
    reserve_bytes: int  # of each card, never promised
    required: bool = False  # without a card nothing starts
    exclude: frozenset[str] = frozenset()  # UUIDs or indices of cards that are left to others


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers that decisions use, taken from the configuration (CONTRACT 2 names them)."""

    service: str
    ports: range
    min: int
    max: int
    one_at_a_time: bool = True
    failures: int = 2
    successes: int = 1
    interval: float = 2.0
    timeout: float = 2.0
    start_timeout: float = 600.0
    hang_after: float = 60.0
    inference_timeout: float = 20.0
    backoff: float = 1.0
    backoff_max: float = 300.0
    attempts: int = 5
    window: float = 600.0
    park_retry: float = 1800.0
    stop_grace: float = 30.0
    drain_timeout: float = 300.0
    gpu: GpuPolicy | None = None  # None: nobody looks at GPUs


class StepKind(StrEnum):
    START = "start"
    STOP = "stop"  # SIGTERM, SIGKILL after the grace; then remove what is left
    KILL = "kill"  # fence: SIGKILL at once; then remove what is left
    CLEAR = "clear"  # save the last output of an ended instance and remove what is left


@dataclass(frozen=True, slots=True)
class Step:
    """One side effect on one instance; the runner does at most one at a time for a name."""

    kind: StepKind
    name: str
    why: str
    port: int = 0
    runtime_id: str = ""
    grace: float = 0.0
    gpus: tuple[str, ...] = ()  # with START: UUIDs of the cards that it gets


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the upstream: a name and where nginx reaches it."""

    name: str
    address: Address


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing table wanted: who gets requests, and every address of the service whatever its health."""

    routes: tuple[Route, ...] = ()
    everyone: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: VerdictKind
    sentence: str  # why, for people
    since: float | None = None  # with UNKNOWN: how it was then is the last that is known; None: it has just come to be


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one instance in this cycle."""

    record: Record
    fact: Fact | None = None  # None: the runtime does not list it
    probe: ProbeView | None = None
    traffic: TrafficView = field(default_factory=TrafficView)
    outcomes: tuple[Outcome, ...] = ()  # since the last cycle
    acting: str | None = None  # the step that is being carried out now


@dataclass(frozen=True, slots=True)
class World:
    """One frozen snapshot: everything that a decision may depend on."""

    now: float
    now_wall: float
    policy: Policy
    wants: Wants
    runtime: RuntimeView
    gateway: GatewayView
    instances: tuple[Seen, ...] = ()
    operations: tuple[Operation, ...] = ()
    jitter: float = 0.5  # 0..1, drawn by the loop once a cycle
    settled: bool = True  # False: the daemon has just started and has not asked everybody yet
    routed_at_start: frozenset[Address] = frozenset()  # what the gateway's file routed when the daemon started
    taken_names: frozenset[str] = frozenset()  # of strangers: containers that carry our name but not our label
    taken_ports: frozenset[int] = frozenset()  # ports of our range that somebody else listens on
    gpus: Gpus | None = None  # None: nobody looks at GPUs


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the history: what changed, of whom, and why."""

    subject: str
    event: str  # a stable word: "state", "restart", "parked", "scale", "routing", ...
    sentence: str
    by: str = "chatglm-ha"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person should know, with the next command."""

    subject: str
    sentence: str
    hint: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One instance after the cycle: what people are shown."""

    record: Record
    verdict: Verdict
    state: State
    colour: Colour
    reason: str  # one sentence: why it is in this state, also why nothing is done
    fact: Fact | None = None
    probe: ProbeView | None = None
    traffic: TrafficView = field(default_factory=TrafficView)
    explain: tuple[str, ...] = ()  # the evidence behind the reason, one sentence each


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle decided."""

    steps: tuple[Step, ...]
    routing: Routing
    instances: tuple[Judged, ...]
    operations: tuple[Operation, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]
    summary: str  # "2 of 3 serving"
    health: Colour
    prompts: frozenset[str] = frozenset()  # instances whose synthetic prompt should be asked soon
    proofs: tuple[tuple[Address, float], ...] = ()  # who serves, and when the question it answered last was put
    blameless: frozenset[Address] = frozenset()  # who turned bad together, so that no request is to blame
    next_in: float = 1.0  # seconds until the next cycle is due when nothing happens
    cards: tuple[CardJudged, ...] = ()
    room: int | None = None  # how many more instances find a place on the GPUs; None: no GPU limits them
    no_room: str | None = None  # with no room: why
