"""All cards in one cycle: what becomes of each, of the instances on it, and where the next one may start. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hasupervisor.decide.gpu.judge import Judgement, Moment, heard, judge_card, judge_driver
from hasupervisor.decide.gpu.ledger import Ledger, Tenant, is_excluded, ledger
from hasupervisor.decide.placement import is_proven, list_is_old, was_started
from hasupervisor.model import Note, Phase, Poisoned, Problem, Seen, StepKind, World
from hasupervisor.model.gpu import CardJudged, CardRecord, CardView, Gpus, Incident, bus_key

_THERE = (Phase.CREATED, Phase.RUNNING, Phase.PAUSED, Phase.REMOVING)


@dataclass(frozen=True, slots=True)
class Ending:
    """An instance that its card ends."""

    why: str
    fence: bool  # it cannot work any more: it is ended at once, not drained


@dataclass(frozen=True, slots=True)
class Cards:
    """What one cycle decides about GPUs, before anything is decided about instances."""

    books: Ledger
    judged: tuple[tuple[CardView, Judgement], ...] = ()
    evictions: Mapping[str, Ending] = field(default_factory=dict)  # by instance
    poisoned: Mapping[str, str] = field(default_factory=dict)  # instance -> why its life is over, in this cycle
    accused: frozenset[str] = frozenset()  # one of these met a fault, and nobody knows which: a prompt decides
    problems: tuple[Problem, ...] = ()
    notes: tuple[Note, ...] = ()


def judge_cards(world: World) -> Cards | None:
    """Judges every card by what is seen, heard and remembered. None: nobody looks at GPUs."""
    gpus, policy = world.gpus, world.policy.gpu
    if gpus is None or policy is None:
        return None
    at = Moment(world.now, world.now_wall, gpus.boot, policy.need_bytes, gpus.dead)
    told = heard(gpus.incidents, kernel_readable=gpus.kernel_log.readable)
    judged = tuple((card, _judge(card, gpus, told, at)) for card in gpus.driver.cards)
    tenants = [tenant for seen in world.instances if (tenant := _tenant(seen, world)) is not None]
    books = ledger(gpus, judged, tenants, policy, one_at_a_time=world.policy.one_at_a_time)
    poisoned, accused = _restarts(judged, tenants, books)
    ours = [(card, judgement) for card, judgement in judged if not is_excluded(card, policy)]
    trouble = judge_driver(gpus.driver)
    return Cards(
        books,
        judged,
        evictions=_evictions(ours, tenants),
        poisoned=poisoned,
        accused=accused,
        problems=(
            *((trouble,) if trouble is not None else ()),
            *(problem for card, judgement in ours for problem in (*judgement.problems, *_mig(card))),
        ),
        notes=(*(note for _, judgement in ours for note in judgement.notes), *_unplaced(told, gpus)),
    )


def shown(cards: Cards, books: Ledger) -> tuple[CardJudged, ...]:
    """The cards as people are shown them. `books`: as they are at the end of the cycle."""
    return tuple(
        CardJudged(
            card,
            judgement.record,
            judgement.state,
            judgement.reason or account.refused,
            instances=account.tenants,
            available_bytes=account.available(books.policy) if account.refused is None else None,
            foreign_bytes=account.foreign_bytes,
            leaked_bytes=account.leaked_bytes,
            excluded=is_excluded(card, books.policy),
        )
        for (card, judgement), account in zip(cards.judged, books.accounts, strict=True)
    )


def remember(seen: Seen, cards: Cards) -> Seen:
    """What the record keeps of GPUs: which it has, and a fault that ended this very life, until the life is over."""
    fact, record = seen.fact, seen.record
    if fact is not None and fact.gpus and fact.gpus != record.gpus:
        record = replace(record, gpus=fact.gpus)
    why = cards.poisoned.get(record.name)
    if why is not None and fact is not None:
        record = replace(record, poisoned=Poisoned(fact.runtime_id, why))
    elif record.poisoned is not None and (fact is None or record.poisoned.runtime_id != fact.runtime_id):
        record = replace(record, poisoned=None)
    return seen if record is seen.record else replace(seen, record=record)


def condemned(world: World, cards: Cards) -> dict[str, Ending]:
    """Instances that a fault of their card ends. One that can go nowhere is left to its own probes: it may yet work."""
    found: dict[str, Ending] = {}
    books = cards.books
    for seen in world.instances:
        record, fact = seen.record, seen.fact
        if fact is None or fact.phase is not Phase.RUNNING:
            continue
        if record.poisoned is not None:
            found[record.name] = Ending(record.poisoned.why, fence=True)
        elif (eviction := cards.evictions.get(record.name)) is not None and (goal := books.roomiest()) is not None:
            books = books.promise(record.name, (goal,))
            found[record.name] = eviction
    return found


def _judge(card: CardView, gpus: Gpus, told: Sequence[Incident], at: Moment) -> Judgement:
    record = gpus.records.get(key(card), CardRecord(key(card)))
    return judge_card(card, record, [one for one in told if _is_about(one, card)], at)


def key(card: CardView) -> str:
    """What a card's record is kept under: its UUID, or a word for one that has never said it."""
    return card.uuid or f"index {card.index}"


