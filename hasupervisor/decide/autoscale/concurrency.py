"""The policy `concurrency`: as many as the requests in flight need (Little's law), quick up and slow down. Pure.

The mean over a minute decides; in a burst (panic) the mean over ten seconds. Down only when nothing more was needed
for five minutes and the peak of the last minute fits into one less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hasupervisor.decide.autoscale import guards
from hasupervisor.decide.autoscale.capacity import Slots
from hasupervisor.decide.autoscale.facts import Load, Opinion, Rules, Situation
from hasupervisor.decide.autoscale.turned_away import CALM, TurnedAway

STABLE, BURST = 60.0, 10.0
PANIC = 1.5  # times what serves
PANIC_LASTS = 60.0  # seconds after the burst fell below
LOOK_BACK = 300.0  # for going down; three times what a start takes, where that is longer
UP_MARGIN, DOWN_MARGIN = 1.1, 0.9
WAIT_LIMIT = 5.0  # seconds that a request may queue
STALE = 10.0  # seconds without a look
GAP = 25.0  # seconds between two looks, beyond which a peak may have been missed; samples that were kept are 10 s apart


@dataclass(frozen=True, slots=True)
class _Need:
    """What was needed at one moment."""

    at: float
    stable: float  # mean in flight over STABLE
    burst: float  # over BURST
    instances: int  # what these need
    panic: bool


def opinion(
    loads: Sequence[Load],
    situation: Situation,
    rules: Rules,
    slots: Slots,
    now: float,
    away: TurnedAway | None = None,
) -> Opinion:
    """What the looks (the oldest first) ask for now; `away`: who got no answer lately, of the set that serves now."""
    beyond = guards.out_of_bounds(situation, rules)
    if beyond is not None:
        return beyond
    look_back = max(LOOK_BACK, 3.0 * situation.load_seconds)
    known = [load for load in loads if load.in_flight is not None and now - look_back - STABLE <= load.at <= now]
    if not known or now - known[-1].at > STALE:
        age = f"for {now - known[-1].at:.0f} s" if known else "yet"
        return guards.stay(situation, f"requests in flight are not known {age}: what is missing decides nothing", {})
    needs = _needs(known, slots)
    need, queues = needs[-1], _queues(known)
    effective = situation.serving + len(situation.starting)
    wanted = max(need.instances, effective + 1) if queues is not None else need.instances
    inputs = {
        "in_flight_60s": need.stable,
        "in_flight_10s": need.burst,
        "slots": slots.count,
        "target": slots.target,
        "needed": float(wanted),
        "burst": float(need.panic),
    }
    if known[-1].at - known[0].at < BURST:
        return guards.stay(situation, f"{known[-1].at - known[0].at:.0f} of {BURST:.0f} s of looks yet", inputs)
    target = situation.desired + wanted - effective
    if queues is not None:
        return guards.more(target, f"requests would queue for {queues:.1f} s", "queue", situation, rules, inputs)
    if away is not None and away.asks_for_more(rules):
        target = situation.desired + max(wanted, effective + 1) - effective
        why = f"{away.words}, above {rules.up_turned_away:g}"
        return guards.more(target, why, "turned_away", situation, rules, inputs)
    load = need.burst if need.panic else need.stable
    if wanted > effective and load / slots.target > UP_MARGIN * effective:
        found = guards.more(target, _why_more(need, slots), "in_flight", situation, rules, inputs)
        return replace(found, urgent=need.panic)
    if away is not None and away.percent >= CALM * rules.up_turned_away:
        return guards.stay(situation, f"{away.words}, not below {CALM * rules.up_turned_away:g}", inputs)
    return _perhaps_fewer(known, needs, situation, rules, slots, _Back(look_back, now), inputs)


def may_be_burst(loads: Sequence[Load], slots: Slots, now: float) -> bool:
    """Whether the last ten seconds may be a burst: cheap, to be asked at every look."""
    recent: list[float] = []
    serving = 0
    for load in reversed(loads):
        if load.at <= now - BURST:
            break
        serving = serving or load.serving
        if load.in_flight is not None:
            recent.append(load.in_flight)
    return bool(recent) and _ceil(sum(recent) / len(recent) / slots.target) >= PANIC * serving > 0


@dataclass(frozen=True, slots=True)
class _Back:
    """How far the look back for going down reaches."""

    seconds: float
    now: float


def _perhaps_fewer(
    known: Sequence[Load],
    needs: Sequence[_Need],
    situation: Situation,
    rules: Rules,
    slots: Slots,
    back: _Back,
    inputs: guards.Inputs,
) -> Opinion:
    need, after = needs[-1], guards.left_serving(situation)
    carried = f"{need.stable:.1f} in flight, {slots.target:.3g} planned for each ({slots.count:g} slots {slots.how})"
    most = max(one.instances for one in needs if one.at >= back.now - back.seconds)
    if need.panic or most > max(after, 0):
        return guards.stay(situation, f"{carried}; up to {most} were needed within {back.seconds:.0f} s", inputs)
    held = _gap(known, back)
    peak = max(load.in_flight or 0.0 for load in known if load.at >= back.now - STABLE)
    if held is None and peak > DOWN_MARGIN * slots.target * after:
        held = f"{after} would be full: up to {peak:.0f} were in flight within a minute"
    return guards.fewer(f"{carried}; {most} {'is' if most == 1 else 'are'} enough", situation, rules, inputs, held)


def _why_more(need: _Need, slots: Slots) -> str:
    load, over = (need.burst, BURST) if need.panic else (need.stable, STABLE)
    burst = ", a burst" if need.panic else ""
    planned = f"{slots.target:.3g} are planned for each ({slots.count:g} slots {slots.how})"
    return f"{load:.1f} in flight over {over:.0f} s{burst}; {planned}"


def _queues(known: Sequence[Load]) -> float | None:
    """How long requests queue, where all of the last ten seconds' looks say: too long."""
    waits = [load.wait_s for load in known if load.at >= known[-1].at - BURST]
    seen = [wait for wait in waits if wait is not None]
    return min(seen) if len(seen) >= 2 and len(seen) == len(waits) and min(seen) > WAIT_LIMIT else None


