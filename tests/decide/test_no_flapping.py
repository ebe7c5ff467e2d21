"""Neither policy goes to and fro: played over hours of random but even load, in virtual time."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasupervisor.decide.autoscale import lessons
from hasupervisor.decide.autoscale.facts import Lesson, Sample
from hasupervisor.decide.autoscale.judge import Judge
from hasupervisor.decide.autoscale.replay import Host, Row, Total, Traffic, recorded, replay
from tests.decide.scaling_facts import NOW, RULES, quiet, samples, situation

HOURS = 6  # played in about a second
POLICIES = ("thresholds", "concurrency")
QUICK = {"up_connections": 6.0, "down_connections": 3.0, "up_response_time_ms": 1500.0, "down_response_time_ms": 900.0}


def play(
    policy: str, trace: list[Traffic], seconds: float, host: Host, seed: int = 1, **rules: float
) -> tuple[list[Row], Total]:
    found = list(replay(trace, seconds, replace(RULES, policy=policy, **rules), host, random.Random(seed)))
    total = found[-1]
    assert isinstance(total, Total)
    return [row for row in found if isinstance(row, Row)], total


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=12)
@given(
    qps=st.floats(0.02, 40.0),
    work_s=st.floats(0.05, 10.0),
    slots=st.integers(1, 8),
    load_s=st.floats(1.0, 200.0),
    start=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
@example(qps=0.5, work_s=4.0, slots=1, load_s=1.0, start=2, seed=0)
@example(qps=0.1, work_s=8.0, slots=4, load_s=60.0, start=2, seed=3)
@example(qps=0.02, work_s=2.0, slots=1, load_s=1.0, start=2, seed=0)
def test_an_even_load_finds_no_count_too_few_twice(
    policy: str, qps: float, work_s: float, slots: int, load_s: float, start: int, seed: int
) -> None:
    """Each count may be tried; who was too few is not tried again for an hour, for two where that comes soon after."""
    rows, total = play(policy, [Traffic(0.0, qps, work_s)], HOURS * 3600.0, Host(start, slots, load_s), seed, **QUICK)
    too_few: dict[int, list[float]] = {}
    before = start
    for row in rows:
        if row.desired > before:
            too_few.setdefault(before, []).append(row.at)
        before = row.desired
    for times in too_few.values():
        gaps = [later - earlier for earlier, later in pairwise(times)]
        holds = 3600.0
        for gap in gaps:
            assert gap >= holds, f"tried again after {gaps} s"
            soon = gap < 2.0 * holds - 10.0  # a row is ten seconds
            holds = 2.0 * holds if soon else 3600.0
    assert total.turns <= 2 * sum(len(times) for times in too_few.values())


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=12)
@given(
    loads=st.lists(st.floats(0.0, 60.0), min_size=2, max_size=12),
    work_s=st.floats(0.05, 4.0),
    load_s=st.floats(1.0, 120.0),
    seed=st.integers(0, 1000),
)
def test_bounds_hold_and_thresholds_move_one_at_a_time(
    policy: str, loads: list[float], work_s: float, load_s: float, seed: int
) -> None:
    trace = [Traffic(120.0 * place, qps, work_s) for place, qps in enumerate(loads)]
    rows, _ = play(policy, trace, 120.0 * len(loads), Host(2, 4, load_s), seed, **QUICK)
    before = 2
    for row in rows:
        assert RULES.min <= row.desired <= RULES.max
        if row.step is not None and row.desired > before:
            assert row.step.startswith(f"{before} -> ")
        if policy == "thresholds":
            assert abs(row.desired - before) <= 1
        before = row.desired


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_load_needs_is_reached_and_given_back(policy: str) -> None:
    trace = [Traffic(0.0, 2.0, 0.5), Traffic(300.0, 24.0, 0.5), Traffic(1500.0, 1.0, 0.5)]
    rows, total = play(policy, trace, 6000.0, Host(2, 4, 20.0), **QUICK)
    assert max(row.serving for row in rows) >= 4  # 24/s of half a second: 12 slots at least, three instances
    assert rows[-1].serving == 2
    assert total.requests == pytest.approx(300 * 2 + 1200 * 24 + 4500 * 1, rel=0.05)


def test_idle_with_long_answers_ratchets_thresholds_and_not_concurrency() -> None:
    trace = [Traffic(0.0, 0.1, 8.0)]
    assert play("concurrency", trace, 7200.0, Host(2, 4, 60.0))[1].most == 2
    assert play("thresholds", trace, 7200.0, Host(2, 4, 60.0))[1].most == 6


def test_a_lesson_keeps_the_count_until_there_are_surely_fewer_requests() -> None:
    judge = Judge(RULES, NOW - 100)
    judge.remember(quiet(60, desired=3, serving=3, qps=10.0), NOW)
    judge.lessons = (Lesson(2, 14.0, NOW - 120),)
    held = judge.opinion(situation(3), NOW)
    assert held.desired == 3
    assert held.held_back_by == "2 were too few for 14 requests/s 2 min ago, up to 10.4 now"
    judge.lessons = (Lesson(2, 20.0, NOW - 120),)
    assert judge.opinion(situation(3), NOW).desired == 2
    judge.lessons = (Lesson(2, 14.0, NOW - 3601),)
    assert judge.opinion(situation(3), NOW).desired == 2


def test_a_lesson_is_not_outgrown_by_what_is_not_known() -> None:
    judge = Judge(RULES, NOW - 100)
    judge.remember(quiet(29, desired=3, serving=3, qps=0.1), NOW)
    judge.lessons = (Lesson(2, 50.0, NOW - 120),)
    held = judge.opinion(situation(3), NOW)
    assert held.held_back_by == "2 were too few for 50 requests/s 2 min ago, it is not known how many come now"


@pytest.mark.parametrize("policy", POLICIES)
def test_after_a_burst_the_load_before_it_gets_what_it_had(policy: str) -> None:
    trace = [Traffic(0.0, 2.0, 0.5), Traffic(900.0, 24.0, 0.5), Traffic(1300.0, 2.0, 0.5)]
    rows, _ = play(policy, trace, 1300.0 + 2400.0, Host(2, 4, 20.0), **QUICK)
    assert max(row.serving for row in rows) >= 3
    assert rows[-1].serving == 2, "what the burst has taught does not hold its hour"


def test_the_lowest_rate_is_that_of_a_burst_and_not_the_chance_of_a_few() -> None:
    calm, burst = quiet(60, qps=2.0), quiet(59, qps=2.0) + quiet(1, qps=20.0)
    assert lessons.lowest_rate(calm, 10.0) == pytest.approx(2.0 - 3 * math.sqrt(1200) / 600)
    assert lessons.lowest_rate(burst, 10.0) == pytest.approx(20.0 - 3 * math.sqrt(200) / 10)
    assert lessons.lowest_rate(quiet(12, qps=0.05), 10.0) == 0.0, "six requests are chance"
    assert lessons.lowest_rate(quiet(12, qps=None), 10.0) is None


def test_a_lesson_becomes_clearer_while_what_it_has_started_loads() -> None:
    taught = (Lesson(2, 1.0, NOW),)
    loading = situation(3, serving=2, starting=("number 3",), load_seconds=100.0)
    assert lessons.refined(taught, loading, lambda: 5.0, NOW + 150) == (Lesson(2, 5.0, NOW),)
    assert lessons.refined(taught, loading, lambda: 0.5, NOW + 150) == taught
    assert lessons.refined(taught, loading, lambda: 5.0, NOW + 201) == taught
    assert lessons.refined(taught, situation(3), lambda: 5.0, NOW + 10) == taught
    assert lessons.refined(taught, replace(loading, serving=1), lambda: 5.0, NOW + 10) == taught


def test_a_lesson_of_a_burst_becomes_clearer_by_what_more_of_them_carry() -> None:
    taught = (Lesson(2, 3.0, NOW - 25),)
    rush = samples(3, qps=24.0, serving=3, desired=3)
    (clear,) = lessons.hindsight(taught, rush, situation(3), 10.0, NOW)
    assert clear == Lesson(2, pytest.approx(16.0 - 3 * math.sqrt(320) / 20), NOW - 25), "two of three, in two samples"
    fresh = lessons.hindsight(taught, samples(3, qps=24.0), situation(2), 10.0, NOW)
    assert fresh == taught, "what two carry was not too much for two"
    (mixed,) = lessons.hindsight(taught, [*rush[:2], replace(rush[2], serving=2)], situation(2), 10.0, NOW)
    assert mixed == clear, "three carried it until one fell"
    assert lessons.hindsight(taught, rush, situation(3), 10.0, NOW + 36) == taught, "what comes later is another load"
    assert lessons.hindsight(taught, rush[:2], situation(3), 10.0, NOW)[0].qps > 10.0
    assert lessons.hindsight(taught, samples(3, qps=0.5, serving=3), situation(3), 10.0, NOW) == taught


@pytest.mark.parametrize("load_s", [1.0, 5.0, 8.0, 20.0])
def test_after_a_burst_that_was_answered_within_a_sample_the_count_goes_back_within_minutes(load_s: float) -> None:
    trace = [Traffic(0.0, 4.0, 0.5), Traffic(63.0, 24.0, 0.5), Traffic(363.0, 2.0, 0.5)]
    rows, _ = play("concurrency", trace, 363.0 + 1500.0, Host(2, 4, load_s), slots=4)
    assert max(row.serving for row in rows) >= 4
    assert rows[-1].serving == 2


def test_a_lesson_that_comes_again_holds_twice_as_long() -> None:
    once = lessons.with_one_more((), Lesson(2, 10.0, NOW))
    twice = lessons.with_one_more(once, Lesson(2, 11.0, NOW + 3700))
    other = lessons.with_one_more(twice, Lesson(3, 20.0, NOW + 3800))
    assert [(lesson.serving, lesson.holds) for lesson in other] == [(2, 7200.0), (3, 3600.0)]
    late = lessons.with_one_more(other, Lesson(2, 10.0, NOW + 100_000))
    assert next(lesson.holds for lesson in late if lesson.serving == 2) == 3600.0


def test_a_decision_is_made_when_it_is_due_and_teaches() -> None:
    judge = Judge(RULES, NOW - 31)
    judge.remember(samples(6, connections=90.0), NOW)
    opinion = judge.decide(situation(), NOW)
    assert opinion is not None
    assert opinion.desired == 3
    assert judge.lessons == (Lesson(2, pytest.approx(10.0 - 3 * math.sqrt(600) / 60), NOW),)
    assert judge.decide(situation(), NOW + 29) is None


def test_what_seems_to_come_from_the_future_is_not_remembered() -> None:
    judge = Judge(RULES, NOW)
    judge.remember(samples(6, now=NOW + 100), NOW, [Lesson(3, 9.0, NOW + 1), Lesson(2, 5.0, NOW - 1)])
    assert judge.samples == ()
    assert judge.lessons == (Lesson(2, 5.0, NOW - 1),)


def test_recorded_traffic_is_replayed_with_the_work_that_little_tells() -> None:
    found = [Sample(at=100.0 + 10 * n, serving=2, desired=2, in_flight=8.0, queued=2.0, qps=3.0) for n in range(3)]
    assert recorded(found) == (Traffic(0.0, 3.0, 2.0), Traffic(10.0, 3.0, 2.0), Traffic(20.0, 3.0, 2.0))
