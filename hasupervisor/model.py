"""The nouns of the house: frozen facts and decisions that every layer shares, and nothing that acts.

Unless a name says `_wall`, every time is `time.monotonic()` in seconds and every interval is seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """What a runtime says of an instance's process; the runtimes map their own words to these."""

    CREATED = "created"  # exists, has not run yet
    RUNNING = "running"
    PAUSED = "paused"  # frozen by a person (docker pause)
    EXITED = "exited"  # its process is gone, its remains are still there
    REMOVING = "removing"


class VerdictKind(StrEnum):
    """What the evidence says of an instance (DESIGN 4)."""

    SERVING = "serving"  # answers, idle or not
    BUSY = "busy"  # works and makes progress, whatever its probes say
    LOADING = "loading"
    SUSPECT = "suspect"  # out of rotation first: cheap, undone at once
    HUNG = "hung"  # proven to make no progress: only killing it lets its connections go
    SICK = "sick"  # says so itself, or fails the synthetic prompt
    DEAD = "dead"  # its process has ended, or refuses connections for good
    UNKNOWN = "unknown"  # nobody could ask; never a reason to act


class State(StrEnum):
    """The instance states that people see (CONTRACT 4)."""

    STARTING = "starting"
    LOADING = "loading"
    SERVING = "serving"
    SUSPECT = "suspect"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    PARKED = "parked"


class Colour(StrEnum):
    """Green serves; yellow is on its way up, down, or suspect; red has failed."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


# --- what is seen -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A TCP address, IPv4 or a host name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Fact:
    """One instance as the runtime shows it: a container, or a process with its keeper."""

    name: str
    runtime_id: str  # container id, or "<pid>@<start time in clock ticks>"
    phase: Phase
    endpoint: Address  # where it is published: stable for its name, what people and other hosts use
    address: Address  # where nginx and the probes reach it; may differ (a container's own address)
    started_at: float | None = None  # monotonic; None: has not run
    pid: int | None = None  # of its main process, as seen from the host
    exit_code: int | None = None  # negative: killed by that signal
    died_at: float | None = None  # its process is known to have ended then, and the runtime has not said so yet
    oom_killed: bool = False
    image: str = ""  # image reference, or the command for a process
    gpus: tuple[str, ...] = ()  # UUIDs


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """The runtime's whole list, with its age: a list that could not be had is old, not empty."""

    facts: tuple[Fact, ...] = ()
    listed_at: float | None = None  # when the list that came in was asked for; None: never
    trouble: str | None = None  # why it cannot be asked now, in words
    trouble_since: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What an instance says of its own work (CONTRACT 3, "progress")."""

    in_flight: int = 0
    queued: int = 0
    steps: int = 0
    tokens: int = 0
    step_running_s: float = 0.0
    idle_s: float = 0.0


class Said(StrEnum):
    """What the last answer to GET <health.path> said."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    LOADING = "loading"


class Miss(StrEnum):
    """How a probe failed. The difference matters: refused is dead, a connect timeout is saturation."""

    REFUSED = "refused"
    CONNECT_TIMEOUT = "connect timeout"
    SILENT = "no answer"  # accepted, then nothing before the deadline
    BROKEN = "broken answer"  # reset, cut, or not HTTP
    ERROR_STATUS = "error status"


@dataclass(frozen=True, slots=True)
class ProbeView:
    """The evidence that probes have gathered of one incarnation (runtime_id) of an instance.

    `failures` and `successes` count in a row; a failure that was ours (a late event loop, no file descriptors) is not
    counted at all. An answer of "unhealthy" is an answer, not a failure.
    """

    runtime_id: str
    said: Said | None = None  # the last answer; None: never answered
    reason: str = ""  # with UNHEALTHY: the instance's own words
    answered_at: float | None = None
    asked_at: float | None = None  # when the last question that was answered "healthy" had been put
    successes: int = 0  # healthy answers in a row
    unhealthies: int = 0  # answers "unhealthy" in a row
    failures: int = 0  # missed answers in a row
    first_failure_at: float | None = None
    miss: Miss | None = None  # of the last failure
    error: str = ""  # of the last failure, in words
    progress: Progress | None = None  # the last reported, None: the instance does not report it
    progressed_at: float | None = None  # when steps or tokens last grew, or it was last seen idle
    prompted_at: float | None = None  # when the last synthetic prompt ended
    prompt_ok: bool | None = None
    prompt_error: str = ""
    prompt_failures: int = 0  # in a row


@dataclass(frozen=True, slots=True)
class TrafficView:
    """Real traffic of one instance over the last minute, from nginx's access log and the kernel's connection table."""

    in_flight: int = 0  # established connections to its address that are not our own
    in_flight_known: bool = True  # False: the kernel could not be asked
    completed_at: float | None = None  # last time a request of a user was answered 2xx-4xx by it
    bytes_at: float | None = None  # last time bytes are known to have flowed
    qps: float = 0.0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None  # None too while there are too few answers for it to mean something
    error_rate: float = 0.0  # share of answers 5xx, 0..1
    errors_in_row: int = 0  # answers 5xx or none at all; 503 says "full" and is not one
    errored_at: float | None = None  # the last of them
    idle_since: float | None = None  # its processes have used no CPU since then; None: they do, or nobody knows


