"""Quarantined cards that NVML does not name are shown as what they were, and nothing else is made up."""

from __future__ import annotations

import pytest

from hasupervisor.model.gpu import CardRecord, CardView, DriverState, DriverView, GpuFact, Need, Quarantine, Refusal
from hasupervisor.observe.gpu_recall import recall

BOOT, LOST, WELL = "boot-2", "GPU-lost", "GPU-well"
IS_LOST = Refusal(15, "GPU is lost", 5.0, handle=True)


def record(index: int | None = 0, boot: str = BOOT) -> dict[str, CardRecord]:
    return {LOST: CardRecord(LOST, Quarantine("off the bus", Need.REBOOT, 1.0, boot, index=index))}


def well(index: int) -> CardView:
    return CardView(WELL, index, GpuFact(WELL, index, "NVIDIA L4", "00000000:02:00.0", 5.0, 24, 23))


def view(*cards: CardView, asked_at: float | None = 5.0, state: DriverState = DriverState.OK) -> DriverView:
    return DriverView(state, "driver 550", cards=cards, asked_at=asked_at)


def test_a_lost_card_that_does_not_say_its_uuid_is_known_by_its_index() -> None:
    found = recall(view(CardView(None, 0, refusal=IS_LOST), well(1)), record(), BOOT)
    assert found.cards == (CardView(LOST, 0, refusal=IS_LOST), well(1))


def test_after_a_reboot_an_index_says_nothing_and_the_card_is_missing() -> None:
    anonymous = CardView(None, 0, refusal=IS_LOST)
    found = recall(view(anonymous, well(1)), record(boot="boot-1"), BOOT)
    assert found.cards == (anonymous, well(1), CardView(LOST, 2, missing_since=5.0))


def test_a_quarantined_card_that_is_not_listed_any_more_is_missing() -> None:
    assert recall(view(well(1)), record(), BOOT).cards == (CardView(LOST, 0, missing_since=5.0), well(1))


def test_where_the_indices_have_shifted_it_gets_one_that_nobody_has() -> None:
    assert recall(view(well(0)), record(), BOOT).cards == (well(0), CardView(LOST, 1, missing_since=5.0))


@pytest.mark.parametrize(
    ("seen", "records"),
    [
        (view(well(0)), {}),
        (view(well(0)), {LOST: CardRecord(LOST)}),
        (view(CardView(LOST, 0), well(1)), record()),
        (view(asked_at=None), record()),
        (view(state=DriverState.FAILED), record()),
        (view(well(0)), record(index=None)),
    ],
    ids=["nothing remembered", "no quarantine", "listed", "not asked yet", "driver does not run", "index unknown"],
)
def test_nothing_is_made_up(seen: DriverView, records: dict[str, CardRecord]) -> None:
    assert recall(seen, records, BOOT) == seen
