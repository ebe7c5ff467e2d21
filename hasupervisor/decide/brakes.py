"""The brakes on healing: what keeps a bad instance from being ended, and what ends that.

A brake protects serving capacity: whoever has none cannot be protected. Every brake has a bounded age, so that nothing
waits without an end for something that itself waits without an end. The table of them is docs/brakes.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hasupervisor.decide.health import HANG_FLOOR, is_accused, progressed_at
from hasupervisor.decide.placement import is_proven, known_load
from hasupervisor.model import Miss, Phase, Policy, ProbeView, Record, Seen, Verdict, VerdictKind

TOGETHER = 10.0
"""Seconds within which instances must turn bad to have one cause; two probe rounds where those take longer."""

HOLD = 30.0
"""Seconds for which a common cause holds all restarts; then one instance is tried, to see whether a restart helps."""

HUNG_HOLD = HANG_FLOOR
"""The same for an instance that two witnesses prove to hang: long enough to tell a hang from a host that stalls."""

LATELY = 10.0
"""Seconds within which an answer to a user shows that an instance serves somebody, whatever it says of itself."""

SAME_MOMENT = 0.01
"""Seconds by which two times that were written as one may differ after they were stored as wall times."""

_BAD = (VerdictKind.SUSPECT, VerdictKind.HUNG, VerdictKind.SICK, VerdictKind.DEAD)


@dataclass(frozen=True, slots=True)
class CommonCause:
    """Most of the instances that served turned bad together while their processes live."""

    names: frozenset[str]  # those whose processes live
    members: frozenset[str]  # these, and those that healing has ended to see whether that helps
    since: float
    served: int
    within: float
    answered: float = float("-inf")  # when one of them last answered a user: until then they were only slow to probes

    def sentence(self, now: float) -> str:
        return (
            f"{len(self.names)} of {self.served} instances turned bad within {self.within:.0f} s while their processes "
            f"live ({now - self.since:.0f} s ago): one cause outside them"
        )


@dataclass(frozen=True, slots=True)
class Disturbed:
    """An instance whose living process healing has ended, and that does not serve again yet."""

    name: str
    since: float
    failed: bool  # it is given up, or its next life has failed as well: ending it did not help
    waits: bool  # it is to be started, and has to wait for a place itself

    @property
    def over(self) -> bool:
        return self.failed or self.waits


Pairs = Sequence[tuple[Seen, Verdict]]


@dataclass(frozen=True, slots=True)
class Around:
    """What the other instances mean for the healing of one."""

    pairs: Pairs
    cause: CommonCause | None
    disturbed: Sequence[Disturbed] = ()


def common_cause(pairs: Pairs, policy: Policy, now: float) -> CommonCause | None:
    """Finds a common cause among instances that served until they turned bad, or None.

    A busy one whose probes fail counts as well: its users prove that the probes are wrong. So does one that healing
    has ended to see whether that helps, until that is over: the cause is not gone because one of two is restarted.
    """
    within = max(TOGETHER, 2.0 * (policy.interval + policy.timeout))
    alive = {s.record.name for s, _ in pairs if _could_serve(s)}
    trials = {d.name for d in disturbances(s for s, _ in pairs) if not d.failed}
    tried = {s.record.name: at for s, _ in pairs if s.record.name in trials and (at := s.record.bad_since) is not None}
    left = [(s, v) for s, v in pairs if s.record.name in alive - tried.keys()]
    ailing = {s.record.name: onset(s, now) for s, v in left if _ails(s, v, policy)}
    since, together = _together({**ailing, **tried}, within)
    served = len(alive | together)
    members = [(s, v) for s, v in pairs if s.record.name in together & ailing.keys()]
    really = any(v.kind in _BAD or not s.record.in_rotation or _answers_wrong(s) for s, v in members)
    if not really or len(together) < 2 or 2 * len(together) <= served:
        return None
    answered = max((at for s, _ in members if (at := progressed_at(None, s.traffic)) is not None), default=since)
    return CommonCause(together & ailing.keys(), together, since, served, within, answered)


def onset(seen: Seen, now: float) -> float:
    """Since when it has been bad: from the first probe of those that it misses."""
    probe, record = seen.probe, seen.record
    first = probe.first_failure_at if probe is not None and probe.failures else None
    return min((at for at in (first, record.bad_since) if at is not None), default=now)


def disturbances(instances: Iterable[Seen]) -> list[Disturbed]:
    """All whose living process healing has ended and that do not serve again yet."""
    return [found for seen in instances if (found := disturbance(seen.record)) is not None]


def disturbance(record: Record) -> Disturbed | None:
    """That of one instance, or None: it is not disturbed."""
    if record.disturbed_at is None:
        return None
    failed_again = any(at > record.disturbed_at + SAME_MOMENT for at in record.failures)
    given_up = record.parked_at is not None or record.stuck is not None
    return Disturbed(record.name, record.disturbed_at, given_up or failed_again, record.waits_since is not None)


def may_serve(seen: Seen, verdict: Verdict, now: float) -> bool:
    """Whether its end may cost serving capacity.

    One that hangs serves nobody: two witnesses say so. One that says that it is unhealthy, or cannot answer a prompt,
    serves nobody either, unless users were answered well lately. Of one that merely answers no probes nobody can know.
    """
    match verdict.kind:
        case VerdictKind.HUNG:
            return False
        case VerdictKind.SICK:
            answered = progressed_at(None, seen.traffic)
            accused = seen.probe is not None and is_accused(seen.probe, seen.traffic)
            return answered is not None and now - answered < LATELY and not accused
        case _:
            return True


def patience(pairs: Pairs, policy: Policy) -> float:
    """Seconds that one which is restarted has to serve again before the next that serves nobody has its turn."""
    load = known_load(s.record for s, _ in pairs)
    return policy.start_timeout if load is None else min(policy.start_timeout, max(HOLD, 2.0 * load))


def why_no_disturbance(seen: Seen, verdict: Verdict, around: Around, policy: Policy, now: float) -> str | None:
    """Why healing must leave this living process alone now, or None. One that was never proven serves nobody."""
    name, cause = seen.record.name, around.cause
    if not _could_serve(seen):
        return None
    if cause is not None and name in cause.names:
        if now - max(cause.since, cause.answered) < _hold(verdict):
            return cause.sentence(now)
        trial = waits_for(seen, verdict, [d for d in around.disturbed if d.name in cause.members], around, policy, now)
        if trial is not None:
            return f"common cause: {trial} is restarted first, to see whether it helps"
    alone = _why_alone(seen, verdict, around.pairs, policy, now)
    if alone is not None or seen.record.disturbed_at is not None or not may_serve(seen, verdict, now):
        return alone  # one whose turn has come is not kept waiting for another's
    other = waits_for(seen, verdict, around.disturbed, around, policy, now)
    return f"waits until {other} serves again: one is restarted at a time" if other is not None else None


def waits_for(
    seen: Seen, verdict: Verdict, disturbed: Sequence[Disturbed], around: Around, policy: Policy, now: float
) -> str | None:
    """The disturbed instance whose return this one has to await, or None.

    One that may serve waits longer: HOLD at least, and up to `start_timeout` also for one that waits for a place, for
    then there may be no place for its own next life either.
    """
    careful = may_serve(seen, verdict, now)
    soon = patience(around.pairs, policy)

    def counts(other: Disturbed) -> bool:
        age = now - other.since
        if careful:
            return age < (HOLD if other.failed else policy.start_timeout)
        return not other.over and age < soon

    return next((d.name for d in disturbed if d.name != seen.record.name and counts(d)), None)


def _hold(verdict: Verdict) -> float:
    return HUNG_HOLD if verdict.kind is VerdictKind.HUNG else HOLD


def _why_alone(seen: Seen, verdict: Verdict, pairs: Pairs, policy: Policy, now: float) -> str | None:
    """Silence is the instance's own only if another one has been heard since: else it may be ours."""
    probe = seen.probe
    if probe is None or not probe.failures or probe.first_failure_at is None:
        return None
    others = [
        s.probe for s, _ in pairs if s.record.name != seen.record.name and _could_serve(s) and s.probe is not None
    ]
    asked = probe.first_failure_at - (policy.timeout if probe.miss in (Miss.SILENT, Miss.CONNECT_TIMEOUT) else 0.0)
    heard = not others or any(_heard_since(other, asked) for other in others)
    if heard or now - probe.first_failure_at >= _hold(verdict):
        return None
    return f"waits for another instance's answer: nobody has been heard for {now - asked:.0f} s"


