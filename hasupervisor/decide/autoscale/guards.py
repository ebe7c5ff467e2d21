"""What holds every policy back: bounds, starts under way, somebody ill, no room."""

from __future__ import annotations

from collections.abc import Mapping

from hasupervisor.decide.autoscale.facts import Opinion, Rules, Situation

Inputs = Mapping[str, float | None]


def stay(situation: Situation, why: str, inputs: Inputs, held: str | None = None) -> Opinion:
    """The count as it is."""
    return Opinion(situation.desired, f"holding {situation.desired}: {why}", inputs, held)


def more(target: int, why: str, reason: str, situation: Situation, rules: Rules, inputs: Inputs) -> Opinion:
    """`target` are wanted for `why`, unless something speaks against a start now."""
    held = _why_not_more(situation, rules)
    if held is not None:
        return stay(situation, f"{target} would be wanted, {why}; but {held}", inputs, held)
    wanted, limit = min(target, rules.max), f"service.max is {rules.max}"
    if situation.room is not None and situation.desired + situation.room < wanted:
        wanted, limit = situation.desired + situation.room, f"there is room for {situation.room} more"
    capped = f"; {target} would be wanted, {limit}" if target > wanted else ""
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
