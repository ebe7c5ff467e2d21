"""A sliding minute of requests in bounded memory: one-second buckets, latencies in bins of equal ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPAN = 60  # seconds
RATIO = 1.01  # between the bounds of a bin: so a quantile is right within 1 %
LOWEST_MS = 1.0
ENOUGH = 20  # answers, for a 99th percentile that means something
BINS = 2 + math.ceil(math.log(600_000 / LOWEST_MS) / math.log(RATIO))  # up to ten minutes, beyond in the last
_PER_LOG = 1.0 / math.log(RATIO)


@dataclass(frozen=True, slots=True)
class Summary:
    """The last minute."""

    qps: float = 0.0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None  # None too while there are fewer than ENOUGH: one slow answer is no tail
    error_rate: float = 0.0  # 0..1


class Window:
    """Requests of the last SPAN seconds; times are monotonic seconds and never go back."""

    __slots__ = ("_bins", "_born", "_buckets", "_count", "_errors", "_second", "_sum_ms", "_timed")

    def __init__(self, now: float) -> None:
        self._born = now
        self._second = int(now)
        self._buckets = [_Bucket() for _ in range(SPAN)]
        self._bins: dict[int, int] = {}  # bin -> requests: a service's answers are in few of them
        self._count = self._errors = self._timed = 0
        self._sum_ms = 0.0

    def add(self, now: float, latency_s: float | None, error: bool) -> None:
        """One request that ended at `now`; `latency_s` is None when it is not to count among the latencies."""
        self._advance(now)
        bucket = self._buckets[self._second % SPAN]
        bucket.count += 1
        self._count += 1
        if error:
            bucket.errors += 1
            self._errors += 1
        if latency_s is not None:
            ms = latency_s * 1000.0
            index = _bin_of(ms)
            bucket.bins[index] = bucket.bins.get(index, 0) + 1
            bucket.sum_ms += ms
            self._bins[index] = self._bins.get(index, 0) + 1
            self._timed += 1
            self._sum_ms += ms

    def summary(self, now: float) -> Summary:
        """The last SPAN seconds; of a younger window, the time since it began (a second at least)."""
        self._advance(now)
        if not self._count:
            return Summary()
        timed = self._timed
        p50, p95, p99 = self._quantiles(0.50, 0.95, 0.99) if timed else (None, None, None)
        return Summary(
            qps=self._count / min(float(SPAN), max(1.0, now - self._born)),
            mean_ms=self._sum_ms / timed if timed else None,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99 if timed >= ENOUGH else None,
            error_rate=self._errors / self._count,
        )

    def _advance(self, now: float) -> None:
        second = int(now)
        for passed in range(max(self._second + 1, second - SPAN + 1), second + 1):
            self._expire(self._buckets[passed % SPAN])
        self._second = max(self._second, second)

    def _expire(self, bucket: _Bucket) -> None:
        self._count -= bucket.count
        self._errors -= bucket.errors
        for index, count in bucket.bins.items():
            self._timed -= count
            left = self._bins.pop(index) - count
            if left:
                self._bins[index] = left
        # Differences of floats drift; an empty window starts from zero again.
        self._sum_ms = max(0.0, self._sum_ms - bucket.sum_ms) if self._timed else 0.0
        bucket.clear()

    def _quantiles(self, *shares: float) -> list[float]:
        """Milliseconds below which these shares of the latencies lie; the shares ascend."""
        found: list[float] = []
        below = 0
        for index, count in sorted(self._bins.items()):
            while len(found) < len(shares) and below + count >= (rank := shares[len(found)] * self._timed):
                lower = 0.0 if index == 0 else LOWEST_MS * RATIO ** (index - 1)
                upper = LOWEST_MS * RATIO**index
                found.append(lower + (upper - lower) * (rank - below) / count)
            below += count
        return found


class _Bucket:
    """One second."""

    __slots__ = ("bins", "count", "errors", "sum_ms")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}  # bin -> requests; most seconds touch few
        self.clear()

    def clear(self) -> None:
        self.bins.clear()
        self.count = self.errors = 0
        self.sum_ms = 0.0


def _bin_of(ms: float) -> int:
    """Bin 0 is below LOWEST_MS, bin i from LOWEST_MS * RATIO**(i-1) to that * RATIO, the last is open."""
    if ms < LOWEST_MS:
        return 0
    return min(BINS - 1, 1 + int(math.log(ms / LOWEST_MS) * _PER_LOG))
