"""The original rule to the letter: at, under and over each limit, 5 and 6, 11 and 12 samples; and its guards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hasupervisor.decide.autoscale.facts import Sample
from hasupervisor.decide.autoscale.thresholds import opinion
from tests.decide.scaling_facts import NOW, RULES, quiet, samples, situation, with_value


def desired(found: list[Sample], count: int = 2, **changes: Any) -> int:
    return opinion(found, situation(count, **changes), RULES, NOW).desired


@pytest.mark.parametrize(
    ("value", "limit"), [("response_time_ms", 5000.0), ("gpu_utilization", 85.0), ("connections", 50.0)]
)
def test_one_more_is_wanted_just_over_a_limit_and_not_at_it(value: str, limit: float) -> None:
    assert desired(samples(6, **{value: limit - 0.01})) == 2
    assert desired(samples(6, **{value: limit})) == 2
    assert desired(samples(6, **{value: limit + 0.01})) == 3


@pytest.mark.parametrize(
    ("value", "limit"), [("response_time_ms", 2000.0), ("gpu_utilization", 40.0), ("connections", 20.0)]
)
def test_one_less_is_wanted_just_under_all_limits_and_not_at_one(value: str, limit: float) -> None:
    three = {"desired": 3, "serving": 3}
    assert desired(quiet(12, **three, **{value: limit + 0.01}), 3) == 3
    assert desired(quiet(12, **three, **{value: limit}), 3) == 3
    assert desired(quiet(12, **three, **{value: limit - 0.01}), 3) == 2


def test_six_samples_are_enough_for_one_more_and_five_are_not() -> None:
    assert desired(samples(5, connections=90.0)) == 2
    assert desired(samples(6, connections=90.0)) == 3


def test_twelve_samples_are_enough_for_one_less_and_eleven_are_not() -> None:
    assert desired(quiet(11, desired=3, serving=3), 3) == 3
    assert desired(quiet(12, desired=3, serving=3), 3) == 2


def test_only_the_last_six_count_for_one_more() -> None:
    found = [*samples(6, now=NOW - 60, connections=500.0), *samples(6)]
    assert desired(found) == 2
    assert desired([*samples(6, now=NOW - 60), *samples(6, connections=51.0)]) == 3


def test_the_mean_counts_and_not_a_single_sample() -> None:
    assert desired(with_value(samples(6, connections=40.0), 2, connections=100.0)) == 2  # mean 50
    assert desired(with_value(samples(6, connections=40.0), 2, connections=101.0)) == 3


def test_it_never_goes_below_min_or_above_max() -> None:
    assert desired(quiet(12)) == 2
    full = opinion(samples(6, desired=6, serving=6, connections=90.0), situation(6), RULES, NOW)
    assert (full.desired, full.held_back_by) == (6, "service.max is 6")


def test_the_last_one_stays_even_where_min_is_none() -> None:
    found = quiet(12, desired=1, serving=1)
    assert opinion(found, situation(1), replace(RULES, min=0), NOW).desired == 1


def test_a_count_out_of_bounds_is_brought_back() -> None:
    assert desired([], 1) == 2
    assert desired([], 8) == 7


def test_the_sentence_names_the_input_that_decided() -> None:
    found = opinion(samples(6, response_time_ms=6200.0), situation(), RULES, NOW)
    assert found.sentence == "2 -> 3: 6200 ms response time over 60 s, above 5000"
    assert found.reason == "response_time_ms"
    assert found.inputs["response_time_ms_6"] == 6200.0


def test_stale_samples_decide_nothing() -> None:
    late = samples(12, now=NOW - 21, connections=90.0)
    found = opinion(late, situation(), RULES, NOW)
    assert (found.desired, found.sentence) == (
        2,
        "holding 2: the newest sample is 21 s old: stale ones decide nothing",
    )
    assert desired(quiet(12, desired=3, serving=3, now=NOW - 21), 3) == 3


def test_a_gap_between_samples_begins_the_window_anew() -> None:
    found = [*quiet(6, desired=3, serving=3, now=NOW - 80), *quiet(6, desired=3, serving=3)]
    assert desired(found, 3) == 3


@pytest.mark.parametrize("value", ["connections", "gpu_utilization"])
def test_a_missing_value_never_scales_down(value: str) -> None:
    found = with_value(quiet(12, desired=3, serving=3), 4, **{value: None})
    held = opinion(found, situation(3), RULES, NOW)
    assert held.desired == 3
    assert "missing ones never scale down" in held.sentence


def test_a_gpu_that_nobody_can_see_holds_nothing() -> None:
    assert desired(quiet(12, desired=3, serving=3, gpu_utilization=None), 3) == 2
    assert desired(samples(6, gpu_utilization=None, connections=51.0)) == 3


def test_the_sentence_says_that_gpu_use_was_not_known() -> None:
    seen, unseen = (quiet(12, desired=3, serving=3, gpu_utilization=value) for value in (10.0, None))
    known = "3 -> 2: 500 ms response time, {}1 connections an instance over 120 s, all below their limits{}"
    assert opinion(seen, situation(3), RULES, NOW).sentence == known.format("10 % GPU use, ", "")
    assert opinion(unseen, situation(3), RULES, NOW).sentence == known.format("", "; GPU use is not known")


def test_one_less_must_leave_the_gpus_below_their_limit_too() -> None:
    rules = replace(RULES, down_gpu_utilization=70.0)
    held = opinion(quiet(12, desired=3, serving=3, gpu_utilization=60.0), situation(3), rules, NOW)
    assert (held.desired, held.held_back_by) == (3, "2 would have 90 % GPU use, above 85")
    assert opinion(quiet(12, desired=3, serving=3, gpu_utilization=56.0), situation(3), rules, NOW).desired == 2


def test_no_answers_and_nothing_in_flight_is_idle() -> None:
    idle = {"response_time_ms": None, "connections": 0.0, "in_flight": 0.0, "qps": 0.0, "gpu_utilization": None}
    assert desired(quiet(12, desired=3, serving=3, **idle), 3) == 2


def test_work_in_flight_that_nothing_has_answered_is_not_idle() -> None:
    found = quiet(12, desired=3, serving=3, response_time_ms=None, gpu_utilization=None)
    assert desired(found, 3) == 3


def test_a_value_that_few_samples_know_does_not_scale_up() -> None:
    found = [replace(sample, response_time_ms=None) for sample in samples(6, response_time_ms=9000.0)]
    assert desired([*found[:4], *samples(2, response_time_ms=9000.0)]) == 2


def test_nothing_new_while_one_is_on_its_way_up() -> None:
    found = opinion(samples(6, connections=90.0), situation(starting=("chatglm-03",)), RULES, NOW)
    assert (found.desired, found.held_back_by) == (2, "chatglm-03 is still on its way up")


def test_samples_from_while_one_was_loading_do_not_count() -> None:
    found = with_value(samples(8, connections=90.0), 3, starting=1)
    assert desired(found) == 2


def test_samples_from_before_the_last_step_do_not_count() -> None:
    found = [*samples(10, now=NOW - 50, connections=90.0, desired=2), *samples(5, connections=90.0, desired=3)]
    assert desired(found, 3) == 3


def test_one_less_must_still_be_inside_the_limits() -> None:
    rules = replace(RULES, min=1, down_connections=49.0)
    found = quiet(12, connections=26.0, desired=2, serving=2)
    held = opinion(found, situation(2), rules, NOW)
    assert (held.desired, held.held_back_by) == (2, "1 would have 52 connections an instance, above 50")
    assert opinion(quiet(12, connections=25.0), situation(2), rules, NOW).desired == 1


def test_no_room_is_said_in_words() -> None:
    found = opinion(samples(6, connections=90.0), situation(room=0, no_room="no GPU has 13 GB free"), RULES, NOW)
    assert found.desired == 2
    assert found.sentence.endswith("but no GPU has 13 GB free")


def test_nothing_goes_while_another_one_is_ill_or_still_drains() -> None:
    found = quiet(12, desired=4, serving=4)
    assert desired(found, 4, ailing=("chatglm-02",)) == 4
    assert desired(found, 4, leaving=("chatglm-05",)) == 4
    assert desired(found, 4) == 3


def test_a_parked_one_is_no_capacity_and_goes_first() -> None:
    found = quiet(12, desired=3, serving=2, connections=19.0)
    assert desired(found, 3, serving=2, parked=("chatglm-03",)) == 2  # two go on serving: nothing to check
    up = samples(6, desired=3, serving=2, connections=60.0)
    assert desired(up, 3, serving=2, parked=("chatglm-03",)) == 4


def test_nothing_serving_is_for_healing() -> None:
    found = opinion(samples(12, serving=0, connections=None), situation(serving=0), RULES, NOW)
    assert found.desired == 2
    assert "nothing serves" in found.sentence


def test_samples_of_a_clock_that_was_set_back_decide_nothing() -> None:
    assert desired(samples(12, now=NOW + 500, connections=90.0)) == 2
    assert desired(quiet(12, now=NOW + 500, desired=3, serving=3), 3) == 3


def test_what_it_is_given_stays_as_it_was() -> None:
    found = samples(12, connections=90.0)
    before = list(found)
    opinion(found, situation(), RULES, NOW)
    assert found == before
