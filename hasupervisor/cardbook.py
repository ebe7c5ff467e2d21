"""What is remembered of each GPU from cycle to cycle, and what a person says of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from hasupervisor.decide.gpu import judge
from hasupervisor.decide.gpu.cards import key
from hasupervisor.model import Fact, Note
from hasupervisor.model.gpu import CardJudged, CardRecord, CardView, Gpus

NAMED = "GPU-"
"""What every UUID of NVIDIA's begins with: a card that has never said its own is not known again."""


class GpuLook(Protocol):
    def __call__(self, facts: Sequence[Fact], records: Mapping[str, CardRecord]) -> Gpus:
        """All that is known of the GPUs now; faults are handed out once."""


class CardMemory(Protocol):
    def save_cards(self, records: Iterable[CardRecord]) -> None: ...


class CardBook:
    """The records of the cards. `note` takes a line for the history, `wake` makes the next cycle due."""

    def __init__(
        self,
        remembered: Mapping[str, CardRecord],
        look: GpuLook | None,
        memory: CardMemory,
        note: Callable[[Note], None],
        wake: Callable[[], None],
    ) -> None:
        """`look` None: nobody looks at GPUs."""
        self._records = dict(remembered)
        self._look = look
        self._memory = memory
        self._note = note
        self._wake = wake
        self._seen: Gpus | None = None

    def look(self, facts: Sequence[Fact]) -> Gpus | None:
        """What a cycle sees of the GPUs."""
        self._seen = self._look(facts, self._records) if self._look is not None else None
        return self._seen

    def keep(self, judged: Sequence[CardJudged]) -> None:
        """Remembers what a cycle decided; of cards that it has not seen all stays as it is."""
        if judged:
            self._save({key(card.view): card.record for card in judged})

    def view(self, uuid: str) -> CardView | None:
        """The card of that UUID, as it was seen last, or None if there is no such card."""
        cards = self._seen.driver.cards if self._seen is not None else ()
        return next((card for card in cards if card.uuid == uuid), None)

    def quarantine(self, uuid: str, reason: str, by: str, now_wall: float) -> None:
        """A person takes a card out: what runs on it goes on, and nothing new is placed there."""
        boot = self._seen.boot if self._seen is not None else ""
        self._save({uuid: judge.quarantine(self._record(uuid), reason, by, boot, now_wall)})
        self._note(Note(self._name(uuid), "quarantine", f"quarantined by hand: {reason}", by))
        self._wake()

    def clear(self, uuid: str, by: str) -> None:
        """A person gives a card back: all that is held against it is forgotten."""
        self._save({uuid: judge.clear(self._record(uuid))})
        self._note(Note(self._name(uuid), "quarantine", "cleared by hand: it may be placed on again", by))
        self._wake()

    def _record(self, uuid: str) -> CardRecord:
        return self._records.get(uuid, CardRecord(uuid))

    def _save(self, changed: Mapping[str, CardRecord]) -> None:
        self._records = {**self._records, **changed}
        self._memory.save_cards(record for record in self._records.values() if record.uuid.startswith(NAMED))

    def _name(self, uuid: str) -> str:
        card = self.view(uuid)
        return f"GPU {card.index}" if card is not None else uuid
