"""One cycle's decision: from a frozen snapshot of the world to steps, routing and one sentence for every instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hasupervisor.decide import brakes, placement, ports, rollout, scaling, summary
from hasupervisor.decide.drain import QUIET
from hasupervisor.decide.gate import Gate, Turn
from hasupervisor.decide.gpu.cards import Cards, Ending, condemned, judge_cards, remember, shown
from hasupervisor.decide.gpu.ledger import Ledger, Place
from hasupervisor.decide.health import is_accused, is_late, judge, stale_after
from hasupervisor.decide.repair import advance
from hasupervisor.decide.routing import is_routed, is_unrouted, proofs, table
from hasupervisor.model import (
    AUTOSCALER,
    Address,
    Cause,
    Fact,
    Judged,
    Note,
    Operation,
    OperationKind,
    OperationState,
    Phase,
    Plan,
    Record,
    Said,
    Seen,
    State,
    StepKind,
    Verdict,
    VerdictKind,
    World,
)
from hasupervisor.model.gpu import CardJudged

WATCHED_CYCLE = 0.5
"""The same while somebody's answers have just begun to fail."""

IDLE_CYCLE = 1.0
"""Seconds to the next cycle when nothing happens and nothing is awaited."""

_GOOD = (VerdictKind.SERVING, VerdictKind.BUSY)


def plan(world: World) -> Plan:
    """Decides one cycle. Pure: the same world gives the same plan, and the world is not changed."""
    before = {s.record.name: s.record for s in world.instances}
    world = scaling.adopt(world)
    world, moves = ports.move(world)
    world, gone = _let_go(world)
    notes = [*moves]
    notes += [Note(name, "gone", "is gone: no longer wanted") for name in gone]
    problem = None
    looks = not world.settled or world.runtime.listed_at is None
    if looks:
        world = _resume(world)
    cards = judge_cards(world)
    if not looks:
        if not world.wants.pause or _commanded(world):
            member = scaling.membership(world, _card_ranks(cards))
            world, problem = replace(world, instances=member.instances), member.problem
            notes.extend(member.notes)
        world = rollout.begin(world)
    if cards is not None:
        world = replace(world, instances=tuple(remember(seen, cards) for seen in world.instances))
        notes.extend(cards.notes)
    verdicts = tuple(judge(seen, world.policy, world.now) for seen in world.instances)
    ends = condemned(world, cards) if cards is not None else {}
    pairs = tuple(zip(world.instances, verdicts, strict=True))
    cause = brakes.common_cause([p for p in pairs if p[0].record.name not in ends], world.policy, world.now)
    turned = _turns(world, pairs, cause, cards, ends)
    books = turned.books
    gpus = shown(cards, books) if cards is not None and books is not None else ()
    judged = tuple(
        _judged(seen, verdict, turn, world, gpus)
        for seen, verdict, turn in zip(world.instances, turned.verdicts, turned.turns, strict=True)
    )
    notes.extend(note for j in judged if (note := _state_note(before.get(j.record.name), j)) is not None)
    operations, ended = _operations(world, judged)
    notes.extend(ended)
    problems = summary.problems(world, judged, cause, problem, cards.problems if cards is not None else ())
    return Plan(
        steps=tuple(turn.step for turn in turned.turns if turn.step is not None),
        routing=table(tuple((j.record, j.fact) for j in judged)),
        instances=judged,
        operations=operations,
        problems=problems,
        notes=tuple(notes),
        summary=summary.sentence(world, judged),
        health=summary.health(world, judged, problems),
        proofs=proofs(judged),
        blameless=_addresses(cause.names, judged) if cause is not None else frozenset(),
        prompts=frozenset(j.record.name for j in judged if _needs_prompt(j))
        | (cards.accused if cards else frozenset()),
        next_in=_next_in(world, judged),
        cards=gpus,
        room=books.room() if books is not None else None,
        no_room=books.no_room() if books is not None else None,
    )


