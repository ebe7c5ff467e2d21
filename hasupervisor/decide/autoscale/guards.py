"""What holds every policy back: bounds, starts under way, no room, what was learned when fewer were too few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hasupervisor.decide.autoscale.facts import Lesson, Opinion, Rules, Situation

LONGEST_LESSON = 86_400.0
"""Seconds that a lesson holds at most; each time that it is taught again, it holds twice as long."""

LESS = 0.7
"""The share of the requests a second that were too many, up to which fewer instances are tried again."""

Inputs = Mapping[str, float | None]


def stay(situation: Situation, why: str, inputs: Inputs, held: str | None = None) -> Opinion:
    """The count as it is."""
    return Opinion(situation.desired, f"holding {situation.desired}: {why}", inputs, held)


def more(target: int, why: str, reason: str, situation: Situation, rules: Rules, inputs: Inputs) -> Opinion:
    """`target` are wanted for `why`, unless something speaks against a start now."""
    held = _why_not_more(situation, rules)
    if held is not None:
        return stay(situation, f"{target} would be wanted, {why}; but {held}", inputs, held)
    wanted = min(target, rules.max)
    capped = f"; {target} would be wanted, service.max is {rules.max}" if target > wanted else ""
    return Opinion(wanted, f"{situation.desired} -> {wanted}: {why}{capped}", inputs, reason=reason)


def fewer(why: str, situation: Situation, rules: Rules, inputs: Inputs, held: str | None) -> Opinion:
    """One less is wanted for `why`; `held` is what the policy itself has against it."""
    held = why_not_fewer(situation, rules) or held
    if held is not None:
        return stay(situation, f"one less would do, {why}; but {held}", inputs, held)
    wanted = situation.desired - 1
    return Opinion(wanted, f"{situation.desired} -> {wanted}: {why}", inputs, reason="idle")


def out_of_bounds(situation: Situation, rules: Rules) -> Opinion | None:
    """The way back into service.min and service.max, where a person has left them; None within."""
    if situation.desired < rules.min:
        return Opinion(
            rules.min, f"{situation.desired} -> {rules.min}: below service.min = {rules.min}", reason="bounds"
        )
    if situation.desired > rules.max:
        why = f"above service.max = {rules.max}"
        held = _why_not_now(situation)
        if held is not None:
            return stay(situation, f"{why}; but {held}", {}, held)
        wanted = situation.desired - 1
        return Opinion(wanted, f"{situation.desired} -> {wanted}: {why}", reason="bounds")
    return None


def least(rules: Rules) -> int:
    """The fewest that are reached by itself: none at all would never see the request that asks for one."""
    return max(1, rules.min)


def left_serving(situation: Situation) -> int:
    """How many serve after one less is wanted: what does not serve goes first."""
    return situation.serving if situation.parked else situation.serving - 1


def lesson_against(situation: Situation, qps: float | None, now: float) -> str | None:
    """Why so few as are left would be too few again, or None."""
    after = left_serving(situation)
    for lesson in reversed(situation.lessons):
        if lesson.serving < after or now - lesson.at > lesson.holds:
            continue
        minutes = (now - lesson.at) / 60
        if qps is None or qps > LESS * lesson.qps:
            known = "their number is not known now" if qps is None else f"it is {qps:.1f} now"
            return f"{lesson.serving} were too few for {lesson.qps:.1f} requests/s {minutes:.0f} min ago, {known}"
    return None


def with_lesson(lessons: tuple[Lesson, ...], lesson: Lesson) -> tuple[Lesson, ...]:
    """The lessons with one more; the last of each count is kept, and one that comes again holds longer."""
    again = any(old.serving == lesson.serving and lesson.at - old.at < 2.0 * old.holds for old in lessons)
    held = max((old.holds for old in lessons if old.serving == lesson.serving), default=lesson.holds)
    holds = min(2.0 * held, LONGEST_LESSON) if again else lesson.holds
    return (*(old for old in lessons if old.serving != lesson.serving), replace(lesson, holds=holds))


def _why_not_more(situation: Situation, rules: Rules) -> str | None:
    if situation.desired >= rules.max:
        return f"service.max is {rules.max}"
    if situation.starting:
        return f"{situation.starting[0]} is still on its way up"
    if situation.ailing:
        return f"{situation.ailing[0]} is ill: it is healed first"
    return situation.no_room


def why_not_fewer(situation: Situation, rules: Rules) -> str | None:
    if situation.desired <= least(rules):
        return f"service.min is {rules.min}" if rules.min else "the last one stays"
    held = _why_not_now(situation)
    if held is None and left_serving(situation) < 1:
        return "nothing would be left serving"
    return held


def _why_not_now(situation: Situation) -> str | None:
    if situation.starting:
        return f"{situation.starting[0]} is still on its way up"
    if situation.ailing:
        return f"{situation.ailing[0]} is ill"
    if situation.leaving:
        return f"{situation.leaving[0]} still drains"
    return None
