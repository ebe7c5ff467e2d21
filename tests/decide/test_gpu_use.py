"""GPU use is the mean of the cards on which somebody serves, and unknown as soon as one of them cannot tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hasupervisor.decide.autoscale.gpus import GpuUse, gpu_use
from hasupervisor.model.gpu import GB, CardJudged, CardRecord, CardState, CardView, GpuFact, Refusal

NOW = 1_000.0


def card(number: int, utilization: float | None, *names: str, seen_at: float = NOW, **view: Any) -> CardJudged:
    """24 GB, of which 1 is the driver's and 10 are used."""
    uuid = f"GPU-{number}"
    fact = GpuFact(uuid, number, "NVIDIA", "0000", seen_at, 24 * GB, 13 * GB, 1 * GB, utilization)
    return CardJudged(CardView(uuid, number, fact, **view), CardRecord(uuid), CardState.OK, instances=names)


FIRST, SECOND = card(0, 0.9, "chatglm-01"), card(1, 0.5, "chatglm-02", "chatglm-03")
ALL = {"chatglm-01", "chatglm-02", "chatglm-03"}


def test_it_is_the_mean_over_cards_and_not_over_instances() -> None:
    assert gpu_use((FIRST, SECOND), ALL, NOW) == GpuUse(pytest.approx(70.0), 20.0, 48.0)


def test_a_card_on_which_nobody_serves_yet_or_none_of_ours_is_does_not_count() -> None:
    others = card(2, 1.0)
    assert gpu_use((FIRST, SECOND, others), {"chatglm-03"}, NOW) == GpuUse(pytest.approx(50.0), 10.0, 24.0)
    assert gpu_use((FIRST, SECOND, others), set(), NOW) == GpuUse()
    assert gpu_use((), ALL, NOW) == GpuUse()


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(card(1, 0.5, "chatglm-02", seen_at=NOW - 10.1), id="stale"),
        pytest.param(card(1, 0.5, "chatglm-02", silent_since=NOW - 1), id="silent"),
        pytest.param(card(1, 0.5, "chatglm-02", missing_since=NOW - 1), id="missing"),
        pytest.param(card(1, 0.5, "chatglm-02", refusal=Refusal(15, "lost", NOW)), id="refused"),
        pytest.param(replace(SECOND, view=CardView("GPU-1", 1)), id="never seen"),
    ],
)
def test_where_one_card_cannot_tell_the_use_is_not_known(second: CardJudged) -> None:
    assert gpu_use((FIRST, second), ALL, NOW) == GpuUse()


def test_figures_of_ten_seconds_ago_count() -> None:
    assert gpu_use((card(0, 0.5, "chatglm-01", seen_at=NOW - 10.0),), ALL, NOW).utilization == 50.0


def test_a_card_that_has_no_such_figure_still_tells_its_memory() -> None:
    assert gpu_use((FIRST, card(1, None, "chatglm-02")), ALL, NOW) == GpuUse(None, 20.0, 48.0)
