"""What people and the autoscaler want, and the long commands by which they say so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

AUTOSCALER = "autoscaler"
"""Who asked for an operation that no person asked for: a pause holds it."""


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
