"""What the NVML process has said so far, card by card: the newest figures, and the trouble of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasupervisor.model.gpu import CardView, GpuFact, GpuProcess, Refusal

Words = dict[str, Any]


@dataclass(slots=True)
class Card:
    """One card, as far as it is known."""

    index: int
    uuid: str | None = None
    fact: GpuFact | None = None
    refusal: Refusal | None = None
    silent_since: float | None = None
    missing_since: float | None = None
    silences: int = 0  # in a row
    retry_at: float = 0.0  # when a silent one is asked again
    heard: bool = False  # in this round

    def view(self) -> CardView:
        return CardView(self.uuid, self.index, self.fact, self.refusal, self.silent_since, self.missing_since)


class Cards:
    """All cards that were ever seen. Each `told` method says whether a card's trouble changed, not only its figures."""

    def __init__(self) -> None:
        self._cards: list[Card] = []

    def views(self) -> tuple[CardView, ...]:
        return tuple(card.view() for card in sorted(self._cards, key=lambda card: card.index))

    def silent(self) -> list[Card]:
        return [card for card in self._cards if card.silent_since is not None]

    def all_silent(self) -> bool:
        """Whether there are cards, and every one that is not missing hangs."""
        here = [card for card in self._cards if card.missing_since is None]
        return bool(here) and all(card.silent_since is not None for card in here)

    def has_answered(self, index: int | str) -> bool:
        """Whether the card that had that index last has ever told its figures."""
        return any(card.index == index and card.fact is not None for card in self._cards)

    def any(self) -> bool:
        return bool(self._cards)

    def told_figures(self, words: Words, now: float) -> bool:
        """A card's figures, which also end whatever was wrong with asking it."""
        card = self._find(words["index"], words["uuid"])
        troubled = (card.refusal, card.silent_since, card.missing_since) != (None, None, None)
        is_new = card.fact is None
        card.fact = _fact(words, card.fact, now)
        card.refusal = card.silent_since = card.missing_since = None
        card.silences = 0
        card.heard = True
        return troubled or is_new

    def told_refusal(self, words: Words, now: float) -> bool:
        """An error in place of a card's figures. It answered, so it is not silent."""
        card = self._find(words["index"], words["uuid"])
        card.heard = True
        code, said, handle = int(words["code"]), str(words["words"]), bool(words["handle"])
        before = card.refusal
        card.silent_since = card.missing_since = None
        if before is not None and (before.code, before.handle) == (code, handle):
            return False
        same = before is not None and before.code == code
        card.refusal = Refusal(code, said, before.since if before is not None and same else now, handle)
        return True

    def forget_silence(self, now: float) -> None:
        """Indices have shifted: which of the cards is the one that hung will show when all are asked again."""
        for card in self.silent():
            card.silent_since, card.missing_since = None, now

    def told_nothing(self, index: int, uuid: str | None, now: float) -> Card:
        """Silence where that card's turn was."""
        card = self._find(index, uuid)
        card.silent_since = card.silent_since if card.silent_since is not None else now
        card.silences += 1
        return card

    def begin_round(self) -> None:
        for card in self._cards:
            card.heard = False

    def end_round(self, count: int, now: float) -> bool:
        """`count` cards are listed: whom nobody heard, and who was not left alone, is missing."""
        changed = False
        for card in self._cards:
            if card.index < count and (card.heard or card.silent_since is not None):
                continue
            if card.missing_since is None:
                card.missing_since = now
                changed = True
        return changed

    def _find(self, index: int, uuid: str | None) -> Card:
        """The card of that UUID, or, while a card does not say who it is, the one that had that index last."""
        if uuid is None:
            found = next((card for card in self._cards if card.index == index), None)
        else:
            found = next((card for card in self._cards if card.uuid == uuid), None) or next(
                (card for card in self._cards if card.index == index and card.uuid is None), None
            )
        if found is None:
            found = Card(index, uuid)
            self._cards.append(found)
        if uuid is not None:
            self._move(found, index)
            found.uuid = uuid
        return found

    def _move(self, card: Card, index: int) -> None:
        """Indices shift after a card was lost: who had this one before is somewhere else, or nowhere."""
        if card.index == index:
            return
        for other in self._cards:
            if other.index == index:
                other.index = card.index
        card.index = index


def _fact(words: Words, before: GpuFact | None, now: float) -> GpuFact:
    listed = words.get("processes")  # not in every round
    processes, processes_at = ((), None) if before is None else (before.processes, before.processes_at)
    if listed is not None:
        processes, processes_at = tuple(GpuProcess(int(pid), used) for pid, used in listed), now
    return GpuFact(
        uuid=words["uuid"],
        index=words["index"],
        name=words["name"],
        bus=words["bus"],
        seen_at=now,
        memory_total_bytes=words["memory_total"],
        memory_free_bytes=words["memory_free"],
        memory_reserved_bytes=words["memory_reserved"],
        utilization=words["utilization"],
        temperature_c=words["temperature_c"],
        power_w=words["power_w"],
        throttle=words["throttle"],
        ecc_uncorrected=words["ecc_uncorrected"],
        remap_pending=words["remap_pending"],
        remap_failed=words["remap_failed"],
        retirement_pending=words["retirement_pending"],
        recovery=words["recovery"],
        mig=words["mig"],
        persistence=words["persistence"],
        processes=processes,
        processes_at=processes_at,
    )
