"""Counts of users' requests since the daemon started: by instance and status, and how long they took."""

from __future__ import annotations

from bisect import bisect_left

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds: from a short answer to the gateway's own limit of 300 s."""

NOBODY = ""
"""The instance of a request that was sent to none."""


class Durations:
    """A histogram of the requests of one instance."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)  # the last is above all bounds
        self.sum_s = 0.0


class Tally:
    """Only ever grows; an instance that is gone keeps its counts, as Prometheus expects."""

    buckets = BUCKETS

    def __init__(self) -> None:
        self.codes: dict[tuple[str, int], int] = {}  # (instance, status that the client was told)
        self.durations: dict[str, Durations] = {}  # by instance
        self.ended = 0  # requests for an answer
        self.answered = 0  # of these: those whose wait is known
        self.latency_s = 0.0  # of these, in all: to the first byte of a stream, else to the end
        self.turned_away = 0  # of those that ended: the client left before, or was told that all are full
        self.sent_bytes = 0

    def add(self, instance: str, status: int, seconds: float, sent: int) -> None:
        """One request of a user that has ended, whatever it asked for."""
        key = (instance, status)
        self.codes[key] = self.codes.get(key, 0) + 1
        known = self.durations.get(instance)
        if known is None:
            known = self.durations[instance] = Durations()
        known.counts[bisect_left(BUCKETS, seconds)] += 1
        known.sum_s += seconds
        self.sent_bytes += sent

    def weigh(self, waited_s: float | None, *, turned_away: bool) -> None:
        """The same one, where it asked for an answer: what the autoscaler judges by."""
        self.ended += 1
        self.turned_away += turned_away
        if waited_s is not None:
            self.answered += 1
            self.latency_s += waited_s
