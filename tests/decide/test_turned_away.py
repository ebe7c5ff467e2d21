"""Users who get no answer: an overload that neither the time of the answered nor the requests in flight show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hasupervisor.decide.autoscale.facts import Opinion, Rules, Sample
from hasupervisor.decide.autoscale.judge import Judge
from tests.decide.scaling_facts import NOW, RULES, looks, quiet, situation

POLICIES = ("thresholds", "concurrency")
CALM: dict[str, Any] = {"qps": 1.7, "response_time_ms": 1200.0, "in_flight": 4.0, "connections": 2.0}
"""A load that asks for nothing: 100 requests a minute, answered within 1.2 s."""


def of(policy: str, samples: list[Sample], count: int = 2, rules: Rules = RULES, **changes: Any) -> Opinion:
    judge = Judge(replace(rules, policy=policy), NOW - 1000.0)
    for sample in samples:
        judge.sampled(sample)
    for look in looks((400, 4.0), serving=count):
        judge.looked(look)
    return judge.opinion(situation(count, **changes), NOW)


@pytest.mark.parametrize("policy", POLICIES)
def test_when_most_give_up_one_more_is_wanted_though_the_answered_are_answered_quickly(policy: str) -> None:
    assert of(policy, quiet(12, **CALM, turned_away=0.0)).desired == 2
    found = of(policy, quiet(12, **CALM, turned_away=0.9 * 1.7))
    assert (found.desired, found.reason) == (3, "turned_away")
    assert "90 % of the requests turned away" in found.sentence


@pytest.mark.parametrize("policy", POLICIES)
def test_at_the_limit_is_not_above_it_and_a_few_mean_nothing(policy: str) -> None:
    assert of(policy, quiet(12, **CALM, turned_away=0.17)).desired == 2, "10 % of 1.7"
    assert of(policy, quiet(12, **CALM, turned_away=0.18)).desired == 3
    rare = {**CALM, "qps": 0.1}
    assert of(policy, quiet(12, **rare, turned_away=0.06)).desired == 2, "3.6 of 6 in a minute"
    assert of(policy, quiet(12, **CALM, turned_away=0.9 * 1.7), rules=replace(RULES, up_turned_away=95.0)).desired == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_set_before_turned_away_does_not_ask_for_one_more_again(policy: str) -> None:
    before = quiet(20, now=NOW - 50.0, **CALM, turned_away=1.5)
    since = quiet(5, **CALM, turned_away=0.0, desired=3, serving=3)
    found = of(policy, [*before, *since], 3)
    assert found.desired <= 3
    assert found.reason != "turned_away"


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_goes_while_some_are_turned_away(policy: str) -> None:
    few = {**CALM, "qps": 10.0, "in_flight": 0.5, "connections": 0.2}
    rules = replace(RULES, min=1)

    def opinion(away: float) -> Opinion:
        judge = Judge(replace(rules, policy=policy), NOW - 1000.0)
        for sample in quiet(12, **few, turned_away=away, desired=3, serving=3):
            judge.sampled(sample)
        for look in looks((420, 0.5), serving=3):
            judge.looked(look)
        return judge.opinion(situation(3), NOW)

    assert opinion(0.4).desired == 2
    held = opinion(0.6)
    assert held.desired == 3
    assert "6 % of the requests turned away, not below 5" in held.sentence


@pytest.mark.parametrize("policy", POLICIES)
def test_where_it_is_not_known_the_other_inputs_decide(policy: str) -> None:
    assert of(policy, quiet(12, **CALM)).desired == 2
    blind = [*quiet(6, **CALM, turned_away=1.5, now=NOW - 60.0), *quiet(6, **CALM)]
    assert of(policy, blind).desired == 2
