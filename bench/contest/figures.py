"""The figures of one fault on one contender."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.contest.ledger import Ledger
from bench.contest.load import Load, Outcome, Stream


@dataclass(frozen=True, slots=True)
class Figures:
    """What users saw, and what was done to the instances. Seconds, unless a name says otherwise."""

    fault: str
    contender: str
    seed: int
    sent: int
    failed: int  # neither answered well nor, under overload, told 503
    told: int  # under overload: told 503
    told_p95: float | None
    slowest: float | None  # of the answered ones
    p95: float | None
    harm: float  # from the sending of the first that failed to that of the last
    of_capacity: float | None  # under overload: answered in time, as a share of what the instances can carry
    restarts: int
    healthy_restarts: int  # of instances that nothing was wrong with
    twice: int  # requests that instances answered more than once
    outcomes: dict[str, int]
    said: dict[str, Any]
    streams: dict[str, int]
    late: float  # the latest departure of a request behind its time
    load_average: float
    versions: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that so large a share does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def of_load(load: Load, *, overload: bool) -> dict[str, Any]:
    """The figures that the requests alone give. Under overload 503 is an honest answer, else it is a failure."""
    good = [one.took for one in load.outcomes if one.what == "ok"]
    told = [one.took for one in load.outcomes if overload and one.what == "503"]
    bad = [one for one in load.outcomes if one.what != "ok" and not (overload and one.what == "503")]
    return {
        "sent": len(load.outcomes),
        "failed": len(bad),
        "told": len(told),
        "told_p95": quantile(told, 0.95),
        "slowest": max(good, default=None),
        "p95": quantile(good, 0.95),
        "harm": _span(bad),
        "outcomes": dict(Counter(one.what for one in load.outcomes)),
        "late": load.late,
    }


def _span(bad: Sequence[Outcome]) -> float:
    at = [one.sent_at for one in bad]
    return max(at) - min(at) if at else 0.0


def answered_twice(ledger: Ledger, load: Load) -> int:
    """Requests of the load that instances answered more than once; a supervisor's own prompts do not count."""
    times = ledger.answered()
    return sum(times[one.number] > 1 for one in load.outcomes)


def of_streams(streams: Sequence[Stream], killed: str) -> dict[str, int]:
    """How streams ended: those of the killed instance, and the others."""
    counts = Counter(f"{'killed' if one.name == killed else 'others'}: {one.what}" for one in streams)
    return dict(sorted(counts.items()))