@dataclass(frozen=True, slots=True)
class GatewayView:
    """nginx, as it is proven to be: by the generation that its workers answer, not by the file on disk."""

    ok: bool = True
    reason: str | None = None  # nginx's own words when not ok
    generation: int = 0  # on disk
    live_generation: int | None = None  # answered by the workers; None: not seen yet
    live: frozenset[Address] = frozenset()  # addresses that may get new requests now, old workers included
    joining: frozenset[Address] = frozenset()  # of these: not proven yet to get requests from every worker
    servers: int = 0  # routed in the live generation
    off: bool = False  # nginx.mode = "off": nothing to confirm
    old_workers: int = 0  # of earlier generations, that only finish the requests they have
    lost_masters: int = 0  # how often nginx's master has gone since the daemon started
    held: int = 0  # requests that wait for somebody who serves
    held_total: int = 0  # since the daemon started: they had to wait,
    released_total: int = 0  # were sent to an instance then,
    refused_total: int = 0  # or were told that nobody serves


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended, reported by the runner in a later cycle."""

    name: str
    step: str  # "start" | "stop" | "kill" | "clear"
    ok: bool
    at: float
    error: str = ""  # one sentence when not ok
    tail: str = ""  # an ended instance's last output
    stuck: bool = False  # the runtime could not end or remove it within the deadline
    trouble: bool = False  # the runtime as a whole could not be asked: says nothing of the instance


# --- what is wanted and remembered ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pause:
    """Healing and scaling held by a person."""

    by: str
    since_wall: float  # Unix seconds
    reason: str = ""
    until_wall: float | None = None  # None: until `resume`


@dataclass(frozen=True, slots=True)
class Wants:
    """What people (and later the autoscaler) want; survives restarts."""

    desired: int
    mode: str = "auto"  # "auto" | "manual"
    pause: Pause | None = None
    drained: frozenset[str] = frozenset()  # instances taken out by hand, until `undrain`


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed life of an instance."""

    at: float
    at_wall: float
    reason: str  # "exited 1", "killed by signal 9", "did not serve within 600 s"
    tail: str = ""  # last output


class Cause(StrEnum):
    """Why an instance is on its way out."""

    SCALE = "scale"  # no longer wanted: its record ends with it
    RESTART = "restart"  # by hand: started again at once
    DRAIN = "drain"  # by hand: stays out until `undrain`
    HEAL = "heal"  # sick or dead on its feet: started again as `repair` allows


@dataclass(frozen=True, slots=True)
class Leaving:
    """An instance on its way out: out of nginx first, then nothing in flight, then SIGTERM."""

    cause: Cause
    why: str
    since: float
    quiet_since: float | None = None  # out of nginx with nothing in flight since then
    unrouted_since: float | None = None  # nginx has let go of it since then: the drain timeout counts from here


@dataclass(frozen=True, slots=True)
class Record:
    """What the supervisor remembers of one name. Decisions return new records; only the loop stores them."""

    name: str
    port: int
    restarts: int = 0  # lives begun after the first, for whatever reason
    failures: tuple[float, ...] = ()  # times of the failures that count towards `repair.attempts`
    last_failure: Failure | None = None
    retry_at: float | None = None  # backing off until then
    parked_at: float | None = None
    stuck: str | None = None  # the runtime cannot end it: abandoned, its name and port stay taken
    state: State = State.STARTING
    since: float = 0.0  # in `state` since
    since_wall: float = 0.0
    in_rotation: bool = False  # the decision, kept as it was while the evidence is unknown
    serving_since: float | None = None  # this life has served since then, kept while it is suspect
    bad_since: float | None = None  # the verdict on its living process has been a bad one since then; see disturbed_at
    disturbed_at: float | None = None  # healing ended its living process; this and bad_since hold until it serves again
    incarnation: str | None = None  # runtime_id of the life that is lived now
    met_at: float | None = None  # when this daemon saw that life for the first time
    ended: str | None = None  # runtime_id of the last life whose end has been counted
    acted_at: float = 0.0  # when the last step on it ended: an older list does not know of it
    leaving: Leaving | None = None
    operation: str | None = None  # id of the operation that moves it


AUTOSCALER = "autoscaler"
"""Who asked for an operation that no person asked for: a pause holds it."""


class OperationKind(StrEnum):
    SCALE = "scale"
    RESTART = "restart"
    DRAIN = "drain"
    UNDRAIN = "undrain"


class OperationState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Operation:
    """A person's long command, carried out over many cycles."""

    id: str
    kind: OperationKind
    by: str
    started: float
    started_wall: float
    targets: tuple[str, ...] = ()  # names still to be done, in order
    total: int = 0  # number of targets at first; for scale: the wanted count
    state: OperationState = OperationState.RUNNING
    sentence: str = ""  # where it stands, for people
    ended_wall: float | None = None
    before: tuple[tuple[str, int], ...] = ()  # restarts of the targets when it began


# --- what is decided --------------------------------------------------------------------------------------------------


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
    next_in: float = 1.0  # seconds until the next cycle is due when nothing happens
