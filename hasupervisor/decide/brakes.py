"""The brakes on healing: many instances turning bad at once is one cause outside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasupervisor.model import Phase, Record, Seen, Verdict, VerdictKind

TOGETHER = 10.0
"""Seconds within which instances must turn bad to have one cause: two probe rounds at the slowest usual settings."""

HOLD = 30.0
"""Seconds for which a common cause holds all restarts; then one instance is tried, to see whether a restart helps."""

_BAD = (VerdictKind.SUSPECT, VerdictKind.HUNG, VerdictKind.SICK, VerdictKind.DEAD)


@dataclass(frozen=True, slots=True)
class CommonCause:
    """Most of the instances that served turned bad together while their processes live."""

    names: frozenset[str]
    since: float
    served: int

    def sentence(self, now: float) -> str:
        return (
            f"{len(self.names)} of {self.served} instances turned bad within {TOGETHER:.0f} s while their processes live"
            f" ({now - self.since:.0f} s ago): one cause outside them"
        )


def common_cause(seen: Sequence[tuple[Seen, Verdict]], now: float) -> CommonCause | None:
    """Finds a common cause among instances that served until they turned bad, or None."""
    served = [(s, v) for s, v in seen if s.record.in_rotation or s.record.bad_since is not None]
    bad = [s.record for s, v in served if _bad_and_alive(s, v)]
    if len(bad) < 2 or 2 * len(bad) <= len(served):
        return None
    onsets = sorted(_onset(record, now) for record in bad)
    if onsets[-1] - onsets[0] > TOGETHER:
        return None
    return CommonCause(frozenset(record.name for record in bad), since=onsets[0], served=len(served))


def why_no_disturbance(record: Record, cause: CommonCause | None, disturbed: str | None, now: float) -> str | None:
    """Why healing must leave the living process of `record` alone now, or None.

    `disturbed` names an instance whose living process healing has ended and that does not serve again yet.
    """
    if cause is None or record.name not in cause.names:
        return None
    if now - cause.since < HOLD:
        return cause.sentence(now)
    if disturbed is not None and disturbed != record.name:
        return f"common cause: {disturbed} is restarted first, to see whether it helps"
    return None


def _bad_and_alive(seen: Seen, verdict: Verdict) -> bool:
    alive = seen.fact is not None and seen.fact.phase is Phase.RUNNING
    return alive and verdict.kind in _BAD


def _onset(record: Record, now: float) -> float:
    return record.bad_since if record.bad_since is not None else now
