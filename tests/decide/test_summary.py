"""The table of the words: colours, the health of the whole, and of every problem the next command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hasupervisor.decide.placement import LIST_LASTS
from hasupervisor.decide.summary import LONG, colour
from hasupervisor.model import Cause, Colour, GatewayView, Leaving, Pause, RuntimeView, Seen, State, StepKind, Wants
from tests.decide.facts import NOW, decided, gone, hung, instance, loading, probed, quiet, sick, silent, trafficked
from tests.decide.gpu_facts import name

G, Y, R = Colour.GREEN, Colour.YELLOW, Colour.RED
ONE, TWO = name(1), name(2)
CTL = "chatglm-hactl"


def unknown(number: int) -> Seen:
    return probed(instance(number), answered_at=NOW - 60.0)


@pytest.mark.parametrize(
    ("state", "drained", "expected"),
    [
        (State.SERVING, False, G),
        (State.STARTING, False, Y),
        (State.LOADING, False, Y),
        (State.SUSPECT, False, Y),
        (State.DRAINING, False, Y),
        (State.STOPPING, False, Y),
        (State.BACKOFF, False, R),
        (State.PARKED, False, R),
        (State.PARKED, True, Y),
    ],
)
def test_the_colour_of_a_state(state: State, drained: bool, expected: Colour) -> None:
    assert colour(state, drained=drained) is expected


HEALTH: dict[str, tuple[Sequence[Seen], int, Colour, str]] = {
    # instances, wanted
    "all serve": ([instance(1), instance(2)], 2, G, "2 of 2 serving"),
    "one of two loads": ([instance(1), loading(2, 5.0)], 2, Y, "1 of 2 serving"),
    "one of two is fenced": ([instance(1), hung(2)], 2, Y, "1 of 2 serving"),
    "nobody serves": ([loading(1, 5.0)], 1, R, "0 of 1 serving"),
    "one of two cannot be asked": ([instance(1), unknown(2)], 2, Y, "1 of 2 serving"),
    "nobody can be asked": ([unknown(1), unknown(2)], 2, Y, "0 of 2 serving"),
    "nobody is wanted": ([], 0, G, "0 of 0 serving"),
}


@pytest.mark.parametrize("case", HEALTH)
def test_the_health_of_the_whole_when(case: str) -> None:
    instances, wanted, health, summary = HEALTH[case]
    found = decided(instances, wants=Wants(wanted))
    assert (found.health, found.summary) == (health, summary)


PAUSED = Wants(2, pause=Pause("ann", 0.0))
STUCK = "cannot be ended: dockerd did not answer"
LEFT = Leaving(Cause.RESTART, "restarted by ann", NOW - LONG - 1.0)

HINTS: dict[str, tuple[Seen, dict[str, object], str | None]] = {
    # beside chatglm-02, which serves: the hint of the problem of chatglm-01
    "serves": (instance(1), {}, None),
    "loads": (loading(1, 5.0), {}, None),
    "is suspect": (silent(trafficked(instance(1), in_flight=1)), {}, f"{CTL} explain {ONE}"),
    "cannot be asked any more": (unknown(1), {}, f"{CTL} explain {ONE}"),
    "cannot be ended": (instance(1, stuck=STUCK), {}, f"{CTL} explain {ONE}"),
    "is drained by hand": (gone(1), {"wants": Wants(2, drained=frozenset({ONE}))}, f"{CTL} undrain {ONE}"),
    "backs off": (gone(1, failures=(NOW,), retry_at=NOW + 9.0), {}, f"{CTL} logs {ONE} --last-failure"),
    "is parked": (gone(1, parked_at=NOW), {}, f"{CTL} logs {ONE} --last-failure"),
    "is healed, and drains": (sick(1), {}, f"{CTL} explain {ONE}"),
    "is ill in a pause": (quiet(1), {"wants": PAUSED}, f"{CTL} resume"),
    "is to be started in a pause": (gone(1), {"wants": PAUSED}, f"{CTL} resume"),
    "leaves, and nginx does not let go of it": (instance(1, leaving=LEFT), {}, f"{CTL} nginx test"),
    "leaves since a moment ago": (instance(1, leaving=replace(LEFT, since=NOW - 1.0)), {}, None),
}


@pytest.mark.parametrize("case", HINTS)
def test_the_next_command_for_one_that(case: str) -> None:
    seen, changes, hint = HINTS[case]
    found = decided([seen, instance(2)], **changes)
    assert next((p.hint for p in found.problems if p.subject == ONE), None) == hint


def test_who_waits_long_for_a_place_is_a_problem_and_who_waits_for_a_moment_is_not() -> None:
    for waits, told in ((LONG + 1.0, True), (5.0, False)):
        found = decided([gone(1, waits_since=NOW - waits), instance(2), replace(gone(3), acting="start")])
        assert any(p.subject == ONE and p.hint == f"{CTL} explain {ONE}" for p in found.problems) is told


def test_what_troubles_the_host_is_told_with_its_next_command() -> None:
    runtime = RuntimeView(listed_at=NOW - 9.0, trouble="cannot reach dockerd", trouble_since=NOW - 9.0)
    found = decided([instance(1)], runtime=runtime, gateway=GatewayView(ok=False, reason="nginx says no"))
    assert [(p.subject, p.hint) for p in found.problems][:2] == [
        ("runtime", f"{CTL} history --since 10m"),
        ("nginx", f"{CTL} nginx test"),
    ]


def test_a_list_that_nobody_has_renewed_is_no_fact_and_is_told() -> None:
    found = decided([instance(1), gone(2)], runtime=RuntimeView(listed_at=NOW - LIST_LASTS - 1.0))
    assert found.steps == ()
    told = found.problems[0]
    assert told.subject == "runtime"
    assert told.sentence == "the list of instances is 61 s old; until the next one nothing is started or ended"
    assert told.hint == "systemctl restart chatglm-ha (instances are not touched)"


def test_the_next_list_ends_what_waits_for_it() -> None:
    found = decided([instance(1), gone(2)], runtime=RuntimeView(listed_at=NOW))
    assert [(step.kind, step.name) for step in found.steps] == [(StepKind.START, name(2))]


def test_a_common_cause_is_one_problem_of_the_service_and_says_what_is_done() -> None:
    found = decided([hung(n, 3.0) for n in (1, 2, 3)])
    problem = next(p for p in found.problems if p.subject == "service")
    assert problem.sentence.startswith("common cause: 3 of 3 instances turned bad within 10 s")
    assert problem.sentence.endswith("one at a time is restarted, to see whether it helps")


def test_what_is_in_flight_and_cannot_be_seen_is_said_so_and_is_no_zero() -> None:
    blind = trafficked(instance(1), in_flight_known=False)
    judged = decided([blind]).instances[0]
    assert judged.reason == "answers; what is in flight cannot be seen"
    assert "connections cannot be counted" in judged.explain
