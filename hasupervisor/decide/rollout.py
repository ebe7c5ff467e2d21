"""Long commands of people, carried out one instance at a time over many cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hasupervisor.decide.repair import can_stay, forgive
from hasupervisor.model import (
    Cause,
    Leaving,
    Operation,
    OperationKind,
    OperationState,
    Record,
    Seen,
    State,
    World,
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one instance stands after the cycle: what operations judge their progress by."""

    record: Record
    state: State
    reason: str
    exists: bool


def begin(world: World) -> World:
    """Marks the instances that running operations move next; the ordinary way of repair then carries them."""
    for operation in world.operations:
        if operation.kind is not OperationKind.RESTART:
            continue
        if operation.state is OperationState.RUNNING:
            world = _begin_restart(world, operation)
        elif operation.state is OperationState.CANCELLED:
            world = _call_off_restart(world, operation)
    drained = tuple(_drain(seen, world) for seen in world.instances)
    return replace(world, instances=drained)


def progress(operation: Operation, standings: Mapping[str, Standing], world: World) -> Operation:
    """The operation after this cycle: moved on, ended, or still waiting, with its sentence."""
    if operation.state is not OperationState.RUNNING:
        return operation
    match operation.kind:
        case OperationKind.SCALE:
            return _scale(operation, standings, world)
        case OperationKind.RESTART:
            return _restart(operation, standings, world)
        case OperationKind.DRAIN:
            return _drained(operation, standings, world)
        case OperationKind.UNDRAIN:
            return _undrained(operation, standings, world)


def _begin_restart(world: World, operation: Operation) -> World:
    if not operation.targets:
        return world
    target = operation.targets[0]

    def mark(seen: Seen) -> Seen:
        record = seen.record
        if record.name != target or record.operation == operation.id or _restarted(record, operation):
            return seen
        record = replace(forgive(record), operation=operation.id)
        if seen.fact is not None and record.leaving is None:
            record = replace(record, leaving=Leaving(Cause.RESTART, f"restarted by {operation.by}", since=world.now))
        return replace(seen, record=record)

    return replace(world, instances=tuple(mark(seen) for seen in world.instances))


def _restarted(record: Record, operation: Operation) -> bool:
    """Whether its life has changed since the operation began; holds over a restart of the daemon too."""
    return record.restarts > dict(operation.before).get(record.name, record.restarts)


def _call_off_restart(world: World, operation: Operation) -> World:
    """Takes back the drain of a cancelled restart, where the instance has not been stopped yet."""

    def unmark(seen: Seen) -> Seen:
        record = seen.record
        mine = record.operation == operation.id and record.leaving is not None
        if not mine or not can_stay(seen):
            return seen
        return replace(seen, record=replace(record, leaving=None, operation=None))

    return replace(world, instances=tuple(unmark(seen) for seen in world.instances))


def _drain(seen: Seen, world: World) -> Seen:
    """`drain` and `undrain`: the wish is in the wants, the record follows it."""
    record, wanted_out = seen.record, seen.record.name in world.wants.drained
    if wanted_out and record.leaving is None and seen.fact is not None:
        return replace(seen, record=replace(record, leaving=Leaving(Cause.DRAIN, "drained by hand", since=world.now)))
    leaves_by_hand = record.leaving is not None and record.leaving.cause is Cause.DRAIN
    if not wanted_out and leaves_by_hand and can_stay(seen):
        return replace(seen, record=replace(record, leaving=None))
    return seen


def _scale(operation: Operation, standings: Mapping[str, Standing], world: World) -> Operation:
    leaving = sorted(s.record.name for s in standings.values() if _is_leaving_for_good(s))
    staying = [s for s in standings.values() if not _is_leaving_for_good(s) and s.record.stuck is None]
    serving = [s for s in staying if s.state is State.SERVING]
    waiting = [s for s in staying if s.state is not State.SERVING and s.record.name not in world.wants.drained]
    head = f"{len(serving)} of {operation.total} serving"
    if len(staying) == operation.total and not waiting and not leaving:
        return _end(operation, OperationState.DONE, head, world)
    parked = [s for s in waiting if s.state is State.PARKED]
    if parked and len(parked) == len(waiting) and not leaving:
        return _end(operation, OperationState.FAILED, f"{head}; {parked[0].record.name} is {parked[0].reason}", world)
    details = [f"{name} drains" if standings[name].state is State.DRAINING else f"{name} stops" for name in leaving]
    details += [f"{s.record.name}: {s.reason}" for s in waiting]
    if len(staying) < operation.total:
        details.append("no free port is left in service.ports")
    return replace(operation, sentence="; ".join([head, *details]))


def _restart(operation: Operation, standings: Mapping[str, Standing], world: World) -> Operation:
    done = operation.total - len(operation.targets)
    if not operation.targets:
        return _end(operation, OperationState.DONE, f"{done} of {operation.total} restarted", world)
    target = operation.targets[0]
    standing = standings.get(target)
    if standing is None:
        rest = operation.targets[1:]
        return replace(operation, targets=rest, sentence=f"{target} is no longer wanted: passed over")
    moved = standing.record.operation == operation.id or _restarted(standing.record, operation)
    if standing.state is State.SERVING and moved and standing.record.leaving is None:
        return _restart(replace(operation, targets=operation.targets[1:]), standings, world)
    if _given_up(standing, drained=target in world.wants.drained):
        sentence = f"{done} of {operation.total} restarted; stopped at {target}: {standing.reason}"
        return _end(operation, OperationState.FAILED, sentence, world)
    return replace(operation, sentence=f"{done} of {operation.total} restarted; {target}: {standing.reason}")


def _given_up(standing: Standing, *, drained: bool) -> bool:
    record = standing.record
    if record.stuck is not None or record.parked_at is not None or (drained and not standing.exists):
        return True
    return standing.state is State.BACKOFF and bool(record.failures)


def _drained(operation: Operation, standings: Mapping[str, Standing], world: World) -> Operation:
    left = [name for name in operation.targets if name in standings and not _is_out(standings[name])]
    for name in left:
        if standings[name].record.stuck is not None:
            return _end(operation, OperationState.FAILED, f"{name}: {standings[name].reason}", world)
    if not left:
        return _end(operation, OperationState.DONE, f"{', '.join(operation.targets)} is drained and stopped", world)
    return replace(operation, sentence=f"{left[0]}: {standings[left[0]].reason}")


def _is_out(standing: Standing) -> bool:
    return not standing.exists and standing.state is State.PARKED


def _undrained(operation: Operation, standings: Mapping[str, Standing], world: World) -> Operation:
    for name in operation.targets:
        standing = standings.get(name)
        if standing is None:
            return _end(operation, OperationState.FAILED, f"{name} is no longer wanted", world)
        if standing.record.stuck is not None:
            return _end(operation, OperationState.FAILED, f"{name}: {standing.reason}", world)
        if standing.state is State.PARKED and standing.record.parked_at is not None:
            return _end(operation, OperationState.FAILED, f"{name} is {standing.reason}", world)
        if standing.state is not State.SERVING:
            return replace(operation, sentence=f"{name}: {standing.reason}")
    return _end(operation, OperationState.DONE, f"{', '.join(operation.targets)} serves again", world)


def _is_leaving_for_good(standing: Standing) -> bool:
    leaving = standing.record.leaving
    return leaving is not None and leaving.cause is Cause.SCALE and standing.record.stuck is None


def _end(operation: Operation, state: OperationState, sentence: str, world: World) -> Operation:
    return replace(operation, state=state, sentence=sentence, ended_wall=world.now_wall)
