"""The policy `thresholds`: the original design's numbers and windows, with guards around them. Pure.

Up by one when, over the last `up_samples`, the mean of any input is above its limit; down by one when, over the last
`down_samples`, the means of all are below theirs and one less would still be inside the limits for going up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasupervisor.decide.autoscale import guards
from hasupervisor.decide.autoscale.facts import Opinion, Rules, Sample, Situation
from hasupervisor.decide.autoscale.turned_away import CALM, TurnedAway, turned_away

LATE = 2.0
"""Sample periods after which the newest sample is stale, and between two of them one is missing."""


@dataclass(frozen=True, slots=True)
class _Input:
    """One of the three inputs, with its limits."""

    reason: str
    words: str  # "{value} ms response time"
    of: Callable[[Sample], float | None]
    up: float
    down: float

    def mean(self, samples: Sequence[Sample]) -> float | None:
        """None where fewer than half of the samples know it."""
        known = [value for sample in samples if (value := self.of(sample)) is not None]
        return sum(known) / len(known) if known and 2 * len(known) >= len(samples) else None

    def shown(self, value: float) -> str:
        return self.words.format(value=f"{value:.4g}" if value < 100 else f"{value:.0f}")


def opinion(samples: Sequence[Sample], situation: Situation, rules: Rules, now: float) -> Opinion:
    """What the samples (the oldest first) ask for now."""
    beyond = guards.out_of_bounds(situation, rules)
    if beyond is not None:
        return beyond
    run = _run(samples, situation, rules, now)
    inputs = _inputs(rules)
    latest = run[-rules.up_samples :]
    shown = {f"{one.reason}_{len(latest)}": one.mean(latest) for one in inputs} if latest else {}
    away = turned_away(latest, rules)
    if away is not None:
        shown[f"turned_away_{len(latest)}"] = away.percent
    if not run:
        return guards.stay(situation, _why_no_run(samples, rules, now), shown)
    if len(run) < rules.up_samples:
        return guards.stay(situation, f"{len(run)} of {rules.up_samples} samples since the count last changed", shown)
    over = f"over {rules.up_samples * rules.sample:.0f} s"
    high = [(one, mean) for one in inputs if (mean := one.mean(latest)) is not None and mean > one.up]
    reasons = {one.reason: f"{one.shown(mean)} {over}, above {one.up:g}" for one, mean in high}
    if away is not None and away.asks_for_more(rules):
        reasons["turned_away"] = f"{away.words} {over}, above {rules.up_turned_away:g}"
    if reasons:
        why = " and ".join(reasons.values())
        return guards.more(situation.desired + 1, why, next(iter(reasons)), situation, rules, shown)
    if len(run) < rules.down_samples:
        why = f"no mean is above its limit; {len(run)} of {rules.down_samples} samples that one less would need"
        return guards.stay(situation, why, shown)
    return _perhaps_fewer(run[-rules.down_samples :], situation, rules)


def of_the_present(samples: Sequence[Sample], situation: Situation, rules: Rules, now: float) -> TurnedAway | None:
    """Who was turned away by the set that serves now, over `up_samples`; None: not known, or not for so long."""
    latest = _run(samples, situation, rules, now)[-rules.up_samples :]
    return turned_away(latest, rules) if len(latest) >= rules.up_samples else None


def _perhaps_fewer(window: Sequence[Sample], situation: Situation, rules: Rules) -> Opinion:
    inputs = _inputs(rules)
    means = {one.reason: one.mean(window) for one in inputs}
    shown = {f"{reason}_{len(window)}": mean for reason, mean in means.items()}
    unknown = _unknown(window)
    if unknown is not None:
        return guards.stay(situation, unknown, shown)
    away = turned_away(window, rules)
    if away is not None and away.percent >= CALM * rules.up_turned_away:
        return guards.stay(situation, f"{away.words}, not below {CALM * rules.up_turned_away:g}", shown)
    above = [(one, mean) for one in inputs if (mean := means[one.reason]) is not None and mean >= one.down]
    if above:
        why = ", ".join(f"{one.shown(mean)} is not below {one.down:g}" for one, mean in above)
        return guards.stay(situation, why, shown)
    known = ", ".join(one.shown(mean) for one in inputs if (mean := means[one.reason]) is not None)
    why = f"{known} over {rules.down_samples * rules.sample:.0f} s, all below their limits"
    if means["gpu_utilization"] is None:
        why += "; GPU use is not known"
    return guards.fewer(why, situation, rules, shown, _too_much_for_fewer(means, situation, rules))


def _too_much_for_fewer(means: dict[str, float | None], situation: Situation, rules: Rules) -> str | None:
    """The N-1 check: the load of one instance grows as their number falls."""
    after = guards.left_serving(situation)
    if after < 1:
        return None  # said by the guards
    for one in _inputs(rules):
        mean = means[one.reason]
        if mean is not None and mean * situation.serving / after > one.up:
            return f"{after} would have {one.shown(mean * situation.serving / after)}, above {one.up:g}"
    return None


def _unknown(window: Sequence[Sample]) -> str | None:
    """Missing values never scale down. A GPU that has never been seen is left out: it would hold the count for ever."""
    if any(sample.connections is None for sample in window):
        return "requests in flight are not known in all samples, and missing ones never scale down"
    seen = [sample for sample in window if sample.gpu_utilization is not None]
    if seen and len(seen) < len(window):
        return "GPU use is not known in all samples, and missing ones never scale down"
    answered = any(sample.response_time_ms is not None for sample in window)
    if not answered and any(sample.in_flight or sample.connections for sample in window):
        return "there is work in flight and nothing has been answered, so the response time is not known"
    return None


def _run(samples: Sequence[Sample], situation: Situation, rules: Rules, now: float) -> tuple[Sample, ...]:
    """The newest samples without a gap of the set that serves now: others say nothing of what is wanted next."""
    run: list[Sample] = []
    later, late = now, LATE * rules.sample
    for sample in reversed(samples):
        if sample.at > now or later - sample.at > late:
            break
        if sample.desired != situation.desired or sample.starting or not sample.serving:
            break
        run.append(sample)
        later = sample.at
    return tuple(reversed(run))


def _why_no_run(samples: Sequence[Sample], rules: Rules, now: float) -> str:
    if not samples:
        return "there are no samples yet"
    newest = samples[-1]
    if newest.at > now or now - newest.at > LATE * rules.sample:
        return f"the newest sample is {max(0.0, now - newest.at):.0f} s old: stale ones decide nothing"
    if newest.starting:
        return "samples count again once nothing is on its way up"
    if not newest.serving:
        return "nothing serves: that is for healing, not for scaling"
    return f"0 of {rules.up_samples} samples since the count last changed"


def _inputs(rules: Rules) -> tuple[_Input, ...]:
    return (
        _Input(
            "response_time_ms",
            "{value} ms response time",
            lambda sample: sample.response_time_ms,
            rules.up_response_time_ms,
            rules.down_response_time_ms,
        ),
        _Input(
            "gpu_utilization",
            "{value} % GPU use",
            lambda sample: sample.gpu_utilization,
            rules.up_gpu_utilization,
            rules.down_gpu_utilization,
        ),
        _Input(
            "connections",
            "{value} connections an instance",
            lambda sample: sample.connections,
            rules.up_connections,
            rules.down_connections,
        ),
    )
