"""How busy the GPUs are on which instances serve: one input of policy `thresholds`, and figures for people. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hasupervisor.model.gpu import GB, CardJudged, GpuFact

STALE = 10.0
"""Seconds after which a card's figures say nothing of the present; they are taken every second or two."""


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Of all cards on which somebody serves. None: one of them could not tell, or there is none."""

    utilization: float | None = None  # percent, mean of the cards
    used_gb: float | None = None  # of all of them together, without what the driver itself reserves
    total_gb: float | None = None


def gpu_use(cards: Sequence[CardJudged], serving: Collection[str], now: float) -> GpuUse:
    """`serving`: names of the instances that serve. A mean without the card that cannot tell would be another's."""
    facts = [fresh(card, now) for card in cards if any(name in serving for name in card.instances)]
    known = [fact for fact in facts if fact is not None]
    if not known or len(known) < len(facts):
        return GpuUse()
    used = [fact.utilization for fact in known if fact.utilization is not None]
    return GpuUse(
        utilization=100.0 * sum(used) / len(used) if len(used) == len(known) else None,
        used_gb=sum(used_bytes(fact) for fact in known) / GB,
        total_gb=sum(fact.memory_total_bytes for fact in known) / GB,
    )


def fresh(card: CardJudged, now: float) -> GpuFact | None:
    """Its figures, if they are of the present."""
    view = card.view
    if view.silent_since is not None or view.missing_since is not None or view.refusal is not None:
        return None
    return view.fact if view.fact is not None and now - view.fact.seen_at <= STALE else None


def used_bytes(fact: GpuFact) -> int:
    """As nvidia-smi counts: without what the driver has reserved for itself."""
    return max(0, fact.memory_total_bytes - fact.memory_free_bytes - (fact.memory_reserved_bytes or 0))
