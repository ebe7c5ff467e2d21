"""The daemon's own condition: how late its event loop runs, and what CPU, memory and files it uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil


class LagMeter:
    """Measures how late the event loop runs its timers, by ticks that are due every `period` seconds.

    A loop that was blocked from one moment to another is seen as late by the length of the block less one period at
    most: keep `period` well under the lateness that matters.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._worst = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to tick; needs a running loop."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._period
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._worst = max(self._worst, now - self._due)
        self._due = now + self._period
        self._timer = loop.call_at(self._due, self._tick, loop)

    def take(self) -> float:
        """The worst lateness in seconds since the last `take`, a tick that is overdue now included."""
        overdue = asyncio.get_running_loop().time() - self._due if self._timer is not None else 0.0
        worst, self._worst = max(self._worst, overdue, 0.0), 0.0
        return worst

    def stop(self) -> None:
        """Ends the ticks; `take` then tells nothing new."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(frozen=True, slots=True)
class HostView:
    """The daemon's own condition over the time between two samples."""

    at: float  # monotonic seconds
    loop_lag_s: float = 0.0  # worst lateness of the event loop
    cpu_share: float | None = None  # of one core, 0..n; None: the first sample
    rss_bytes: int = 0
    open_files: int = 0


class HostSense:
    """Samples this process. One sample costs about 50 microseconds; call it every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._lag = LagMeter(0.5)
        self._before: tuple[float, float] | None = None  # when, CPU seconds used until then

    def start(self) -> None:
        """Begins to measure the loop's lag; needs a running loop."""
        self._lag.start()

    def sample(self) -> HostView:
        """What was used since the last call. Needs a running loop."""
        now = self._clock()
        with self._process.oneshot():
            times = self._process.cpu_times()
            used = times.user + times.system
            rss = int(self._process.memory_info().rss)
        files = self._process.num_fds()
        share = None
        if self._before is not None and now > self._before[0]:
            share = (used - self._before[1]) / (now - self._before[0])
        self._before = (now, used)
        return HostView(now, self._lag.take(), share, rss, files)

    def close(self) -> None:
        """Stops measuring."""
        self._lag.stop()