def _addresses(names: frozenset[str], judged: tuple[Judged, ...]) -> frozenset[Address]:
    return frozenset(j.fact.address for j in judged if j.record.name in names and j.fact is not None)


def _card_ranks(cards: Cards | None) -> scaling.Ranks:
    """Who goes first when fewer are wanted, as far as GPUs are concerned."""
    return scaling.card_ranks(shown(cards, cards.books)) if cards is not None else scaling.NO_CARDS


def _let_go(world: World) -> tuple[World, tuple[str, ...]]:
    """Ends the records of instances that were scaled away and that the runtime no longer lists."""
    gone = tuple(
        s.record.name
        for s in world.instances
        if s.record.leaving is not None
        and s.record.leaving.cause is Cause.SCALE
        and s.fact is None
        and s.acting is None
        and not any(o.stuck for o in s.outcomes)
        and not placement.list_is_old(s, world)
    )
    kept = tuple(s for s in world.instances if s.record.name not in gone)
    return replace(world, instances=kept), gone


def _resume(world: World) -> World:
    """Just started: what the gateway routed before stays in rotation until somebody has asked it."""

    def take(seen: Seen) -> Seen:
        fact, record = seen.fact, seen.record
        if fact is None or fact.phase is not Phase.RUNNING or record.incarnation is not None:
            return seen
        proven = _was_proven(record, fact)
        another = record.proven is not None and record.proven != fact.runtime_id  # at the same address, by now
        routed = fact.address in world.routed_at_start and not another
        if world.gateway.off:  # there is no table on the disk that would tell
            routed = proven
        state = State.SERVING if routed else State.LOADING
        record = replace(
            record,
            incarnation=fact.runtime_id,
            met_at=world.now,
            in_rotation=routed,
            serving_since=world.now if routed or proven else None,
            proven=fact.runtime_id if proven else None,
            state=state,
            since=record.since if record.state is state else 0.0,
        )
        return replace(seen, record=record)

    return replace(world, instances=tuple(take(seen) for seen in world.instances))


def _was_proven(record: Record, fact: Fact) -> bool:
    """Whether an earlier daemon has seen this very life serve. A container that was started anew keeps its id."""
    if record.proven != fact.runtime_id or record.serving_since is None:
        return False
    return fact.started_at is None or fact.started_at <= record.serving_since


@dataclass(frozen=True, slots=True)
class _Turned:
    """All instances after their turns, in the order of the world's."""

    turns: tuple[Turn, ...]
    verdicts: tuple[Verdict, ...]  # with what their GPUs add to them
    books: Ledger | None  # with what was promised in this cycle


def _turns(
    world: World,
    pairs: tuple[tuple[Seen, Verdict], ...],
    cause: brakes.CommonCause | None,
    cards: Cards | None,
    ends: Mapping[str, Ending],
) -> _Turned:
    loading = {
        seen.record.name: placement.is_loading(seen, verdict, unlisted=placement.list_is_old(seen, world))
        for seen, verdict in pairs
    }
    good = frozenset(s.record.name for s, v in pairs if s.record.in_rotation and v.kind in _GOOD) - ends.keys()
    overdue = placement.overdue(world.instances, world.now)
    endless = placement.endless(pairs, world.policy, world.now)
    disturbed = {d.name: d for d in brakes.disturbances(world.instances)}
    books = cards.books if cards is not None else None
    turned: dict[str, tuple[Turn, Verdict]] = {}
    for seen, verdict in sorted(pairs, key=_waits_longest):
        name = seen.record.name
        others = brakes.Around(pairs, cause, tuple(disturbed.values()))
        last = not (good - {name})
        beside = endless | overdue if last and seen.record.load_s is not None else endless
        around = _Around(
            loading=loading,
            brake=brakes.why_no_disturbance(seen, verdict, others, world.policy, world.now),
            last=last,
            unheard=cause is not None and name in cause.names and brakes.nobody_is_heard(pairs, world.policy),
            place=books.place(name, seen.record.gpus, beside) if books is not None else Place(),
            beside=beside,
        )
        if name in ends:
            other = brakes.waits_for(seen, verdict, others.disturbed, others, world.policy, world.now)
            verdict, around = _ended_by_gpu(verdict, ends[name], around, other is None, world)
        elif cards is not None and name in cards.evictions:
            verdict = _nowhere_to_go(verdict, cards.evictions[name].why)
        turn = advance(seen, verdict, _gate(seen, world, around))
        if turn.step is not None and turn.step.kind is StepKind.START:
            loading[name] = True
            endless, overdue = endless - {name}, overdue - {name}  # of what it was before this start
            books = books.promise(name, turn.step.gpus) if books is not None else None
        if (found := brakes.disturbance(turn.record)) is not None:
            disturbed[name] = found
        turned[name] = turn, verdict
    in_order = [turned[seen.record.name] for seen in world.instances]
    return _Turned(tuple(turn for turn, _ in in_order), tuple(verdict for _, verdict in in_order), books)


