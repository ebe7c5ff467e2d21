"""The GPUs as people and machines are shown them: documents of what a cycle judged, nothing judged here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from hasupervisor.decide.autoscale.gpus import fresh, used_bytes
from hasupervisor.decide.gpu.ledger import WAITS
from hasupervisor.model.gpu import CardJudged, DriverState, Gpus, Quarantine, Source, bus_key
from hasupervisor.report.desk import NoSuch
from hasupervisor.report.snapshot import GpusView, Snapshot
from hasupervisor.report.times import timestamp

Document = dict[str, Any]

SHORTEST = 4
"""Characters of a UUID's beginning without "GPU-"; fewer may be meant as an index."""


def whole(snapshot: Snapshot) -> Document:
    """All there is to say of GPUs."""
    view = snapshot.gpus
    return {"driver": driver(view), "room": room(view), "gpus": cards(view, snapshot.now)}


def named(view: GpusView | None, which: str) -> CardJudged:
    """The card with that index, or whose UUID begins so. Raises NoSuch, with those there are."""
    if view is None:
        raise NoSuch('the daemon does not look at GPUs: gpu.mode = "off"', "chatglm-hactl config show")
    if not view.cards:
        raise NoSuch(f"there is no GPU: {view.driver.sentence}", "chatglm-hactl doctor")
    found = _matching(view.cards, which)
    if len(found) == 1:
        return found[0]
    words = f"{which} may be any of {_listed(found)}" if found else f"there is no GPU {which}; {_there_are(view.cards)}"
    raise NoSuch(words, "chatglm-hactl gpu list")


def _matching(cards: Sequence[CardJudged], which: str) -> list[CardJudged]:
    if which.isdecimal() and len(which) < SHORTEST:
        indexed = [one for one in cards if one.view.index == int(which)]
        # The index of a card that is lost is soon another one's.
        return [one for one in indexed if one.view.missing_since is None] or indexed
    beginning = which.lower().removeprefix("gpu-")
    if len(beginning) < SHORTEST and not which.lower().startswith("gpu-"):
        return []
    return [one for one in cards if one.record.uuid.lower().removeprefix("gpu-").startswith(beginning)]


def _there_are(cards: Sequence[CardJudged]) -> str:
    return f"there {'are' if len(cards) > 1 else 'is'} {_listed(cards)}"


def _listed(cards: Sequence[CardJudged]) -> str:
    return ", ".join(f"{one.view.index} ({one.record.uuid})" for one in cards)


def cards(view: GpusView | None, now: float) -> list[Document]:
    """One document a card, the lost ones included."""
    return [card(one, now) for one in view.cards] if view is not None else []


def card(judged: CardJudged, now: float) -> Document:
    """One card. A figure that is not known now is null: of a card that is lost or silent all but its size and name."""
    view, known, fact = judged.view, judged.view.fact, fresh(judged, now)
    held = judged.record.quarantine or judged.record.by_hand
    return {
        "uuid": judged.record.uuid,
        "index": view.index,
        "name": known.name if known is not None else None,
        "bus": known.bus if known is not None else None,
        "memory_total_bytes": known.memory_total_bytes if known is not None else None,
        "memory_used_bytes": used_bytes(fact) if fact is not None else None,
        "memory_available_bytes": judged.available_bytes if fact is not None else None,
        "memory_foreign_bytes": judged.foreign_bytes if fact is not None else None,
        "memory_leaked_bytes": judged.leaked_bytes if fact is not None else None,
        "utilization": _rounded(fact.utilization) if fact is not None else None,
        "temperature_c": fact.temperature_c if fact is not None else None,
        "power_w": _rounded(fact.power_w) if fact is not None else None,
        "state": judged.state.value,
        "reason": judged.reason,
        "quarantine": _quarantine(held) if held is not None else None,
        "excluded": judged.excluded,
        "instances": list(judged.instances),
    }


def driver(view: GpusView | None) -> Document | None:
    """What stands between the daemon and the cards; None: nobody looks at GPUs."""
    if view is None:
        return None
    return {
        "state": view.driver.state.value,
        "sentence": view.driver.sentence,
        "version": view.driver.version,
        "kernel_log": _kernel_log(view),
    }


def room(view: GpusView | None) -> Document | None:
    """How many more instances find a place on the GPUs; null in it: no GPU limits them."""
    if view is None:
        return None
    return {"instances": view.room, "reason": view.no_room.removeprefix(WAITS) if view.no_room is not None else None}


def xids(gpus: Gpus) -> Iterator[tuple[str, int]]:
    """The faults that this cycle heard, for counting: (UUID, Xid); the bus, where NVML does not list the card.

    The kernel log's where it can be read, else NVML's: both tell of the same faults.
    """
    source = Source.KERNEL if gpus.kernel_log.readable else Source.NVML
    uuids = {bus_key(one.fact.bus): one.uuid for one in gpus.driver.cards if one.fact is not None}
    for incident in gpus.incidents:
        xid = incident.xid
        if xid.source is source:
            known = uuids.get(bus_key(xid.bus)) if xid.bus is not None else None
            yield xid.uuid or known or xid.bus or "unknown", xid.code


def _kernel_log(view: GpusView) -> Document | None:
    """None where there are no GPUs to hear of."""
    if view.driver.state is DriverState.ABSENT and not view.cards:
        return None
    return {"readable": view.kernel_log.readable, "sentence": view.kernel_log.sentence or None}


def _quarantine(held: Quarantine) -> Document:
    return {"reason": held.reason, "needs": held.need.value, "by": held.by, "since": timestamp(held.since_wall)}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)
