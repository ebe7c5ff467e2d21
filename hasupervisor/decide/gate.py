"""What goes into the turn of one instance, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from hasupervisor.model import Policy, Record, State, Step


@dataclass(frozen=True, slots=True)
class Gate:
    """What the rest of the house allows this instance in this cycle. A string is the reason why not."""

    now: float
    now_wall: float
    jitter: float
    policy: Policy
    asleep: str | None = None  # nothing may be done at all: just started, runtime unreachable
    paused: str | None = None
    no_start: str | None = None  # another one loads on the same place, or no GPU has room
    gpus: tuple[str, ...] = ()  # UUIDs of the cards that a start gets
    no_disturbance: str | None = None  # a brake: living processes are left alone
    bad_since: float = 0.0  # if it is bad: since when
    drained: bool = False
    list_is_old: bool = False  # the runtime's list was made before the last step on this instance ended
    routed: bool = False  # nginx may send it new requests, as far as is proven
    unrouted: bool = True  # nginx sends it nothing new, proven
    last: bool = False  # nobody else serves well
    keep_routed: bool = False  # nobody else is good: leave it in rotation although suspect
    unheard: bool = False  # nobody answers probes, for one cause outside them: those that served may well serve
    works: bool = False  # users' work is known to be in it


@dataclass(frozen=True, slots=True)
class Turn:
    """What one instance does next, and why."""

    record: Record
    state: State
    reason: str
    step: Step | None = None