def _waits_longest(pair: tuple[Seen, Verdict]) -> tuple[float, str]:
    """Whoever has waited longest to be started has the first turn: one that fails and is tried again comes after it."""
    record = pair[0].record
    return record.waits_since if record.waits_since is not None else float("inf"), record.name


@dataclass(frozen=True, slots=True)
class _Around:
    """What the other instances mean for this one."""

    loading: dict[str, bool]
    brake: str | None
    last: bool  # nobody else serves well
    unheard: bool  # in a common cause, and nobody who serves answers probes
    place: Place  # where it may start now, as far as GPUs are concerned
    beside: frozenset[str] = frozenset()  # loaders that it does not wait for


def _ended_by_gpu(
    verdict: Verdict, end: Ending, around: _Around, its_turn: bool, world: World
) -> tuple[Verdict, _Around]:
    """A lost CUDA context is fenced. One that can still work is drained when its turn comes, and serves until then."""
    if end.fence:
        return Verdict(VerdictKind.HUNG, end.why), replace(around, brake=None)
    held = "another is being restarted" if not its_turn else "nobody else serves" if around.last else _paused(world)
    if held is not None and verdict.kind in _GOOD:
        return replace(verdict, sentence=f"{verdict.sentence}; it will be moved: {end.why}; {held}"), around
    return Verdict(VerdictKind.SICK, end.why), around


def _nowhere_to_go(verdict: Verdict, why: str) -> Verdict:
    """No other card has room: it is left to its own probes, for it may still work."""
    return replace(verdict, sentence=f"{verdict.sentence}; {why}, and no other GPU has room for it")


def _gate(seen: Seen, world: World, around: _Around) -> Gate:
    record, fact = seen.record, seen.fact
    routed = fact is not None and is_routed(fact.address, world.gateway, wanted=record.in_rotation)
    return Gate(
        now=world.now,
        now_wall=world.now_wall,
        jitter=world.jitter,
        policy=world.policy,
        asleep=_asleep(world),
        paused=None if _by_hand(record, world) else _paused(world),
        no_start=_no_start(record, world, around),
        gpus=around.place.gpus,
        no_disturbance=around.brake,
        bad_since=brakes.onset(seen, world.now),
        drained=record.name in world.wants.drained,
        list_is_old=placement.list_is_old(seen, world),
        routed=routed,
        unrouted=fact is None or is_unrouted(fact.address, world.gateway),
        last=around.last,
        keep_routed=around.last or around.unheard,
        unheard=around.unheard,
        works=seen.traffic.in_flight_known and seen.traffic.in_flight > 0,
    )


def _no_start(record: Record, world: World, around: _Around) -> str | None:
    """With a card of its own it waits for those that load on that card; without, for all on the host."""
    if around.place.why_not is not None or around.place.gpus:
        return around.place.why_not
    return placement.why_no_start(record.name, around.loading, world.policy, around.beside)


