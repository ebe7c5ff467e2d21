"""The table of the brakes (docs/brakes.md): who is held, by what, for how long; and that no hold is without an end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasupervisor.decide import brakes
from hasupervisor.decide.brakes import HOLD, HUNG_HOLD
from hasupervisor.decide.health import judge
from hasupervisor.decide.plan import plan
from hasupervisor.model import Miss, Outcome, Pause, Plan, Seen, StepKind, Wants, World
from tests.decide.facts import (
    NOW,
    POLICY,
    decided,
    gone,
    hung,
    instance,
    later,
    loading,
    one,
    probed,
    quiet,
    sick,
    silent,
    steps,
    trafficked,
    working,
    world_of,
)
from tests.decide.gpu_facts import name

FIRST, SECOND, THIRD = name(1), name(2), name(3)
KILL, STOP = StepKind.KILL, StepKind.STOP

TWICE_THE_LOAD = 40.0


def out(seconds: float) -> dict[str, object]:
    """A record of one that healing has ended so many seconds ago, and that does not serve again yet."""
    return {"disturbed_at": NOW - seconds, "bad_since": NOW - seconds - 10.0, "failures": (NOW - seconds,)}


Case = tuple[Sequence[Seen], str | None]
"""The instances, of which the last is looked at; and the beginning of what holds it, None: it is ended."""

TABLE: dict[str, Case] = {
    # one of several
    "one of two hangs": ([instance(1), hung(2)], None),
    "one of two is sick": ([instance(1), sick(2)], None),
    "one of two is silent": ([instance(1), quiet(2)], None),
    "the only one hangs": ([hung(1)], None),
    "the only one is sick": ([sick(1)], None),
    # nobody is heard: it may be us
    "two hang, the other long ago": ([hung(1, 90.0), hung(2, 3.0)], "waits for another instance's answer"),
    "the same for HUNG_HOLD": ([hung(1, 90.0), hung(2, HUNG_HOLD + 0.1)], None),
    "two are silent, the other long ago": ([quiet(1, 90.0), quiet(2, 20.0)], "waits for another instance's answer"),
    "the same for HOLD": ([quiet(1, 90.0), quiet(2, HOLD + 0.1)], "waits until chatglm-01 serves again"),
    # many at once: one cause outside them
    "three hang together": ([hung(1, 3.0), hung(2, 3.0), hung(3, 3.0)], "3 of 3 instances turned bad"),
    "three hang together for HUNG_HOLD": ([hung(n, 6.0) for n in (1, 2, 3)], "common cause: chatglm-01 is restarted"),
    "three are silent together": ([quiet(n, 20.0) for n in (1, 2, 3)], "3 of 3 instances turned bad"),
    "three are silent together for HOLD": ([quiet(n, 31.0) for n in (1, 2, 3)], "common cause: chatglm-01 is"),
    # a trial: it is under way
    "the tried one loads": ([loading(1, 5.0, **out(6.0)), hung(2), hung(3)], "common cause: chatglm-01 is restarted"),
    "the same, who waits is silent": (
        [loading(1, 5.0, **out(35.0)), quiet(2, 40.0), quiet(3, 40.0)],
        "common cause: c",
    ),
    # a trial: it is over, and the next has its turn
    "the tried one is parked": ([gone(1, **out(35.0), parked_at=NOW - 1.0), hung(2, 40.0)], None),
    "the tried one waits for a place": (
        [gone(1, **out(35.0), waits_since=NOW - 1.0), loading(2, 5.0), hung(3, 40.0)],
        None,
    ),
    "the tried one has failed again": (
        [gone(1, **{**out(35.0), "failures": (NOW - 35.0, NOW - 30.0)}, retry_at=NOW + 9.0), hung(2, 40.0)],
        None,
    ),
    "the tried one is not back in twice the usual load": (
        [loading(1, 5.0, **out(TWICE_THE_LOAD + 1.0)), hung(2, 45.0)],
        None,
    ),
    "the tried one is not back, who waits may serve": (
        [loading(1, 5.0, **out(TWICE_THE_LOAD + 1.0)), quiet(2, 45.0)],
        "common cause: chatglm-01 is restarted first",
    ),
    "the tried one is not back in start_timeout": (
        [loading(1, 5.0, **out(POLICY.start_timeout + 1.0)), quiet(2, POLICY.start_timeout + 20.0)],
        None,
    ),
    # one at a time protects whoever may serve, and nobody else
    "another is restarted, this one hangs": ([loading(1, 5.0, **out(6.0)), hung(2, 90.0)], None),
    "another is restarted, this one is sick": ([loading(1, 5.0, **out(90.0)), sick(2)], None),
    "another is restarted, this one is sick and answers users": (
        [loading(1, 5.0, **out(6.0)), trafficked(sick(2), completed_at=NOW - 1.0)],
        "waits until chatglm-01 serves again",
    ),
    "another is restarted, this one is silent": (
        [loading(1, 5.0, **out(6.0)), quiet(2, 90.0)],
        "waits until chatglm-01 serves again",
    ),
    "another has failed again, this one is silent": (
        [gone(1, **{**out(35.0), "failures": (NOW - 35.0, NOW - 30.0)}, retry_at=NOW + 9.0), quiet(2, 90.0)],
        None,
    ),
    # never proven: it serves nobody
    "a loader is over its time while another is restarted": (
        [gone(1, **out(6.0)), loading(2, POLICY.start_timeout + 1.0)],
        None,
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_healing_when(case: str) -> None:
    instances, expected = TABLE[case]
    judged = one(decided(instances), len(instances))
    held = re.search(r"left alone: (.*)", judged.reason)
    if expected is None:
        assert held is None, judged.reason
        assert judged.record.disturbed_at == NOW or judged.record.leaving is not None
    else:
        assert held is not None, judged.reason
        assert held.group(1).startswith(expected)


def test_of_three_that_hang_together_one_is_ended_and_no_other() -> None:
    assert steps(decided([hung(n, 6.0) for n in (1, 2, 3)])) == {FIRST: KILL}


def test_who_is_proven_to_hang_leaves_the_rotation_while_a_brake_holds_it_and_who_may_serve_stays() -> None:
    assert decided([hung(n, 3.0) for n in (1, 2, 3)]).routing.routes == ()
    assert len(decided([quiet(n, 20.0) for n in (1, 2, 3)]).routing.routes) == 3


def test_no_request_is_to_blame_for_instances_that_fell_ill_together() -> None:
    found = decided([hung(n, 3.0) for n in (1, 2, 3)])
    assert {address.port for address in found.blameless} == {8001, 8002, 8003}
    assert decided([instance(1), hung(2)]).blameless == frozenset()


def test_one_that_cannot_be_asked_is_not_heard_so_that_a_common_cause_of_the_others_keeps_them_routed() -> None:
    unasked = probed(instance(1), answered_at=NOW - 60.0, ended_at=NOW - 60.0)
    busy = silent(working(instance(2), moved=0.5), 5.0, miss=Miss.ERROR_STATUS)
    wrong = [probed(quiet(n, 5.0), miss=Miss.ERROR_STATUS) for n in (3, 4)]
    after = decided([unasked, busy, *wrong])
    assert {route.name for route in after.routing.routes} == {name(n) for n in (1, 2, 3, 4)}


def test_without_a_load_that_was_seen_the_patience_is_start_timeout() -> None:
    never = [instance(n, load_s=None) for n in (1, 2)]
    assert brakes.patience([(seen, judge(seen, POLICY, NOW)) for seen in never], POLICY) == POLICY.start_timeout


# --- every hold ends, or a person has been told what ends it ----------------------------------------------------------

SHORT = replace(POLICY, start_timeout=60.0, stop_grace=5.0, drain_timeout=10.0, hang_after=10.0, park_retry=0.0)
CYCLE = 3.0
BOUNDS = {  # seconds for which each reason may hold one instance, by how it begins
    r"\d+ of \d+ instances turned bad": HOLD,
    r"waits for another instance's answer": HOLD,
    r"common cause: chatglm-\d+ is restarted first": SHORT.start_timeout,
    r"waits until chatglm-\d+ serves again": SHORT.start_timeout,
}
TOLD = {r"waits: paused by": "chatglm-hactl resume"}
ILL = {"hangs": hung, "is sick": sick, "is silent": quiet, "serves": lambda number, _=0.0: instance(number)}


@dataclass(frozen=True)
class Fate:
    """What is the matter with one instance, and what becomes of every new life of it."""

    ill: str
    since: float
    next_life: str  # "serves" | "loads for ever" | "cannot start"


fates = st.builds(
    Fate,
    ill=st.sampled_from(sorted(ILL)),
    since=st.sampled_from([3.0, 8.0, 40.0]),
    next_life=st.sampled_from(["serves", "loads for ever", "cannot start"]),
)


def _made(number: int, fate: Fate) -> Seen:
    return sick(number) if fate.ill == "is sick" else ILL[fate.ill](number, fate.since)  # type: ignore[operator]


def _after(found: Plan, before: World, fate_of: Mapping[str, Fate]) -> World:
    """What the steps of this cycle have done by the next one."""
    changed = {}
    for step in found.steps:
        number = int(step.name[-2:])
        at = before.now + 0.01
        outcome = Outcome(step.name, step.kind, ok=True, at=at)
        if step.kind is StepKind.START and fate_of[step.name].next_life == "cannot start":
            outcome = replace(outcome, ok=False, error="exited 3")
        elif step.kind is StepKind.START:
            new = instance(number) if fate_of[step.name].next_life == "serves" else loading(number, 0.0)
            assert new.fact is not None
            assert new.probe is not None
            life = f"{step.name}#{at}"
            new_fact = replace(new.fact, runtime_id=life, started_at=at)
            probe = replace(new.probe, runtime_id=life, answered_at=at, ended_at=at, asked_at=at)
            changed[step.name] = (Seen(new.record, new_fact, probe), outcome)
            continue
        changed[step.name] = (Seen(gone(number).record), outcome)
    world = later(before, found, CYCLE, [seen for seen, _ in changed.values()])
    instances = tuple(
        replace(s, outcomes=(changed[s.record.name][1],)) if s.record.name in changed else s for s in world.instances
    )
    live = frozenset(s.fact.address for s in instances if s.fact is not None and s.record.in_rotation)
    return replace(world, instances=instances, gateway=replace(world.gateway, live=live))


ENDLESS = Fate("hangs", 3.0, "loads for ever")


@settings(max_examples=25, deadline=None)
@example(chosen=[ENDLESS, ENDLESS, Fate("is silent", 3.0, "serves")], paused=False)
@given(chosen=st.lists(fates, min_size=1, max_size=4), paused=st.booleans())
def test_whatever_holds_one_that_could_be_healed_ends_or_a_person_has_been_told_which_command_ends_it(
    chosen: list[Fate], *, paused: bool
) -> None:
    fate_of = {name(n): fate for n, fate in enumerate(chosen, 1)}
    wants = Wants(len(chosen), pause=Pause("ann", 0.0) if paused else None)
    world = world_of([_made(n, fate) for n, fate in enumerate(chosen, 1)], SHORT, wants=wants)
    since: dict[tuple[str, str], float] = {}
    ended: set[str] = set()
    seconds = HOLD + (len(chosen) + 1) * (SHORT.start_timeout + SHORT.drain_timeout)
    for _ in range(int(seconds / CYCLE)):
        found = plan(world)
        ended |= {step.name for step in found.steps if step.kind in (KILL, STOP)}
        holds = {(j.record.name, r) for j in found.instances if (r := _held(j.reason)) is not None}
        since = {hold: since.get(hold, world.now) for hold in holds}
        for who, reason in holds:
            command = next((told for words, told in TOLD.items() if re.match(words, reason)), None)
            if command is not None:
                assert any(p.subject == who and p.hint == command for p in found.problems), found.problems
                continue
            bound = next((limit for words, limit in BOUNDS.items() if re.match(words, reason)), None)
            assert bound is not None, f"{reason!r} has no bound and nobody was told what ends it"
            held_s = world.now - since[who, reason]
            assert held_s <= bound + CYCLE, f"{who} is held for {held_s} s: {reason}"
        world = _after(found, world, fate_of)
    if not paused:
        assert ended >= {who for who, fate in fate_of.items() if fate.ill != "serves"}


def _held(reason: str) -> str | None:
    """What holds it, without the figures that change every second."""
    found = re.search(r"left alone: (.*)", reason)
    return re.sub(r"[\d.]+ s\b", "N s", found.group(1)) if found is not None else None


def test_one_that_is_healed_again_before_it_has_served_keeps_nobody_waiting_anew() -> None:
    healed_again = one(decided([loading(1, POLICY.start_timeout + 1.0, **out(400.0)), quiet(2, 390.0)]), 1)
    assert healed_again.record.leaving is not None
    assert healed_again.record.disturbed_at == NOW - 400.0
