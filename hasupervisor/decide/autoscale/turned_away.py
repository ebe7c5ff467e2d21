"""Users who got no answer: they left before it came, or were told that every instance is full. Pure.

Whoever leaves frees the place that he waited for, so that neither the requests in flight nor the time of those who were
answered show an overload in which most give up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasupervisor.decide.autoscale.facts import Rules, Sample

ENOUGH = 5  # of them, to mean something: a few leave for reasons of their own
CALM = 0.5  # times the limit: from here on nothing goes


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Over some samples."""

    percent: float  # of the requests for an answer
    count: float

    def asks_for_more(self, rules: Rules) -> bool:
        return self.percent > rules.up_turned_away and self.count >= ENOUGH

    @property
    def words(self) -> str:
        return f"{self.percent:.0f} % of the requests turned away"


def turned_away(samples: Sequence[Sample], rules: Rules) -> TurnedAway | None:
    """None where fewer than half of the samples tell it, or nobody asked for anything."""
    known = [(one.turned_away, one.qps) for one in samples if one.turned_away is not None and one.qps is not None]
    if not known or 2 * len(known) < len(samples):
        return None
    asked, away = sum(qps for _, qps in known), sum(lost for lost, _ in known)
    return TurnedAway(100.0 * away / asked, away * rules.sample) if asked else None
