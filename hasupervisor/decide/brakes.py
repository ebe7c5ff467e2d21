"""The brakes on healing: one disturbance at a time, and many turning bad at once is one cause outside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasupervisor.model import Miss, Phase, Policy, ProbeView, Seen, Verdict, VerdictKind

TOGETHER = 10.0
"""Seconds within which instances must turn bad to have one cause: two probe rounds at the slowest usual settings."""

HOLD = 30.0
"""Seconds for which a common cause holds all restarts; then one instance is tried, to see whether a restart helps."""

_BAD = (VerdictKind.SUSPECT, VerdictKind.HUNG, VerdictKind.SICK, VerdictKind.DEAD)


@dataclass(frozen=True, slots=True)
class CommonCause:
    """Most of the instances that served turned bad together while their processes live."""

    names: frozenset[str]  # those whose processes live
    since: float
    served: int
    tried: str | None = None  # the one that was restarted to see whether it helps, and that does not serve yet

    def sentence(self, now: float) -> str:
        return (
            f"{len(self.names)} of {self.served} instances turned bad within {TOGETHER:.0f} s while their processes "
            f"live ({now - self.since:.0f} s ago): one cause outside them"
        )


Pairs = Sequence[tuple[Seen, Verdict]]


def common_cause(pairs: Pairs, policy: Policy, now: float) -> CommonCause | None:
    """Finds a common cause among instances that served until they turned bad, or None.

    A busy one whose probes fail counts as well: its users prove that the probes are wrong. So does one that healing
    has ended and that does not serve again yet: the cause is not over because one of two is being restarted.
    """
    alive = {s.record.name: s for s, _ in pairs if _has_served(s)}
    ailing = {s.record.name: _onset(s, now) for s, v in pairs if s.record.name in alive and _ails(s, v, policy)}
    ended = [s.record for s, _ in pairs if s.record.disturbed_at is not None and s.record.name not in ailing]
    tried = {record.name: at for record in ended if (at := record.bad_since) is not None}
    onsets = sorted([*ailing.values(), *tried.values()])
    served = len(alive.keys() | tried.keys())
    really = any(v.kind in _BAD for s, v in pairs if s.record.name in ailing)
    if not really or len(onsets) < 2 or 2 * len(onsets) <= served or onsets[-1] - onsets[0] > TOGETHER:
        return None
    return CommonCause(frozenset(ailing), since=onsets[0], served=served, tried=min(tried, default=None))


def why_no_disturbance(
    seen: Seen, verdict: Verdict, pairs: Pairs, cause: CommonCause | None, policy: Policy, now: float
) -> str | None:
    """Why healing must leave this living process alone now, or None."""
    name = seen.record.name
    if cause is not None and name in cause.names:
        if now - cause.since < HOLD:
            return cause.sentence(now)
        if cause.tried is not None and cause.tried != name:
            return f"common cause: {cause.tried} is restarted first, to see whether it helps"
    return _why_alone(seen, pairs, policy, now)


def why_one_at_a_time(name: str, verdict: Verdict, disturbed: str | None) -> str | None:
    """Why `name` waits for the one whose living process healing has ended. Users wait in a hung one: it does not."""
    if disturbed is None or disturbed == name or verdict.kind is VerdictKind.HUNG:
        return None
    return f"waits until {disturbed} serves again: one is restarted at a time"


def _why_alone(seen: Seen, pairs: Pairs, policy: Policy, now: float) -> str | None:
    """Silence is the instance's own only if another one has been heard since: else it may be ours."""
    probe = seen.probe
    if probe is None or not probe.failures or probe.first_failure_at is None:
        return None
    others = [s.probe for s, _ in pairs if s.record.name != seen.record.name and _has_served(s) and s.probe is not None]
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
    return probe.answered_at is not None and probe.answered_at > since


def _has_served(seen: Seen) -> bool:
    """A living process that is or was in rotation."""
    alive = seen.fact is not None and seen.fact.phase is Phase.RUNNING
    return alive and (seen.record.in_rotation or seen.record.serving_since is not None)


def _ails(seen: Seen, verdict: Verdict, policy: Policy) -> bool:
    return verdict.kind in _BAD or (seen.probe is not None and seen.probe.failures >= policy.failures)


def _onset(seen: Seen, now: float) -> float:
    probe, record = seen.probe, seen.record
    first = probe.first_failure_at if probe is not None and probe.failures else None
    return min((at for at in (first, record.bad_since) if at is not None), default=now)
