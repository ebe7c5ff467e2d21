"""Who may come in: a bounded number of requests, and an honest word to the others when to come back."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not now; `retry_after` in whole seconds."""

    reason: str  # full | waited | loading | draining | memory
    words: str
    retry_after: int


class Refused(Exception):
    """The request was not taken; nothing has been done for it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.words)
        self.refusal = refusal


class Admission:
    """Counts requests from their acceptance to their end. Belongs to the event loop's thread.

    At most `slots` + `queue` are inside at once. How long a place takes to become free is learned from the requests
    that have ended: a moving mean of their time in a slot.
    """

    LONGEST = 120  # seconds a client is ever told to wait
    TURN = 1.0  # seconds in which a request is taken for which there is a place: the engine looks between two passes

    def __init__(self, slots: int, queue: int, max_wait: float) -> None:
        self._slots = slots
        self._capacity = slots + queue
        self._max_wait = max_wait
        self._mean_seconds: float | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.inside = 0
        self.draining = False

    def check(self) -> None:
        """Raises Refused if a request could not come in now."""
        if self.draining:
            raise Refused(Refusal("draining", "the server is shutting down; ask another instance", 1))
        if self.inside >= self._capacity:
            words = f"the server is full: {self.inside} requests are running or waiting"
            raise Refused(Refusal("full", words, self.retry_after()))
        if self.inside >= self._slots and (self._expected_wait() > self._max_wait or not self._max_wait):
            words = f"a request would wait {self._expected_wait():.0f} s, longer than the {self._max_wait:g} s allowed"
            raise Refused(Refusal("full", words, self.retry_after()))

    def enter(self) -> None:
        """Takes a place; raises Refused if there is none."""
        self.check()
        self.inside += 1
        self._empty.clear()

    def leave(self, seconds_in_slot: float | None = None) -> None:
        """Gives the place back; `seconds_in_slot` if the request had run."""
        self.inside -= 1
        if not self.inside:
            self._empty.set()
        if seconds_in_slot is not None:
            old = self._mean_seconds
            self._mean_seconds = seconds_in_slot if old is None else 0.9 * old + 0.1 * seconds_in_slot

    def patience(self) -> float:
        """Seconds that a request which has just come in may wait for its place."""
        return self._max_wait if self.inside > self._slots else max(self._max_wait, self.TURN)

    async def emptied(self) -> None:
        """Returns when nobody is inside."""
        await self._empty.wait()

    def retry_after(self) -> int:
        """Whole seconds after which the backlog in front of a newcomer is worked off, at the pace seen lately."""
        return max(1, min(self.LONGEST, math.ceil(self._expected_wait())))

    def _expected_wait(self) -> float:
        ahead = max(0, self.inside - self._slots + 1)
        return (self._mean_seconds or 0.0) * ahead / self._slots
