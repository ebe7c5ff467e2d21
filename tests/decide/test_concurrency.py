"""Little's law with windows: quick up in a burst, slow down, and nothing decided from what is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hasupervisor.decide.autoscale.capacity import Slots, knee_of, slots
from hasupervisor.decide.autoscale.concurrency import opinion
from hasupervisor.decide.autoscale.facts import Load, Opinion
from tests.decide.scaling_facts import NOW, RULES, looks, samples, situation

FOUR = Slots(4, "configured")  # 2.8 planned for each


def of(found: list[Load], count: int = 2, **changes: Any) -> Opinion:
    return opinion(found, situation(count, **changes), RULES, FOUR, NOW)


def test_as_many_are_wanted_as_the_requests_in_flight_need() -> None:
    assert of(looks((120, 7.0))).desired == 3
    assert of(looks((120, 11.0))).desired == 4
    assert of(looks((120, 14.0))).desired == 5


def test_up_has_a_margin_of_a_tenth() -> None:
    assert of(looks((120, 6.16))).desired == 2  # 2.2 instances' worth: 1.1 times two
    assert of(looks((120, 6.17))).desired == 3


def test_a_burst_is_seen_within_ten_seconds_and_is_urgent() -> None:
    found = of(looks((120, 3.0), (6, 18.0)))
    assert found.desired > 2
    assert found.urgent
    assert "a burst" in found.sentence


def test_a_single_second_is_no_burst() -> None:
    assert of(looks((120, 3.0), (1, 18.0))).desired == 2


def test_nothing_shrinks_within_a_minute_of_a_burst() -> None:
    rules = replace(RULES, min=1)
    found = opinion(looks((400, 1.0), (10, 15.0), (30, 0.0)), situation(2), rules, FOUR, NOW)
    assert found.desired == 2


def test_one_less_only_after_five_quiet_minutes() -> None:
    assert of(looks((120, 8.0), (290, 1.0), serving=3), 3).desired == 3
    assert of(looks((120, 8.0), (420, 1.0), serving=3), 3).desired == 2


def test_five_minutes_become_three_starts_where_these_take_longer() -> None:
    assert of(looks((120, 8.0), (420, 1.0), serving=3), 3, load_seconds=200.0).desired == 3
    assert of(looks((120, 8.0), (700, 1.0), serving=3), 3, load_seconds=200.0).desired == 2


def test_the_peak_of_the_last_minute_must_fit_into_one_less() -> None:
    held = of(looks((400, 1.0), (2, 6.0), (30, 1.0), serving=3), 3)
    assert held.desired == 3
    assert held.held_back_by == "2 would be full: up to 6 were in flight within a minute"


def test_without_five_minutes_of_looks_nothing_goes() -> None:
    held = of(looks((200, 0.0), serving=3), 3)
    assert (held.desired, held.held_back_by) == (3, "it looks back over 300 s and has 199 s")


def test_a_gap_in_the_looks_lets_nothing_go() -> None:
    found = looks((400, 0.0), serving=3)
    with_gap = [load for load in found if not NOW - 150 < load.at < NOW - 100]
    assert of(with_gap, 3).desired == 3
    assert of(found, 3).desired == 2


def test_unknown_or_stale_loads_decide_nothing() -> None:
    assert of([]).desired == 2
    assert of(looks((120, 30.0), (11, None))).desired == 2
    assert of(looks((120, 30.0), now=NOW - 11)).desired == 2
    assert of(looks((120, 30.0), now=NOW + 500)).desired == 2


def test_nothing_new_while_one_is_on_its_way_up() -> None:
    held = of(looks((120, 14.0)), 3, serving=2, starting=("chatglm-03",))
    assert (held.desired, held.held_back_by) == (3, "chatglm-03 is still on its way up")


def test_a_parked_one_is_no_capacity() -> None:
    assert of(looks((120, 7.0)), 3, serving=2, parked=("chatglm-03",)).desired == 4


def test_max_is_said_in_the_sentence() -> None:
    found = of(looks((120, 60.0)))
    assert found.desired == 6
    assert found.sentence.endswith("22 would be wanted, service.max is 6")


def test_a_step_of_several_is_cut_to_the_room_there_is() -> None:
    found = of(looks((120, 14.0)), room=1)
    assert found.desired == 3
    assert found.sentence.endswith("; 5 would be wanted, there is room for 1 more")
    assert of(looks((120, 14.0)), room=3).desired == 5
    full = of(looks((120, 14.0)), room=0, no_room="no GPU has 13.0 GB for it")
    assert (full.desired, full.held_back_by) == (2, "no GPU has 13.0 GB for it")


def test_queueing_requests_ask_for_one_more() -> None:
    waiting = [replace(load, wait_s=6.0) for load in looks((120, 5.0))]
    assert of(waiting).desired == 3
    assert of([replace(load, wait_s=5.0) for load in waiting]).desired == 2


def test_idle_with_long_answers_stays_at_min() -> None:
    assert of(looks((3600, 0.8))).desired == 2


@pytest.mark.parametrize(("count", "target"), [(1, 1.0), (4, 2.8), (8, 5.6)])
def test_the_target_is_seven_tenths_of_what_one_carries(count: float, target: float) -> None:
    assert Slots(count, "configured").target == pytest.approx(target)


def test_slots_are_configured_or_told_or_learned_or_assumed() -> None:
    assert slots(4, 6, []) == Slots(4, "configured")
    assert slots(0, 6, []) == Slots(6, "told by the instances")
    assert slots(0, None, []).how == "assumed"
    assert slots(0, None, _knee_at(5)) == Slots(5, "learned from latency")


def test_a_knee_that_has_not_been_passed_is_not_learned() -> None:
    assert knee_of([s for s in _knee_at(5) if (s.connections or 0) <= 5]) is None


def _knee_at(carried: int) -> list[Any]:
    """Latency of half a second up to so many in flight, then in proportion."""
    return [
        sample
        for load in range(1, 12)
        for sample in samples(4, connections=float(load), response_time_ms=500.0 * max(1.0, load / carried))
    ]
