"""Lost cards after a restart of the daemon: told by what is remembered of them, for they cannot say who they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hasupervisor.model.gpu import CardRecord, CardView, DriverState, DriverView


def recall(view: DriverView, records: Mapping[str, CardRecord], boot: str) -> DriverView:
    """The view with the quarantined cards in it that NVML does not show, or shows without a UUID.

    A lost card refuses even its UUID: its index says which it is, in the boot in which it was quarantined. One that
    is not listed at all, although all cards were asked, is missing.
    """
    shown = {card.uuid for card in view.cards}
    absent = {uuid: held for uuid, record in records.items() if uuid not in shown and (held := record.quarantine)}
    if not absent:
        return view
    known = {held.index: uuid for uuid, held in absent.items() if held.index is not None and held.boot == boot}
    cards = [replace(card, uuid=known.get(card.index)) if card.uuid is None else card for card in view.cards]
    if view.state is DriverState.OK and view.asked_at is not None:
        taken = {card.index for card in cards}
        for uuid, held in absent.items():
            if held.index is not None and uuid not in {card.uuid for card in cards}:
                index = held.index if held.index not in taken else max(taken) + 1
                taken.add(index)
                cards.append(CardView(uuid, index, missing_since=view.asked_at))
    return replace(view, cards=tuple(sorted(cards, key=lambda card: card.index)))