def _asleep(world: World) -> str | None:
    if world.runtime.trouble is not None:
        return f"waits: {world.runtime.trouble}"
    if not world.settled or world.runtime.listed_at is None:
        return "waits: the daemon has just started and looks before it acts"
    return placement.stale_list(world)


def _paused(world: World) -> str | None:
    pause = world.wants.pause
    return f"waits: paused by {pause.by}" if pause is not None else None


def _commanded(world: World) -> bool:
    return any(_is_commanded(o) for o in world.operations)


def _is_commanded(operation: Operation) -> bool:
    return operation.state is OperationState.RUNNING and operation.by != AUTOSCALER


def _by_hand(record: Record, world: World) -> bool:
    """Whether a running command of a person wants this instance moved: a pause does not hold that."""
    running = [o for o in world.operations if _is_commanded(o)]
    if any(o.id == record.operation or record.name in o.targets for o in running):
        return True
    comes = record.incarnation is None and record.ended is None and not record.failures
    goes = record.leaving is not None and record.leaving.cause is Cause.SCALE
    return (comes or goes) and any(o.kind is OperationKind.SCALE for o in running)


def _judged(seen: Seen, verdict: Verdict, turn: Turn, world: World, gpus: tuple[CardJudged, ...]) -> Judged:
    record = turn.record
    if turn.state is not record.state or record.since == 0.0:
        record = replace(record, state=turn.state, since=world.now, since_wall=world.now_wall)
    judged = Judged(
        record=record,
        verdict=verdict,
        state=turn.state,
        colour=summary.colour(turn.state, drained=record.name in world.wants.drained),
        reason=turn.reason,
        fact=seen.fact,
        probe=seen.probe,
        traffic=seen.traffic,
    )
    return replace(judged, explain=summary.evidence(judged, world, gpus))


def _state_note(before: Record | None, judged: Judged) -> Note | None:
    record = judged.record
    if before is None:
        return Note(record.name, "state", f"new -> {judged.state}: {judged.reason}")
    if before.state is judged.state:
        return None
    return Note(record.name, "state", f"{before.state} -> {judged.state}: {judged.reason}")


def _operations(world: World, judged: tuple[Judged, ...]) -> tuple[tuple[Operation, ...], list[Note]]:
    standings = {
        j.record.name: rollout.Standing(j.record, j.state, j.reason, exists=j.fact is not None) for j in judged
    }
    after = tuple(rollout.progress(operation, standings, world) for operation in world.operations)
    notes = [
        Note(new.id, "operation", f"{new.kind} {new.state}: {new.sentence}")
        for old, new in zip(world.operations, after, strict=True)
        if old.state is OperationState.RUNNING and new.state is not OperationState.RUNNING
    ]
    return after, notes


def _needs_prompt(judged: Judged) -> bool:
    """A synthetic prompt decides about those that answer and are not proven, failed the last one, or gave errors."""
    probe = judged.probe
    if probe is None or probe.said is not Said.HEALTHY or judged.record.leaving is not None:
        return False
    unproven = probe.prompt_ok is None and not judged.record.in_rotation
    return unproven or probe.prompt_failures > 0 or is_accused(probe, judged.traffic)


def _is_watched(judged: Judged, world: World) -> bool:
    """Whether its answers are late, or missing for a short time: its CPU use is looked at, and may soon be decisive."""
    probe, fact = judged.probe, judged.fact
    if probe is None or fact is None or fact.phase is not Phase.RUNNING or not judged.record.in_rotation:
        return False
    late = is_late(probe, world.policy, world.now) and not probe.failures
    began = probe.first_failure_at
    return late or (bool(probe.failures) and began is not None and world.now - began < stale_after(world.policy))


def _next_in(world: World, judged: tuple[Judged, ...]) -> float:
    if any(j.state is State.DRAINING for j in judged):
        return QUIET
    if any(_is_watched(j, world) for j in judged):
        return WATCHED_CYCLE
    due = [j.record.retry_at - world.now for j in judged if j.record.retry_at is not None]
    return max(0.05, min([IDLE_CYCLE, *(wait for wait in due if wait > 0)]))
