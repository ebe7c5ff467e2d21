"""Instances and worlds for the tables of the decisions; the GPU of no one is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hasupervisor.decide.gate import Gate
from hasupervisor.decide.plan import plan
from hasupervisor.model import (
    Judged,
    Miss,
    Phase,
    Plan,
    Policy,
    ProbeView,
    Progress,
    Record,
    Said,
    Seen,
    State,
    StepKind,
    World,
)
from tests.decide.gpu_facts import NOW, name, world
from tests.decide.gpu_facts import serving as _serving

POLICY = Policy("chatglm", range(8000, 8100), 1, 12)
MISSED = 2  # probes in a row: enough for a verdict (health.failures)


def instance(number: int = 1, **record: Any) -> Seen:
    """One that serves well; `record` changes its record."""
    seen = _serving(number)
    return replace(seen, record=replace(seen.record, **{"load_s": 20.0, **record}))


def probed(seen: Seen, **changes: Any) -> Seen:
    assert seen.probe is not None
    return replace(seen, probe=replace(seen.probe, **changes))


def trafficked(seen: Seen, **changes: Any) -> Seen:
    return replace(seen, traffic=replace(seen.traffic, **changes))


def silent(seen: Seen, since: float = 3.0, misses: int = MISSED, miss: Miss = Miss.SILENT) -> Seen:
    """Its probes have gone unanswered for `since` seconds."""
    return probed(
        seen,
        failures=misses,
        successes=0,
        first_failure_at=NOW - since,
        answered_at=NOW - since - 2.0,
        ended_at=NOW - 0.5,
        miss=miss,
        error=str(miss),
    )


def late(seen: Seen, since: float = 0.5) -> Seen:
    """Its answer to the question that was put `since` seconds ago is late."""
    return probed(seen, late_since=NOW - since)


def working(seen: Seen, in_flight: int = 2, *, told: bool = True, moved: float = 100.0) -> Seen:
    """Users' work is in it, which moved last `moved` seconds ago; `told`: it reports its progress."""
    seen = trafficked(seen, in_flight=in_flight)
    if not told:
        return seen
    return probed(seen, progress=Progress(in_flight=in_flight, steps=7), progressed_at=NOW - moved)


def idle_cpu(seen: Seen, seconds: float = 5.0) -> Seen:
    return trafficked(seen, idle_since=NOW - seconds)


def hung(number: int, since: float = 20.0) -> Seen:
    """SIGSTOP: work in it, probes accepted and not answered, no CPU used."""
    return idle_cpu(silent(working(instance(number)), since))


def sick(number: int, reason: str = "CUDA error") -> Seen:
    return probed(instance(number), said=Said.UNHEALTHY, unhealthies=5, successes=0, reason=reason)


def quiet(number: int, since: float = 20.0) -> Seen:
    """Answers no probes, with nothing in flight: dead, or lied about."""
    return silent(instance(number), since)


def gone(number: int, **record: Any) -> Seen:
    """The runtime lists it no more; by default its end has been counted."""
    base = Record(name(number), 8000 + number, since=NOW - 1.0, ended=f"{name(number)}#1", load_s=20.0)
    return Seen(replace(base, **record))


def loading(number: int, age: float, **record: Any) -> Seen:
    """A new life that is not proven yet."""
    seen = instance(number)
    assert seen.fact is not None
    life = f"{name(number)}#2"
    began = replace(seen.record, in_rotation=False, serving_since=None, state=State.LOADING, incarnation=life)
    return replace(
        seen,
        record=replace(began, met_at=NOW - age, **record),
        fact=replace(seen.fact, runtime_id=life, started_at=NOW - age),
        probe=ProbeView(life, Said.LOADING, answered_at=NOW - 0.2, ended_at=NOW - 0.2),
    )


def in_phase(seen: Seen, phase: Phase, **fact: Any) -> Seen:
    assert seen.fact is not None
    return replace(seen, fact=replace(seen.fact, phase=phase, **fact))


def decided(instances: Sequence[Seen], policy: Policy = POLICY, **changes: Any) -> Plan:
    return plan(world_of(instances, policy, **changes))


def world_of(instances: Sequence[Seen], policy: Policy = POLICY, **changes: Any) -> World:
    return replace(world(instances, None, None), policy=policy, **changes)


def one(found: Plan, number: int) -> Judged:
    return next(j for j in found.instances if j.record.name == name(number))


def steps(found: Plan) -> dict[str, StepKind]:
    return {step.name: step.kind for step in found.steps}


def gate(**changes: Any) -> Gate:
    return replace(Gate(now=NOW, now_wall=1.7e9, jitter=0.5, policy=POLICY), **changes)


def later(before: World, found: Plan, seconds: float, instances: Iterable[Seen] = ()) -> World:
    """The world `seconds` later, with the records that were decided and, by name, other facts."""
    changed = {seen.record.name: seen for seen in instances}
    now = before.now + seconds
    seen = []
    for s in before.instances:
        new = changed.get(s.record.name, s)
        record = next(j.record for j in found.instances if j.record.name == s.record.name)
        seen.append(replace(_aged(new, seconds), record=record, outcomes=()))
    runtime = replace(before.runtime, listed_at=now - 0.05)
    return replace(before, now=now, now_wall=before.now_wall + seconds, runtime=runtime, instances=tuple(seen))


def _aged(seen: Seen, seconds: float) -> Seen:
    """What was seen goes on as it did: what was answered just now is answered just now again."""
    if seen.probe is None:
        return seen
    probe = seen.probe
    moved = {key: at + seconds for key in ("ended_at",) if (at := getattr(probe, key)) is not None}
    if not probe.failures:
        moved |= {key: at + seconds for key in ("answered_at", "asked_at") if (at := getattr(probe, key)) is not None}
    return replace(seen, probe=replace(probe, **moved))  # type: ignore[arg-type]
