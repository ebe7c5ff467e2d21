"""What is to be seen of the engine from outside: its progress, its passes, its counts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """What supervisors watch. `step_running_s`: age of the step under way, 0 without one; `idle_s`: since the last."""

    in_flight: int
    queued: int
    steps: int
    tokens: int
    step_running_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """Steps in a row that failed by the server's own fault, and what the last one said."""

    failures: int = 0
    words: str = ""


class Watch(Protocol):
    """Who counts what the engine does; called from the engine's thread."""

    def stepped(self, kind: str, seconds: float, rows: int) -> None:
        """A pass is over: kind prefill or decode."""

    def began(self, waited: float, prompt_tokens: int) -> None:
        """A request has left the queue after `waited` seconds."""

    def generated(self, gap: float | None) -> None:
        """A request has one more token, `gap` seconds after the one before; None: it is its first."""

    def first_token(self, seconds: float) -> None:
        """A request's first token came `seconds` after it was submitted."""

    def ran_out_of_memory(self) -> None:
        """A pass did not fit into memory."""


class Passes:
    """When the pass under way began and the last one ended; `with` it a pass runs.

    Written by the engine's thread, read by any.
    """

    def __init__(self) -> None:
        self.began: float | None = None  # None: none is under way
        self.ended = time.monotonic()

    def __enter__(self) -> None:
        """Marks a pass as begun before it begins, for whoever watches for hung ones."""
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.ended, self.began = time.monotonic(), None
