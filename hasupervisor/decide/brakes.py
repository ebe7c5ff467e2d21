"""The brakes on healing: one disturbance at a time, and many turning bad at once is one cause outside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasupervisor.decide.placement import is_proven
from hasupervisor.model import Miss, Phase, Policy, ProbeView, Seen, Verdict, VerdictKind

TOGETHER = 10.0
"""Seconds within which instances must turn bad to have one cause; two probe rounds where those take longer."""

HOLD = 30.0
"""Seconds for which a common cause holds all restarts; then one instance is tried, to see whether a restart helps."""

_BAD = (VerdictKind.SUSPECT, VerdictKind.HUNG, VerdictKind.SICK, VerdictKind.DEAD)


@dataclass(frozen=True, slots=True)
class CommonCause:
    """Most of the instances that served turned bad together while their processes live."""

    names: frozenset[str]  # those whose processes live
    since: float
    served: int
    within: float
    tried: str | None = None  # the one that was restarted to see whether it helps, and that does not serve yet

    def sentence(self, now: float) -> str:
        return (
            f"{len(self.names)} of {self.served} instances turned bad within {self.within:.0f} s while their processes "
            f"live ({now - self.since:.0f} s ago): one cause outside them"
        )


Pairs = Sequence[tuple[Seen, Verdict]]


@dataclass(frozen=True, slots=True)
class Around:
    """What the other instances mean for the healing of one."""

    pairs: Pairs
    cause: CommonCause | None
    disturbed: str | None  # healing has ended its living process, and it does not serve again yet


def common_cause(pairs: Pairs, policy: Policy, now: float) -> CommonCause | None:
    """Finds a common cause among instances that served until they turned bad, or None.

    A busy one whose probes fail counts as well: its users prove that the probes are wrong. So does one that healing
    has ended and that does not serve again yet: the cause is not over because one of two is being restarted.
    """
    within = max(TOGETHER, 2.0 * (policy.interval + policy.timeout))
    alive = {s.record.name for s, _ in pairs if _could_serve(s)}
    ended = [s.record for s, _ in pairs if s.record.disturbed_at is not None and s.record.stuck is None]
    tried = {r.name: at for r in ended if (at := r.bad_since) is not None}
    left = [(s, v) for s, v in pairs if s.record.name in alive - tried.keys()]
    ailing = {s.record.name: onset(s, now) for s, v in left if _ails(s, v, policy)}
    since, together = _together({**ailing, **tried}, within)
    served = len(alive | together)
    members = [(s, v) for s, v in pairs if s.record.name in together & ailing.keys()]
    really = any(v.kind in _BAD or not s.record.in_rotation or _answers_wrong(s) for s, v in members)
    if not really or len(together) < 2 or 2 * len(together) <= served:
        return None
    names = together & ailing.keys()
    return CommonCause(names, since, served, within, tried=min(together & tried.keys(), default=None))


def onset(seen: Seen, now: float) -> float:
    """Since when it has been bad: from the first probe of those that it misses."""
    probe, record = seen.probe, seen.record
    first = probe.first_failure_at if probe is not None and probe.failures else None
    return min((at for at in (first, record.bad_since) if at is not None), default=now)


def why_no_disturbance(seen: Seen, verdict: Verdict, around: Around, policy: Policy, now: float) -> str | None:
    """Why healing must leave this living process alone now, or None. One that was never proven serves nobody."""
    name, cause = seen.record.name, around.cause
    if not _could_serve(seen):
        return None
    if cause is not None and name in cause.names:
        if now - cause.since < HOLD:
            return cause.sentence(now)
        if cause.tried is not None and cause.tried != name:
            return f"common cause: {cause.tried} is restarted first, to see whether it helps"
    alone = _why_alone(seen, around.pairs, policy, now)
    if alone is not None or verdict.kind is VerdictKind.HUNG or seen.record.disturbed_at is not None:
        return alone  # users wait in a hung one, and one whose turn has come is not kept waiting for another's
    if around.disturbed in (None, name):
        return None
    return f"waits until {around.disturbed} serves again: one is restarted at a time"


def _why_alone(seen: Seen, pairs: Pairs, policy: Policy, now: float) -> str | None:
    """Silence is the instance's own only if another one has been heard since: else it may be ours."""
    probe = seen.probe
    if probe is None or not probe.failures or probe.first_failure_at is None:
        return None
    others = [
        s.probe for s, _ in pairs if s.record.name != seen.record.name and _could_serve(s) and s.probe is not None
    ]
    asked = probe.first_failure_at - (policy.timeout if probe.miss in (Miss.SILENT, Miss.CONNECT_TIMEOUT) else 0.0)
    if not others or any(_heard_since(other, asked) for other in others) or now - probe.first_failure_at >= HOLD:
        return None
    return f"waits for another instance's answer: nobody has been heard for {now - asked:.0f} s"


def nobody_is_heard(pairs: Pairs, policy: Policy) -> bool:
    """Whether no instance that serves answers its probes: then users' traffic is the better witness."""
    return not any(
        s.record.in_rotation and v.kind not in _BAD and s.probe is not None and s.probe.failures < policy.failures
        for s, v in pairs
    )


def _heard_since(probe: ProbeView, since: float) -> bool:
    """Twice: the first answer after a silence of all may only be the first of many."""
    return probe.asked_at is not None and probe.asked_at > since and probe.successes >= 2


def _could_serve(seen: Seen) -> bool:
    """A living process that has shown that it can serve."""
    alive = seen.fact is not None and seen.fact.phase is Phase.RUNNING and seen.record.stuck is None
    return alive and is_proven(seen)


def _ails(seen: Seen, verdict: Verdict, policy: Policy) -> bool:
    return verdict.kind in _BAD or (seen.probe is not None and seen.probe.failures >= policy.failures)


def _answers_wrong(seen: Seen) -> bool:
    """Its probes fail in a way that work does not explain; one that is merely late is busy, and so are all of them."""
    return seen.probe is not None and seen.probe.miss not in (None, Miss.SILENT, Miss.CONNECT_TIMEOUT)


def _together(onsets: Mapping[str, float], within: float) -> tuple[float, frozenset[str]]:
    """The largest group that turned bad within so many seconds, and since when; the latest where two are as large."""
    groups = [(at, frozenset(n for n, other in onsets.items() if at <= other <= at + within)) for at in onsets.values()]
    return max(groups, key=lambda group: (len(group[1]), group[0]), default=(0.0, frozenset()))
