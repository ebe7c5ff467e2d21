"""What is seen: the runtime's list, probes, traffic, nginx, and how steps ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hasupervisor.model.states import Phase


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
    inside_port: int | None = None  # where it listens in a network namespace of its own; None: as in `address`


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """The runtime's whole list, with its age: a list that could not be had is old, not empty."""

    facts: tuple[Fact, ...] = ()
    listed_at: float | None = None  # when this list was asked for, so it may not know of anything later; None: no list
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
    counted at all: `unasked` tells of it, and everything else is as old as it was. An answer of "unhealthy" is an
    answer, not a failure.
    """

    runtime_id: str
    said: Said | None = None  # the last answer; None: never answered
    reason: str = ""  # with UNHEALTHY: the instance's own words
    answered_at: float | None = None
    ended_at: float | None = None  # when the last question ended, answered or missed: the age of all that is said here
    asked_at: float | None = None  # when the last question that was answered "healthy" had been put
    successes: int = 0  # healthy answers in a row
    unhealthies: int = 0  # answers "unhealthy" in a row
    late_since: float | None = None  # when the question was put whose answer is late; None: no answer is awaited long
    failures: int = 0  # missed answers in a row
    first_failure_at: float | None = None
    miss: Miss | None = None  # of the last failure
    error: str = ""  # of the last failure, in words
    progress: Progress | None = None  # the last reported, None: the instance does not report it
    progress_at: float | None = None  # when that was; an answer may leave it out
    progressed_at: float | None = None  # when steps or tokens last grew, or it was last seen idle
    prompted_at: float | None = None  # when the last synthetic prompt ended
    prompt_ok: bool | None = None
    prompt_error: str = ""
    prompt_failures: int = 0  # in a row
    unasked: str = ""  # why the last question could not be put, in words; empty: it was put
    unasked_since: float | None = None  # none could be put since then


@dataclass(frozen=True, slots=True)
class TrafficView:
    """Real traffic of one instance over the last minute, from nginx's access log and the kernel's connection table."""

    in_flight: int = 0  # established connections to its address that are not our own
    in_flight_known: bool = True  # False: some cannot be seen, so that there may be more
    in_flight_at: float | None = None  # as of then; a container is looked into a few times a second. None: not at all
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
    port_taken: bool = False  # of a start: somebody else has its port
