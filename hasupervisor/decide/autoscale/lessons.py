"""What was learned when fewer were too few: it keeps the count from going to and fro under an even load. Pure.

Requests come by chance, so a count of them tells their rate only within bounds. A lesson notes the lowest rate that
the counts leave likely, and it is outgrown only when the highest one that they leave likely now is well below: the
noise of an even load does neither, a burst and its end do both within minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from hasupervisor.decide.autoscale.facts import Lesson, Sample, Situation
from hasupervisor.decide.autoscale.guards import left_serving

LONGEST = 86_400.0
"""Seconds that a lesson holds at most; each time that it is taught again, it holds twice as long."""

LESS = 0.7
"""The share of the requests a second that were too many, up to which fewer instances are tried again."""

SIGMAS = 3.0
WINDOWS = (1, 6, 12, 60)
"""Samples over which the lowest rate is looked for: a burst shows in few of them, a slow load in many only."""

FRESH = 60.0  # seconds for which a lesson may become clearer, or twice what a start takes
CALM = 60  # samples, ten minutes at the usual period: what is lower now is judged over all of them
ENOUGH = 30  # of them that are known


def lowest_rate(samples: Sequence[Sample], period: float) -> float | None:
    """The most requests a second that there surely were, in one of WINDOWS; None where nothing is known."""
    known = [sample.qps * period for sample in samples[-CALM:] if sample.qps is not None]
    if not known:
        return None
    return max(0.0, *(_surely(known[-window:], period) for window in WINDOWS))


def highest_rate(samples: Sequence[Sample], period: float, now: float) -> float | None:
    """The most requests a second that there may have been lately; None where too little is known."""
    recent = [sample for sample in samples[-CALM:] if now - sample.at <= CALM * period]
    known = [sample.qps * period for sample in recent if sample.qps is not None]
    if len(known) < ENOUGH:
        return None
    count = sum(known)
    if not count:
        return 0.0  # ten minutes without a request: whatever the lesson, it was another load
    # Of a mean m, m - SIGMAS * sqrt(m) are counted at least: this is that, turned round.
    return (count + SIGMAS * math.sqrt(count + SIGMAS**2 / 4) + SIGMAS**2 / 2) / (period * len(known))


def against(situation: Situation, highest: float | None, now: float) -> str | None:
    """Why so few as one less leaves would be too few again, or None."""
    after = left_serving(situation)
    for lesson in reversed(situation.lessons):
        if lesson.serving < after or now - lesson.at > lesson.holds:
            continue
        if highest is None or highest > LESS * lesson.qps:
            then = f"{lesson.serving} were too few for {lesson.qps:.3g} requests/s {(now - lesson.at) / 60:.0f} min ago"
            return f"{then}, {'it is not known how many come now' if highest is None else f'up to {highest:.3g} now'}"
    return None


def with_one_more(lessons: tuple[Lesson, ...], lesson: Lesson) -> tuple[Lesson, ...]:
    """The last of each count is kept, and one that comes again holds longer."""
    again = any(old.serving == lesson.serving and lesson.at - old.at < 2.0 * old.holds for old in lessons)
    held = max((old.holds for old in lessons if old.serving == lesson.serving), default=lesson.holds)
    holds = min(2.0 * held, LONGEST) if again else lesson.holds
    return (*(old for old in lessons if old.serving != lesson.serving), replace(lesson, holds=holds))


def refined(
    lessons: tuple[Lesson, ...], situation: Situation, lowest: Callable[[], float | None], now: float
) -> tuple[Lesson, ...]:
    """The newest one, known better while what it has started is still on its way: requests count when they end."""
    if not lessons or not situation.starting:
        return lessons
    newest = lessons[-1]
    if newest.serving != situation.serving or now - newest.at > _fresh(situation):
        return lessons
    rate = lowest()
    return (*lessons[:-1], replace(newest, qps=rate)) if rate is not None and rate > newest.qps else lessons


def hindsight(
    lessons: tuple[Lesson, ...], samples: Sequence[Sample], situation: Situation, period: float, now: float
) -> tuple[Lesson, ...]:
    """The fresh ones, known better by what more instances have carried since.

    A burst is answered within seconds, and a start may take less than a sample: then nothing tells yet how much came.
    Where M carry so many requests a second, N of them would have carried N/M of these and were too few for that.
    """
    return tuple(
        _in_hindsight(lesson, samples, period) if now - lesson.at <= _fresh(situation) else lesson for lesson in lessons
    )


def _in_hindsight(lesson: Lesson, samples: Sequence[Sample], period: float) -> Lesson:
    shares: list[float] = []  # of the requests of each sample since then, what so few would have answered
    for before, sample in pairwise(samples):
        carried_by = max(before.serving, sample.serving)
        if sample.at > lesson.at and carried_by > lesson.serving and sample.qps is not None:
            shares.append(sample.qps * period * lesson.serving / carried_by)
    rates = [_surely(shares[-window:], period) for window in WINDOWS if shares]
    return replace(lesson, qps=max([lesson.qps, *rates]))


def _surely(counts: Sequence[float], period: float) -> float:
    """The lowest rate that so many requests in so many samples leave likely; below 0 where they are too few."""
    count = sum(counts)
    return (count - SIGMAS * math.sqrt(count)) / (period * len(counts))


def _fresh(situation: Situation) -> float:
    return max(FRESH, 2.0 * situation.load_seconds)
