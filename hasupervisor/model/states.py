"""The words for how an instance is: its process, the verdict on it, and the state that people see."""

from __future__ import annotations

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