def nobody_is_heard(pairs: Pairs, policy: Policy) -> bool:
    """Whether no instance that serves answers its probes: then users' traffic is the better witness.

    One that cannot be asked is not heard either, whatever it said last.
    """
    silent = (*_BAD, VerdictKind.UNKNOWN)
    return not any(
        s.record.in_rotation and v.kind not in silent and s.probe is not None and s.probe.failures < policy.failures
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
    if verdict.kind is VerdictKind.UNKNOWN:  # what its probes said is too old to mean anything
        return False
    return verdict.kind in _BAD or (seen.probe is not None and seen.probe.failures >= policy.failures)


def _answers_wrong(seen: Seen) -> bool:
    """Its probes fail in a way that work does not explain; one that is merely late is busy, and so are all of them."""
    return seen.probe is not None and seen.probe.miss not in (None, Miss.SILENT, Miss.CONNECT_TIMEOUT)


def _together(onsets: Mapping[str, float], within: float) -> tuple[float, frozenset[str]]:
    """The largest group that turned bad within so many seconds, and since when; the latest where two are as large."""
    groups = [(at, frozenset(n for n, other in onsets.items() if at <= other <= at + within)) for at in onsets.values()]
    return max(groups, key=lambda group: (len(group[1]), group[0]), default=(0.0, frozenset()))
