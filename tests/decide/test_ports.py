"""A port that somebody else has: the instance moves to the next free one; only without any does its start fail."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.decide import ports
from hasupervisor.model import (
    GatewayView,
    Outcome,
    Policy,
    Record,
    RuntimeView,
    Seen,
    Wants,
    World,
)

POLICY = Policy(service="chatglm", ports=range(8000, 8004), min=1, max=2)
TAKEN = "port 8000 on 127.0.0.1 is taken by something else: ss -ltnp 'sport = :8000'"


def started(record: Record, *, taken: bool, ok: bool = False) -> Seen:
    error = "" if ok else TAKEN if taken else "no such image"
    return Seen(record, outcomes=(Outcome(record.name, "start", ok=ok, at=99.9, error=error, port_taken=taken),))


def world(*instances: Seen, taken_ports: frozenset[int] = frozenset()) -> World:
    return World(
        now=100.0,
        now_wall=1e9,
        policy=POLICY,
        wants=Wants(desired=len(instances)),
        runtime=RuntimeView(listed_at=99.0),
        gateway=GatewayView(),
        instances=instances,
        operations=(),
        jitter=0.5,
        settled=True,
        taken_ports=taken_ports,
    )


def test_it_moves_to_the_next_port_that_neither_an_instance_nor_a_stranger_has_and_the_history_tells() -> None:
    met, other = started(Record("chatglm-01", 8000), taken=True), Seen(Record("chatglm-02", 8001))
    after, (note,) = ports.move(world(met, other, taken_ports=frozenset({8000, 8002})))
    moved, stays = after.instances
    assert (moved.record.name, moved.record.port, moved.record.acted_at) == ("chatglm-01", 8003, 99.9)
    assert moved.outcomes == ()  # no failure
    assert stays == other
    assert (note.subject, note.event) == ("chatglm-01", "port")
    assert note.sentence == f"{TAKEN}; it is started on port 8003 instead"


def test_two_that_meet_strangers_in_one_cycle_do_not_move_to_the_same_port() -> None:
    both = (started(Record("chatglm-01", 8000), taken=True), started(Record("chatglm-02", 8001), taken=True))
    after, _ = ports.move(world(*both))
    assert [seen.record.port for seen in after.instances] == [8002, 8003]


def test_a_port_that_was_refused_and_is_not_seen_to_be_taken_is_not_tried_again_while_others_are_left() -> None:
    seen, tried = started(Record("chatglm-01", 8000), taken=True), []
    for _ in POLICY.ports[1:]:
        after, _ = ports.move(world(seen))
        tried.append(after.instances[0].record.port)
        seen = started(after.instances[0].record, taken=True)
    assert tried == [8001, 8002, 8003]
    after, notes = ports.move(world(seen))
    assert notes == ()
    assert after.instances[0].outcomes == seen.outcomes  # a failure like any other: it backs off
    assert after.instances[0].record.refused_ports == frozenset()  # and all are tried again then


def test_a_start_that_went_well_or_failed_for_another_reason_moves_nothing() -> None:
    record = Record("chatglm-01", 8000, refused_ports=frozenset({8001}))
    for seen in (started(record, taken=False, ok=True), started(record, taken=False)):
        after, notes = ports.move(world(seen))
        assert notes == ()
        assert after.instances == (replace(seen, record=Record("chatglm-01", 8000)),)
