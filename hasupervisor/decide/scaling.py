"""Which instances there should be: the wanted count turned into names that come and names that go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from hasupervisor.decide import load
from hasupervisor.decide.placement import free_name, free_port
from hasupervisor.decide.repair import can_stay
from hasupervisor.model import Cause, Leaving, Note, Policy, Record, Seen, State, World
from hasupervisor.model.gpu import CardJudged, CardState

Ranks = Mapping[str, int]
"""How bad the worst card of an instance is, by its name: 0 (or not named) is well, more is worse."""

NO_CARDS: Ranks = MappingProxyType({})

_BADNESS = {CardState.OK: 0, CardState.SUSPECT: 2, CardState.QUARANTINED: 3, CardState.LOST: 4}
_NOT_QUITE_WELL = 1  # placed on, and something is said of it: it is throttled, or leaks


@dataclass(frozen=True, slots=True)
class Membership:
    """The records to go on with: new ones appended, surplus ones marked as leaving."""

    instances: tuple[Seen, ...]
    notes: tuple[Note, ...] = ()
    problem: str | None = None  # why fewer than wanted can exist


def membership(world: World, ranks: Ranks = NO_CARDS) -> Membership:
    """Brings the number of instances to what is wanted; an instance that is stuck does not count."""
    world = _hurry(world)
    staying = [s for s in world.instances if _counts(s.record)]
    surplus = len(staying) - world.wants.desired
    if surplus > 0:
        return _fewer(world, victims(staying, surplus, world.policy, world.now, ranks))
    if surplus < 0:
        return _more(world, -surplus)
    return Membership(world.instances)


def adopt(world: World) -> World:
    """Gives a record to every instance that the runtime lists and nobody remembers."""
    known = {s.record.name for s in world.instances}
    strangers = [f for f in world.runtime.facts if f.name not in known]
    adopted = tuple(
        Seen(Record(name=f.name, port=f.endpoint.port, since=world.now, since_wall=world.now_wall), fact=f)
        for f in strangers
    )
    return replace(world, instances=world.instances + adopted)


def card_ranks(cards: Sequence[CardJudged]) -> Ranks:
    """What is known of the cards as ranks of the instances on them."""
    ranks: dict[str, int] = {}
    for card in cards:
        for name in card.instances:
            ranks[name] = max(ranks.get(name, 0), _badness(card))
    return ranks


def _badness(card: CardJudged) -> int:
    if card.state is CardState.OK and card.reason is not None and not card.excluded:
        return _NOT_QUITE_WELL
    return _BADNESS[card.state]


def victims(
    staying: Sequence[Seen], count: int, policy: Policy, now: float, ranks: Ranks = NO_CARDS
) -> tuple[str, ...]:
    """The `count` instances that cost least to lose, the first to go first.

    Those that do not serve; then those on the worst card; then those with the least to do; then the newest. What they
    have to do is compared by powers of two (at most 1, 2 or 3, 4 to 7, ...), so that a request more or less does not
    change who goes; who may have anything to do, for all that is known, comes after all who are known.
    """

    def cost(seen: Seen) -> tuple[bool, int, bool, int, int]:
        record = seen.record
        work = load.in_flight(seen.probe, seen.traffic, policy, now)
        doublings = (int(work) // 2).bit_length() if work is not None else 0
        return record.in_rotation, -ranks.get(record.name, 0), work is None, doublings, -_number(record.name)

    return tuple(seen.record.name for seen in sorted(staying, key=cost)[:count])


def _hurry(world: World) -> World:
    """A person who scales waits for it: what the autoscaler has let leave at its leisure leaves by drain.timeout."""
    if not _by_hand(world):
        return world

    def take(seen: Seen) -> Seen:
        leaving = seen.record.leaving
        if leaving is None or not leaving.patient:
            return seen
        unrouted = world.now if leaving.unrouted_since is not None else None
        leaving = replace(leaving, patient=False, since=world.now, unrouted_since=unrouted)
        return replace(seen, record=replace(seen.record, leaving=leaving))

    return replace(world, instances=tuple(take(seen) for seen in world.instances))


def _by_hand(world: World) -> bool:
    """Whether the wanted count is a person's, and not the autoscaler's."""
    return world.wants.mode == "manual"


def _fewer(world: World, names: Sequence[str]) -> Membership:
    going = frozenset(names)
    why = f"scaled down to {world.wants.desired}"
    leaving = Leaving(Cause.SCALE, why, since=world.now, patient=not _by_hand(world))
    marked = tuple(
        replace(s, record=replace(s.record, leaving=leaving)) if s.record.name in going else s for s in world.instances
    )
    notes = tuple(Note(name, "scale", f"leaves: {why}") for name in sorted(going))
    return Membership(marked, notes)


def _more(world: World, missing: int) -> Membership:
    """Takes back those that are leaving and still alive, then makes new names."""
    instances = list(world.instances)
    notes: list[Note] = []
    for i, seen in enumerate(instances):
        if missing and _can_stay_after_all(seen):
            instances[i] = replace(seen, record=replace(seen.record, leaving=None))
            notes.append(Note(seen.record.name, "scale", f"stays: {world.wants.desired} are wanted again"))
            missing -= 1
    names = frozenset(s.record.name for s in instances) | world.taken_names
    ports = frozenset(s.record.port for s in instances) | world.taken_ports
    while missing:
        name, port = free_name(world.policy, names), free_port(world.policy, ports)
        if port is None:
            return Membership(tuple(instances), tuple(notes), "no free port is left in service.ports")
        record = Record(name=name, port=port, state=State.STARTING, since=world.now, since_wall=world.now_wall)
        instances.append(Seen(record))
        notes.append(Note(name, "scale", f"new on port {port}: {world.wants.desired} are wanted"))
        names, ports, missing = names | {name}, ports | {port}, missing - 1
    return Membership(tuple(instances), tuple(notes))


def _counts(record: Record) -> bool:
    return record.stuck is None and (record.leaving is None or record.leaving.cause is not Cause.SCALE)


def _can_stay_after_all(seen: Seen) -> bool:
    leaving = seen.record.leaving
    return leaving is not None and leaving.cause is Cause.SCALE and can_stay(seen)


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0
