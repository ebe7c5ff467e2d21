"""Who would find no card: a question that comes before a person's word is taken. Pure."""

from __future__ import annotations

from collections.abc import Collection

from hasupervisor.decide.gpu.ledger import WAITS
from hasupervisor.model import Plan, State
from hasupervisor.model.gpu import DriverState


def homeless(plan: Plan, driver: DriverState, names: Collection[str]) -> str | None:
    """Why those of `names` that serve could not all start again, were they ended now; None: they could.

    Who is on a card that takes newcomers gets its place back; the others need room elsewhere.
    """
    if plan.room is None:
        return None
    works = driver is DriverState.OK
    takes = {card.view.uuid for card in plan.cards if works and card.available_bytes is not None}
    leaving = [
        judged.record.name
        for judged in plan.instances
        if judged.record.name in names
        and judged.state is State.SERVING
        and judged.fact is not None
        and not takes.issuperset(judged.fact.gpus)
    ]
    if len(leaving) <= plan.room:
        return None
    why = (plan.no_room or f"there is room for {plan.room} of {len(leaving)}").removeprefix(WAITS)
    return f"{', '.join(leaving)} would find no GPU again: {why}"


def crowded(plan: Plan, wanted: int) -> str | None:
    """Why the GPUs have no room for so many instances in all; None: they have, or no GPU limits them."""
    housed = {name for card in plan.cards for name in card.instances}
    if plan.room is None or wanted - len(housed) <= plan.room:
        return None
    more = wanted - len(housed)
    why = (plan.no_room or f"there is room for {plan.room} more").removeprefix(WAITS)
    return f"{wanted} instances need {more} more place{'s'[: more > 1]} on the GPUs: {why}"
