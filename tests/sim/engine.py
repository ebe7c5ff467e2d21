"""Virtual time: things happen in the order of their times, and idle time costs nothing."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Act = Callable[[], None]

STEP = 1e-6
"""Seconds that pass with every event: two things never happen at the same instant, as on a real machine."""


class Timer:
    """One thing that will happen, unless it is cancelled."""

    __slots__ = ("act", "at")

    def __init__(self, at: float, act: Act) -> None:
        self.at = at
        self.act: Act | None = act

    def cancel(self) -> None:
        """It will not happen."""
        self.act = None


_Queue = list[tuple[float, int, Timer]]


class Engine:
    """The clock and the agenda. `soft` things are the ticks of those who only look: a jump leaves them out."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._order = itertools.count()
        self._hard: _Queue = []
        self._soft: _Queue = []

    def clock(self) -> float:
        """Virtual monotonic seconds."""
        return self.now

    def at(self, when: float, act: Act, *, soft: bool = False) -> Timer:
        """Plans `act` for a moment; a moment that is over means now."""
        timer = Timer(max(when, self.now), act)
        heapq.heappush(self._soft if soft else self._hard, (timer.at, next(self._order), timer))
        return timer

    def after(self, delay: float, act: Act, *, soft: bool = False) -> Timer:
        """Plans `act` for `delay` seconds from now."""
        return self.at(self.now + delay, act, soft=soft)

    def next_hard(self) -> float | None:
        """When the next thing happens that is more than a look."""
        while self._hard and self._hard[0][2].act is None:
            heapq.heappop(self._hard)
        return self._hard[0][0] if self._hard else None

    def forget_soft(self) -> None:
        """Drops all looks: whoever jumps plans them anew."""
        self._soft.clear()

    def step(self) -> bool:
        """Lets the next thing happen. False: nothing is planned any more."""
        queue = self._earliest()
        if queue is None:
            return False
        at, _, timer = heapq.heappop(queue)
        self.now = max(self.now, at) + STEP
        if timer.act is not None:
            timer.act()
        return True

    def _earliest(self) -> _Queue | None:
        if not self._hard:
            return self._soft or None
        if not self._soft:
            return self._hard
        return self._hard if self._hard[0][:2] <= self._soft[0][:2] else self._soft
