"""Neither policy goes to and fro: played over hours of random but even load, in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasupervisor.decide.autoscale.facts import Lesson, Sample
from hasupervisor.decide.autoscale.guards import with_lesson
from hasupervisor.decide.autoscale.judge import Judge
from hasupervisor.decide.autoscale.replay import Host, Row, Total, Traffic, recorded, replay
from tests.decide.scaling_facts import NOW, RULES, quiet, samples, situation

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
    qps=st.floats(0.2, 40.0),
    work_s=st.floats(0.05, 6.0),
    slots=st.integers(1, 8),
    load_s=st.floats(1.0, 200.0),
    start=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_an_even_load_makes_the_count_turn_once_at_most(
    policy: str, qps: float, work_s: float, slots: int, load_s: float, start: int, seed: int
) -> None:
    """Once: it may have grown for a queue that is gone later. Within the hour for which a lesson holds."""
    host = Host(start=start, slots=slots, load_s=load_s)
    _, total = play(policy, [Traffic(0.0, qps, work_s)], 3600.0, host, seed, **QUICK)
    assert total.turns <= 1


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


def test_a_lesson_keeps_the_count_until_there_are_fewer_requests() -> None:
    found = quiet(12, desired=3, serving=3, qps=10.0)
    judge = Judge(RULES, NOW - 100)
    judge.remember(found, NOW)
    judge.lessons = (Lesson(2, 11.0, NOW - 120),)
    held = judge.opinion(situation(3), NOW)
    assert held.desired == 3
    assert held.held_back_by == "2 were too few for 11.0 requests/s 2 min ago, it is 10.0 now"
    judge.lessons = (Lesson(2, 20.0, NOW - 120),)
    assert judge.opinion(situation(3), NOW).desired == 2
    judge.lessons = (Lesson(2, 11.0, NOW - 3601),)
    assert judge.opinion(situation(3), NOW).desired == 2


def test_a_lesson_that_comes_again_holds_twice_as_long() -> None:
    once = with_lesson((), Lesson(2, 10.0, NOW))
    twice = with_lesson(once, Lesson(2, 11.0, NOW + 3700))
    other = with_lesson(twice, Lesson(3, 20.0, NOW + 3800))
    assert [(lesson.serving, lesson.holds) for lesson in other] == [(2, 7200.0), (3, 3600.0)]
    late = with_lesson(other, Lesson(2, 10.0, NOW + 100_000))
    assert next(lesson.holds for lesson in late if lesson.serving == 2) == 3600.0


def test_a_decision_is_made_when_it_is_due_and_teaches() -> None:
    judge = Judge(RULES, NOW - 31)
    judge.remember(samples(6, connections=90.0), NOW)
    opinion = judge.decide(situation(), NOW)
    assert opinion is not None
    assert opinion.desired == 3
    assert judge.lessons == (Lesson(2, 10.0, NOW),)
    assert judge.decide(situation(), NOW + 29) is None


def test_what_seems_to_come_from_the_future_is_not_remembered() -> None:
    judge = Judge(RULES, NOW)
    judge.remember(samples(6, now=NOW + 100), NOW)
    assert judge.samples == ()


def test_recorded_traffic_is_replayed_with_the_work_that_little_tells() -> None:
    found = [Sample(at=100.0 + 10 * n, serving=2, desired=2, in_flight=8.0, queued=2.0, qps=3.0) for n in range(3)]
    assert recorded(found) == (Traffic(0.0, 3.0, 2.0), Traffic(10.0, 3.0, 2.0), Traffic(20.0, 3.0, 2.0))
