"""What becomes of a card: from what is seen of it, what was reported and what is remembered, by the table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hasupervisor.decide.gpu import faults
from hasupervisor.decide.gpu.faults import Action, Row
from hasupervisor.model import Note, Problem
from hasupervisor.model.gpu import (
    CardRecord,
    CardState,
    CardView,
    Counted,
    DriverState,
    DriverView,
    GpuFact,
    Incident,
    Need,
    Quarantine,
    Source,
)

SAME_FAULT = 10.0  # seconds: one fault is often told in dozens of lines
THROTTLING = 0x8 | 0x40 | 0x80  # hardware slowdown, thermal, power brake
THROTTLED_MINUTES, OF_MINUTES = 6, 10
SLICE = 60.0  # seconds: such a minute
LEAK_SLACK = 1 << 30  # bytes: contexts that are being made or torn down are in no list
LEAK_SETTLES = 60.0  # seconds
REBOOTS_TRIED = 2  # a card that is lost again after so many is not mended by another


@dataclass(frozen=True, slots=True)
class Moment:
    """What is the same for all cards."""

    now: float
    now_wall: float
    boot: str  # id of this boot of the host
    need_bytes: int  # what one instance needs on a card
    dead: frozenset[int] = frozenset()  # pids that are listed on a card and do not exist any more


@dataclass(frozen=True, slots=True)
class Restart:
    """An instance to be started again on the same card; None: whose process it was is not known."""

    uuid: str
    instance: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is decided of one card."""

    record: CardRecord
    state: CardState
    reason: str | None  # None: nothing is wrong
    evict: str | None = None  # why what runs on it has to start elsewhere
    fence: bool = False  # and has to be ended at once: it cannot work any more
    restarts: tuple[Restart, ...] = ()
    last: bool = False  # of the cards that have room, it is taken last
    problems: tuple[Problem, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def placeable(self) -> bool:
        """Whether newcomers may be placed on it."""
        return self.state is CardState.OK


def heard(incidents: Sequence[Incident], *, kernel_readable: bool) -> tuple[Incident, ...]:
    """Each fault once. The kernel log knows whose it was; NVML's word is taken where that log is silent.

    Beside a kernel log that can be read, NVML still counts where a card is given up: hearing that twice does no harm.
    """
    if not kernel_readable:
        return tuple(incidents)
    return tuple(
        one
        for one in incidents
        if one.xid.source is Source.KERNEL or faults.row_of_xid(one.xid.code).action is Action.MOVE
    )


def judge_card(card: CardView, record: CardRecord, incidents: Sequence[Incident], at: Moment) -> Judgement:
    """One card, by the newest that is known. `record` is that of the card's UUID."""
    name = _name(card)
    record, notes = _after_reboot(record, name, at)
    restarts: list[Restart] = []
    for incident in incidents:
        record, restart, note = _incident(record, name, incident, at)
        restarts += [restart] if restart is not None else []
        notes += [note] if note is not None else []
    standing = _standing(card)
    record = _remember_figures(record, card.fact, at)
    standing += _from_memory(record, card.fact, at)
    for row, words in standing:
        if row.action in (Action.MOVE, Action.QUARANTINE):
            record, note = _give_up(record, name, row, words, at)
            notes += [note] if note is not None else []
    return _sum(card, _found_at(record, card), standing, restarts, notes)


def quarantine(record: CardRecord, reason: str, by: str, boot: str, now_wall: float) -> CardRecord:
    """By hand: what runs on it goes on, and nothing new comes."""
    return replace(record, by_hand=Quarantine(reason, Need.WORD, now_wall, boot, by, evicts=False))


def clear(record: CardRecord) -> CardRecord:
    """By hand: all is forgotten; what is still wrong with it is seen again at once."""
    return CardRecord(record.uuid)


def judge_driver(view: DriverView) -> Problem | None:
    """What a person should know of the driver. With a problem, what runs goes on and nothing new starts on a card."""
    if view.state in (DriverState.OK, DriverState.UNKNOWN):
        return None
    if view.state is DriverState.ABSENT and not view.cards:
        return None  # a host without GPUs
    return Problem("GPUs", view.sentence, "chatglm-hactl doctor")


# --- what was reported ------------------------------------------------------------------------------------------------


def _incident(
    record: CardRecord, name: str, incident: Incident, at: Moment
) -> tuple[CardRecord, Restart | None, Note | None]:
    xid = incident.xid
    row = faults.row_of_xid(xid.code, xid.recovery)
    words = f"{row.says} (Xid {xid.code}{f', pid {xid.pid}' if xid.pid is not None else ''})"
    if row.action is Action.MOVE:
        record, note = _give_up(record, name, row, words, at)
        return record, None, note
    if row.action is Action.WARN:
        return record, None, Note(name, "gpu", words)
    if row.action is not Action.RESTART:
        return record, None, None
    if incident.foreign:
        return record, None, Note(name, "gpu", f"{words}; the process is none of ours")
    return _restart(record, name, row, incident, words, at)


def _restart(
    record: CardRecord, name: str, row: Row, incident: Incident, words: str, at: Moment
) -> tuple[CardRecord, Restart | None, Note | None]:
    when = incident.xid.at
    same = next((one for one in reversed(record.counted) if _is_same(one, row, incident)), None)
    if same is not None:
        counted = tuple(replace(one, last_at=when) if one is same else one for one in record.counted)
        return replace(record, counted=counted), None, None
    counted = (*record.counted, Counted(row.name, when, when, incident.instance, incident.xid.pid))
    record = replace(record, counted=tuple(one for one in counted if at.now - one.at <= faults.HOUR))
    limit = row.escalation
    if limit is not None:
        times = sum(one.row == row.name and when - one.at <= limit.window for one in record.counted)
        if times >= limit.count:
            often = f"{words}, {times} times in {limit.window / 60:g} minutes"
            record, note = _give_up(record, name, row, often, at)
            return record, None, note
    whose = incident.instance or "whoever's process it was"
    return record, Restart(record.uuid, incident.instance, words), Note(name, "gpu", f"{words}; {whose} is restarted")


def _is_same(one: Counted, row: Row, incident: Incident) -> bool:
    """Whether it tells of a fault that is counted already; that of another process, started since, is another one."""
    xid = incident.xid
    if (one.row, one.instance) != (row.name, incident.instance) or xid.at - one.last_at > SAME_FAULT:
        return False
    return xid.pid is None or one.pid is None or xid.pid == one.pid


# --- what is seen -----------------------------------------------------------------------------------------------------


def _standing(card: CardView) -> list[tuple[Row, str]]:
    """What is wrong now, with its words; the same in every cycle for as long as it lasts."""
    found: list[tuple[Row, str]] = []
    if card.missing_since is not None:
        found.append((faults.OFF_THE_BUS, f"{faults.OFF_THE_BUS.says}: NVML does not list it any more"))
    if card.refusal is not None:
        row = faults.row_of_refusal(card.refusal.code, handle=card.refusal.handle)
        found.append((row, f"{row.says} (NVML: {card.refusal.words}, {card.refusal.code})"))
    if card.silent_since is not None:
        found.append((faults.SILENT, faults.SILENT.says))
    fact = card.fact
    if fact is None or card.missing_since is not None:
        return found
    if fact.recovery is not None:
        verdict = faults.VERDICTS.get(fact.recovery, faults.WANTS_RESET)
        found += [(verdict, verdict.says)] if verdict is not faults.FINE else []
    if fact.remap_failed:
        found.append((faults.REMAP_FAILED, faults.REMAP_FAILED.says))
    if fact.remap_pending or fact.retirement_pending:
        found.append((faults.REMAP_RECORDED, faults.REMAP_RECORDED.says))
    if fact.ecc_uncorrected:
        found.append((faults.ECC_COUNTED, f"{faults.ECC_COUNTED.says}: {fact.ecc_uncorrected}"))
    return found


def _from_memory(record: CardRecord, fact: GpuFact | None, at: Moment) -> list[tuple[Row, str]]:
    """What is wrong for longer than a moment."""
    found: list[tuple[Row, str]] = []
    if sum(was for _, was in record.throttled) >= THROTTLED_MINUTES:
        found.append((faults.THROTTLED, faults.THROTTLED.says))
    leaked = leaked_bytes(fact, at.dead) if fact is not None else None
    if leaked and record.leaking_since is not None and at.now - record.leaking_since >= LEAK_SETTLES:
        row = faults.LEAKS_MUCH if leaked > at.need_bytes else faults.LEAKS
        found.append((row, f"{row.says}: {leaked / 1e9:.1f} GB"))
    return found


def leaked_bytes(fact: GpuFact, dead: frozenset[int] = frozenset()) -> int | None:
    """Used memory that no living process has; None: the driver does not tell enough to know."""
    if fact.memory_reserved_bytes is None or fact.mig or fact.processes_at is None:
        return None
    held = 0
    for process in fact.processes:
        if process.pid in dead:
            continue
        if process.memory_bytes is None:
            return None
        held += process.memory_bytes
    return max(0, fact.memory_total_bytes - fact.memory_free_bytes - fact.memory_reserved_bytes - held)


def _remember_figures(record: CardRecord, fact: GpuFact | None, at: Moment) -> CardRecord:
    if fact is None:
        return record
    minute = int(fact.seen_at // SLICE)
    before = dict(record.throttled)
    before[minute] = before.get(minute, False) or bool((fact.throttle or 0) & THROTTLING)
    newest = max(before)
    throttled = tuple(sorted((m, was) for m, was in before.items() if m > newest - OF_MINUTES))
    leaks = (leaked_bytes(fact, at.dead) or 0) > LEAK_SLACK
    since = record.leaking_since if record.leaking_since is not None else at.now
    return replace(record, throttled=throttled, leaking_since=since if leaks else None)


# --- the record -------------------------------------------------------------------------------------------------------


def _give_up(record: CardRecord, name: str, row: Row, words: str, at: Moment) -> tuple[CardRecord, Note | None]:
    """Quarantines it, unless it is for something at least as bad already."""
    need = row.need
    if row is faults.OFF_THE_BUS and at.boot not in record.lost_in:
        record = replace(record, lost_in=(*record.lost_in, at.boot))
    if row is faults.OFF_THE_BUS and len(record.lost_in) > REBOOTS_TRIED:
        need, words = Need.REPAIR, f"{words}; {len(record.lost_in) - 1} reboots have not mended it"
    evicts = row.action is not Action.QUARANTINE  # a fault that came too often moves as well
    before = record.quarantine
    if before is not None and _GRAVITY[before.need] >= _GRAVITY[need] and (before.evicts or not evicts):
        return record, None
    made = Quarantine(
        words,
        need,
        at.now_wall,
        at.boot,
        evicts=evicts or (before is not None and before.evicts),
        fences=row.fences or (before is not None and before.fences),
    )
    return replace(record, quarantine=made), Note(name, "quarantine", f"quarantined: {words}; {_needs(made)}")


def _found_at(record: CardRecord, card: CardView) -> CardRecord:
    """With the index at which it was quarantined: after a restart that may be all that a lost card is known by."""
    held = record.quarantine
    if held is None or held.index is not None:
        return record
    return replace(record, quarantine=replace(held, index=card.index))


def _after_reboot(record: CardRecord, name: str, at: Moment) -> tuple[CardRecord, list[Note]]:
    held = record.quarantine
    if held is None or held.boot == at.boot or held.need not in (Need.RESET, Need.REBOOT):
        return record, []
    note = Note(name, "quarantine", f"not quarantined any more: the host was rebooted since ({held.reason})")
    return replace(record, quarantine=None, counted=(), throttled=(), leaking_since=None), [note]


_GRAVITY = {Need.RESET: 1, Need.REBOOT: 2, Need.REPAIR: 3}


def _sum(
    card: CardView,
    record: CardRecord,
    standing: Sequence[tuple[Row, str]],
    restarts: Sequence[Restart],
    notes: Sequence[Note],
) -> Judgement:
    name, held = _name(card), record.quarantine or record.by_hand
    uuid = card.uuid or str(card.index)
    problems = [Problem(name, words, row.hint.format(uuid=uuid)) for row, words in standing if row.action in _SHOWN]
    avoided = next((words for row, words in standing if row.action is Action.AVOID), None)
    state, reason = CardState.OK, next((words for _, words in standing), None)
    if avoided is not None:
        state, reason = CardState.SUSPECT, avoided
    if held is not None:
        state, reason = CardState.QUARANTINED, f"{held.reason}; {_needs(held)}"
        if held.need is not Need.WORD:  # what a person has decided is shown, and is nobody's trouble
            problems.insert(0, Problem(name, f"quarantined: {reason}", _HINTS[held.need].format(uuid=uuid)))
    if any(row is faults.OFF_THE_BUS for row, _ in standing):
        state = CardState.LOST
    return Judgement(
        record,
        state,
        reason,
        evict=held.reason if held is not None and held.evicts else None,
        fence=held is not None and held.fences,
        restarts=tuple(restarts) if held is None or not held.evicts else (),
        last=any(row is faults.THROTTLED for row, _ in standing),
        problems=tuple(problems),
        notes=tuple(notes),
    )


_SHOWN = (Action.WARN, Action.AVOID)

_HINTS = {
    Need.RESET: "when nothing runs on it: nvidia-smi --gpu-reset -i {uuid} && chatglm-hactl gpu clear {uuid}",
    Need.REBOOT: "reboot the host; drain it first where others can take its work",
    Need.REPAIR: "inspect or replace the card, then chatglm-hactl gpu clear {uuid}",
}


def _needs(held: Quarantine) -> str:
    return {
        Need.RESET: "needs a reset, or a reboot",
        Need.REBOOT: "needs a reboot",
        Need.REPAIR: "needs a repair",
        Need.WORD: f"by {held.by}, until it is cleared",
    }[held.need]


def _name(card: CardView) -> str:
    return f"GPU {card.index}"