def _gap(known: Sequence[Load], back: _Back) -> str | None:
    """Why the look back is not whole: what nobody saw may have been a peak."""
    begin = back.now - back.seconds
    if known[0].at > begin + STALE:
        return f"it looks back over {back.seconds:.0f} s and has {back.now - known[0].at:.0f} s"
    times = [load.at for load in known if load.at >= begin - STALE]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if max(gaps, default=0.0) > GAP:
        return f"{max(gaps):.0f} s of the last {back.seconds:.0f} s were not seen"
    return None


def _needs(known: Sequence[Load], slots: Slots) -> list[_Need]:
    """What was needed at every look; sums slide along, so that it costs one pass."""
    needs: list[_Need] = []
    stable, burst = _Sliding(STABLE), _Sliding(BURST)
    panic_until, target = -math.inf, slots.target
    for load in known:
        in_flight = load.in_flight or 0.0
        minute, moment = stable.add(load.at, in_flight), burst.add(load.at, in_flight)
        needed, soon = _ceil(minute / target), _ceil(moment / target)
        if load.serving and soon >= PANIC * load.serving:
            panic_until = load.at + PANIC_LASTS
        panic = load.at < panic_until
        needs.append(_Need(load.at, minute, moment, max(needed, soon) if panic else needed, panic))
    return needs


def _ceil(value: float) -> int:
    """Sums of floats drift: what is a whole number but for that is that number."""
    return math.ceil(value - 1e-9)


class _Sliding:
    """The mean of what was added within so many seconds."""

    def __init__(self, span: float) -> None:
        self._span = span
        self._values: list[tuple[float, float]] = []
        self._first = 0
        self._sum = 0.0

    def add(self, at: float, value: float) -> float:
        self._values.append((at, value))
        self._sum += value
        while self._values[self._first][0] <= at - self._span:
            self._sum -= self._values[self._first][1]
            self._first += 1
        return max(0.0, self._sum) / (len(self._values) - self._first)
