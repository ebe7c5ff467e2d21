"""The table of repair: from verdict and record to the next step; how long one on its way out may finish its work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.repair import MET_AT_ONCE, REMOVAL, advance
from hasupervisor.model import Cause, Leaving, Phase, Progress, Seen, State, StepKind, Verdict, VerdictKind
from tests.decide.facts import (
    NOW,
    POLICY,
    decided,
    gate,
    gone,
    in_phase,
    instance,
    later,
    loading,
    one,
    probed,
    sick,
    steps,
    trafficked,
    working,
    world_of,
)
from tests.decide.gpu_facts import name

V, FIRST = VerdictKind, name(1)
START, STOP, KILL, CLEAR = StepKind.START, StepKind.STOP, StepKind.KILL, StepKind.CLEAR


def verdict(kind: VerdictKind, since: float | None = None) -> Verdict:
    return Verdict(kind, "why", since)


Expected = tuple[State, StepKind | None, bool]
"""The state, the step, and whether it is in rotation."""

LIVING: dict[str, tuple[Seen, Verdict, dict[str, object], Expected]] = {
    "serves": (instance(), verdict(V.SERVING), {"routed": True}, (State.SERVING, None, True)),
    "serves and nginx does not send requests yet": (instance(), verdict(V.SERVING), {}, (State.SUSPECT, None, True)),
    "has just loaded": (loading(1, 5.0), verdict(V.SERVING), {}, (State.LOADING, None, True)),
    "is busy and in rotation": (instance(), verdict(V.BUSY), {"routed": True}, (State.SERVING, None, True)),
    "is busy and was out": (instance(in_rotation=False), verdict(V.BUSY), {}, (State.SUSPECT, None, False)),
    "loads": (loading(1, 5.0), verdict(V.LOADING), {}, (State.LOADING, None, False)),
    "is suspect": (instance(), verdict(V.SUSPECT), {}, (State.SUSPECT, None, False)),
    "is suspect and the last": (instance(), verdict(V.SUSPECT), {"keep_routed": True}, (State.SUSPECT, None, True)),
    "hangs": (instance(), verdict(V.HUNG), {}, (State.STOPPING, KILL, False)),
    "hangs and is held": (
        instance(),
        verdict(V.HUNG),
        {"no_disturbance": "held", "keep_routed": True},
        (State.SUSPECT, None, False),
    ),
    "is sick": (sick(1), verdict(V.SICK), {}, (State.DRAINING, None, False)),
    "is sick and held": (sick(1), verdict(V.SICK), {"no_disturbance": "held"}, (State.SUSPECT, None, False)),
    "is sick in a pause": (sick(1), verdict(V.SICK), {"paused": "paused by ann"}, (State.SUSPECT, None, False)),
    "is dead on its feet": (instance(), verdict(V.DEAD), {}, (State.DRAINING, None, False)),
    "was not asked yet": (instance(), verdict(V.UNKNOWN), {}, (State.SERVING, None, True)),
    "cannot be asked any more": (instance(), verdict(V.UNKNOWN, NOW - 60.0), {}, (State.SUSPECT, None, True)),
    "cannot be asked, and loaded": (loading(1, 5.0), verdict(V.UNKNOWN, NOW - 60.0), {}, (State.SUSPECT, None, False)),
    "is being removed": (in_phase(instance(), Phase.REMOVING), verdict(V.DEAD), {}, (State.STOPPING, None, False)),
    "has been in removal for long": (
        in_phase(instance(state=State.STOPPING, since=NOW - REMOVAL - 1.0), Phase.REMOVING),
        verdict(V.DEAD),
        {},
        (State.PARKED, None, False),
    ),
}

ENDED: dict[str, tuple[Seen, dict[str, object], Expected]] = {
    "has exited": (in_phase(instance(), Phase.EXITED, exit_code=1), {}, (State.BACKOFF, CLEAR, False)),
    "was removed by somebody else": (Seen(instance().record), {}, (State.STARTING, START, False)),
    "is gone and due": (gone(1), {}, (State.STARTING, START, False)),
    "backs off": (gone(1, failures=(NOW,), retry_at=NOW + 4.0), {}, (State.BACKOFF, None, False)),
    "is due again": (gone(1, failures=(NOW - 9.0,), retry_at=NOW - 1.0), {}, (State.STARTING, START, False)),
    "is parked": (gone(1, parked_at=NOW - 5.0), {}, (State.PARKED, None, False)),
    "was parked for park_retry": (gone(1, parked_at=NOW - 1801.0), {}, (State.STARTING, START, False)),
    "is drained by hand": (gone(1), {"drained": True}, (State.PARKED, None, False)),
    "is due in a pause": (gone(1), {"paused": "paused by ann"}, (State.STARTING, None, False)),
    "is due and has no place": (gone(1), {"no_start": "waits"}, (State.STARTING, None, False)),
    "is due and nobody can be asked": (gone(1), {"asleep": "waits"}, (State.STARTING, None, False)),
    "cannot be ended": (instance(stuck="cannot be ended"), {}, (State.PARKED, None, False)),
}


@pytest.mark.parametrize("case", LIVING)
def test_a_living_one_that(case: str) -> None:
    seen, judged, allowed, expected = LIVING[case]
    turn = advance(seen, judged, gate(**allowed))
    assert (turn.state, turn.step.kind if turn.step else None, turn.record.in_rotation) == expected, turn.reason
    assert turn.reason


@pytest.mark.parametrize("case", ENDED)
def test_one_without_a_process_that(case: str) -> None:
    seen, allowed, expected = ENDED[case]
    turn = advance(seen, verdict(V.DEAD), gate(**allowed))
    assert (turn.state, turn.step.kind if turn.step else None, turn.record.in_rotation) == expected, turn.reason


def test_a_wait_for_a_place_is_remembered_from_its_beginning_until_the_start() -> None:
    waits = advance(gone(1), verdict(V.DEAD), gate(no_start="waits until chatglm-02 has loaded")).record
    assert waits.waits_since == NOW
    still = advance(replace(gone(1), record=waits), verdict(V.DEAD), gate(now=NOW + 9.0, no_start="waits")).record
    assert still.waits_since == NOW
    assert advance(replace(gone(1), record=still), verdict(V.DEAD), gate(now=NOW + 10.0)).record.waits_since is None


@pytest.mark.parametrize(("met_s", "timed"), [(1.0, 30.0), (MET_AT_ONCE + 1.0, None)])
def test_a_load_is_timed_where_its_start_was_seen(met_s: float, timed: float | None) -> None:
    new = loading(1, 30.0, load_s=None)
    new = replace(new, record=replace(new.record, met_at=NOW - 30.0 + met_s))
    assert advance(new, verdict(V.SERVING), gate()).record.load_s == timed


# --- on its way out ---------------------------------------------------------------------------------------------------

DRAIN, HANG = POLICY.drain_timeout, POLICY.hang_after
BYTES = {"in_flight": 1, "bytes_at": NOW}
STILL = {"in_flight": 1, "bytes_at": None}


def leaves(cause: Cause, waited: float, *, patient: bool = False, **traffic: object) -> Seen:
    leaving = Leaving(cause, "why it goes", NOW - waited, unrouted_since=NOW - waited, patient=patient)
    return trafficked(instance(leaving=leaving, in_rotation=False), **traffic)


DRAINS: dict[str, tuple[Seen, VerdictKind, StepKind | None]] = {
    "for a person, work in it": (leaves(Cause.RESTART, DRAIN - 1.0, **BYTES), V.SERVING, None),
    "for a person, work in it, drain.timeout is over": (leaves(Cause.RESTART, DRAIN, **BYTES), V.SERVING, STOP),
    "for a person who scales, drain.timeout is over": (leaves(Cause.SCALE, DRAIN, **BYTES), V.SERVING, STOP),
    "for the autoscaler, a stream flows for ten times that": (
        leaves(Cause.SCALE, 10 * DRAIN, patient=True, **BYTES),
        V.SERVING,
        None,
    ),
    "for the autoscaler, its own count moves": (
        working(leaves(Cause.SCALE, 10 * DRAIN, patient=True), 1, moved=2.0),
        V.SERVING,
        None,
    ),
    "for the autoscaler, nothing has moved for drain.timeout": (
        leaves(Cause.SCALE, 10 * DRAIN, patient=True, **STILL),
        V.SERVING,
        STOP,
    ),
    "for the autoscaler, it hangs": (leaves(Cause.SCALE, 5.0, patient=True, **STILL), V.HUNG, KILL),
    "for healing, a stream flows": (leaves(Cause.HEAL, HANG + 1.0, **BYTES), V.SICK, None),
    "for healing, a stream flows, drain.timeout is over": (leaves(Cause.HEAL, DRAIN, **BYTES), V.SICK, STOP),
    "for healing, nothing has moved for hang_after": (leaves(Cause.HEAL, HANG, **STILL), V.SICK, STOP),
    "for healing, nothing has moved for less": (leaves(Cause.HEAL, HANG - 1.0, **STILL), V.SICK, None),
    "what is in it cannot be seen": (leaves(Cause.RESTART, 9.0, in_flight_known=False), V.SERVING, None),
    "what is in it cannot be seen, drain.timeout is over": (
        leaves(Cause.RESTART, DRAIN, in_flight_known=False),
        V.SERVING,
        STOP,
    ),
}


@pytest.mark.parametrize("case", DRAINS)
def test_one_leaves(case: str) -> None:
    seen, kind, expected = DRAINS[case]
    turn = advance(seen, verdict(kind), gate())
    assert (turn.step.kind if turn.step else None) == expected, turn.reason


def test_its_own_count_of_nothing_is_believed_where_connections_cannot_be_seen() -> None:
    seen = probed(leaves(Cause.RESTART, 9.0, in_flight_known=False), progress=Progress(), asked_at=NOW - 1.0)
    quiet = advance(seen, verdict(V.SERVING), gate()).record
    assert quiet.leaving is not None
    assert quiet.leaving.quiet_since == NOW
    before = probed(seen, asked_at=NOW - 10.0)  # asked before nginx had let go of it
    held = advance(before, verdict(V.SERVING), gate()).record.leaving
    assert held is not None
    assert held.quiet_since is None


def test_a_count_from_before_nginx_had_let_go_of_it_is_no_count() -> None:
    for counted_at, quiet in ((NOW - 9.5, None), (NOW - 0.1, NOW)):
        turn = advance(leaves(Cause.RESTART, 9.0, in_flight_at=counted_at), verdict(V.SERVING), gate())
        assert turn.record.leaving is not None
        assert turn.record.leaving.quiet_since == quiet


def test_nothing_is_stopped_before_nginx_has_let_go_of_it() -> None:
    seen = instance(leaving=Leaving(Cause.RESTART, "why", NOW - 9.0), in_rotation=False)
    turn = advance(seen, verdict(V.SERVING), gate(unrouted=False))
    assert (turn.step, turn.reason) == (None, "why: waits for nginx to let go of it")


def test_a_removal_that_hangs_is_not_called_serving_and_is_replaced() -> None:
    """A container that `docker rm -f` has left in "removing" for an hour."""
    world = world_of([instance(1), in_phase(instance(2), Phase.REMOVING, pid=None)])
    found = decided(world.instances)
    assert (one(found, 2).state, found.summary) == (State.STOPPING, "1 of 2 serving")
    for _ in range(4):
        world = later(world, found, 10.0)
        found = decided(world.instances, now=world.now, runtime=world.runtime)
    assert one(found, 2).state is State.PARKED
    assert any(problem.subject == name(2) for problem in found.problems)
    assert steps(found) == {name(3): START}
