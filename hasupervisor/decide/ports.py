"""Gives an instance another port when its start met somebody else on its own: no reason to be out of service."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.decide.placement import free_port
from hasupervisor.model import Note, Outcome, Seen, StepKind, World


def move(world: World) -> tuple[World, tuple[Note, ...]]:
    """The world with every instance whose port is taken on the next free one, and what to write down of it.

    Such a start is no failure of the instance: it is tried again at once, under the same name. Where no port of the
    range is left that was not refused already, it counts as one, and all ports are tried again by and by.
    """
    notes: list[Note] = []
    instances: list[Seen] = []
    taken = frozenset(seen.record.port for seen in world.instances) | world.taken_ports
    for seen in world.instances:
        starts = [outcome for outcome in seen.outcomes if outcome.step == StepKind.START]
        if not starts:
            instances.append(seen)
            continue
        seen, note = _moved(seen, starts[-1], taken, world)
        taken |= {seen.record.port}
        notes.extend([note] if note is not None else [])
        instances.append(seen)
    return replace(world, instances=tuple(instances)), tuple(notes)


def _moved(seen: Seen, start: Outcome, taken: frozenset[int], world: World) -> tuple[Seen, Note | None]:
    record = seen.record
    if not start.port_taken:
        return replace(seen, record=replace(record, refused_ports=frozenset())), None
    refused = record.refused_ports | {record.port}
    port = free_port(world.policy, taken | refused)
    if port is None:
        return replace(seen, record=replace(record, refused_ports=frozenset())), None
    note = Note(record.name, "port", f"{start.error}; it is started on port {port} instead")
    others = tuple(outcome for outcome in seen.outcomes if outcome is not start)
    acted_at = max(record.acted_at, start.at)
    record = replace(record, port=port, refused_ports=refused, acted_at=acted_at, retry_at=None)
    return replace(seen, record=record, outcomes=others), note
