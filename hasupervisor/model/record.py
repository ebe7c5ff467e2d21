"""What is remembered of one instance from cycle to cycle."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hasupervisor.model.states import State


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
    patient: bool = False  # nobody waits for its end: what flows through it is never cut
    ends_at: float | None = None  # it is ended then at the latest, if nothing flows from now on; None: not counted yet


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A life that a fault of its GPU has ended for good, whatever it still answers: its CUDA context is lost."""

    runtime_id: str
    why: str


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
    proven: str | None = None  # runtime_id of the last life that was in rotation; outlives the daemon
    load_s: float | None = None  # seconds that the last life that came up took from its start to its first serving
    waits_since: float | None = None  # it is due to be started, and something else holds that since then
    ended: str | None = None  # runtime_id of the last life whose end has been counted
    acted_at: float = 0.0  # when the last step on it ended: an older list does not know of it
    leaving: Leaving | None = None
    refused_ports: frozenset[int] = frozenset()  # that others were found to have, since it last started
    gpus: tuple[str, ...] = ()  # UUIDs of the cards that its last start was given
    poisoned: Poisoned | None = None
    operation: str | None = None  # id of the operation that moves it