def _is_about(incident: Incident, card: CardView) -> bool:
    xid = incident.xid
    if xid.uuid is not None:
        return xid.uuid == card.uuid
    return xid.bus is not None and card.fact is not None and bus_key(xid.bus) == bus_key(card.fact.bus)


def _unplaced(told: Sequence[Incident], gpus: Gpus) -> list[Note]:
    """Faults of cards that NVML has never shown."""
    return [
        Note("GPUs", "gpu", f"Xid {one.xid.code} of a GPU that NVML does not list ({one.xid.bus}): {one.xid.words}")
        for one in told
        if not any(_is_about(one, card) for card in gpus.driver.cards)
    ]


def _mig(card: CardView) -> tuple[Problem, ...]:
    if card.fact is None or not card.fact.mig:
        return ()
    words = "is split by MIG, which is not supported: nothing is placed on it"
    return (Problem(f"GPU {card.index}", words, f"nvidia-smi -i {card.index} -mig 0, or name it in gpu.exclude"),)


def _tenant(seen: Seen, world: World) -> Tenant | None:
    """None: it has no card. One that is being started has been promised its card, and is in no list yet."""
    fact, record = seen.fact, seen.record
    if fact is not None and fact.phase in _THERE:
        loads = fact.phase is not Phase.PAUSED and not is_proven(seen)
        return Tenant(record.name, fact.gpus, loads) if fact.gpus else None
    started = seen.acting == StepKind.START or (fact is None and list_is_old(seen, world) and was_started(seen))
    return Tenant(record.name, record.gpus, loads=True) if started and record.gpus else None


def _evictions(judged: Sequence[tuple[CardView, Judgement]], tenants: Sequence[Tenant]) -> dict[str, Ending]:
    found: dict[str, Ending] = {}
    for card, judgement in judged:
        if judgement.evict is None:
            continue
        for tenant in tenants:
            if card.uuid in tenant.gpus:
                found[tenant.name] = Ending(f"GPU {card.index} is given up: {judgement.evict}", judgement.fence)
    return found


def _restarts(
    judged: Sequence[tuple[CardView, Judgement]], tenants: Sequence[Tenant], books: Ledger
) -> tuple[dict[str, str], frozenset[str]]:
    """Who met a fault that ends a CUDA context. Where the process is not known: the only one on the card, or nobody."""
    poisoned: dict[str, str] = {}
    accused: set[str] = set()
    for (card, judgement), account in zip(judged, books.accounts, strict=True):
        here = [tenant.name for tenant in tenants if card.uuid in tenant.gpus]
        for restart in judgement.restarts:
            why = f"GPU {card.index}: {restart.why}"
            if restart.instance is not None:
                poisoned[restart.instance] = why
            elif len(here) == 1 and not account.foreign_bytes:
                poisoned[here[0]] = why
            else:
                accused.update(here)
    return poisoned, frozenset(accused)
