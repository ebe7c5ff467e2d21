"""Turns the nouns that must survive into rows of the database and back, monotonic times into wall times and back.

A monotonic time means nothing to the next boot, so a row holds the wall time, and when it was saved. Read back, a
time is as old as it was then plus what has gone by since; a wall clock that was set back in between adds nothing, and
so nothing that lies in the past comes back as the future.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hasupervisor.model import Failure, Operation, OperationKind, OperationState, Pause, Record, State, Wants

TAIL_BYTES = 65536
"""Of an instance's last output, the end is kept."""

Value = str | int | float | None
Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Moment:
    """The same instant on both clocks."""

    now: float  # monotonic
    wall: float  # Unix seconds

    def to_wall(self, at: float | None) -> float | None:
        return None if at is None else at - self.now + self.wall

    def to_monotonic(self, at_wall: float | None, saved_wall: float) -> float | None:
        """`at_wall` as written at `saved_wall`, on the clock of now."""
        if at_wall is None:
            return None
        gone_by = max(0.0, self.wall - saved_wall)
        return self.now - gone_by + (at_wall - saved_wall)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the history as it is kept."""

    id: int
    at_wall: float
    subject: str
    event: str
    sentence: str
    by: str


def lasting(record: Record) -> Record:
    """The record without what the next daemon sees for itself (its verdict, its place in the rotation).

    What only the past can tell is kept: that this very life has served, and how long it took to load.
    """
    tail = record.last_failure.tail if record.last_failure else ""
    failure = replace(record.last_failure, tail=end_of(tail)) if record.last_failure else None
    return Record(
        name=record.name,
        port=record.port,
        restarts=record.restarts,
        failures=record.failures,
        last_failure=failure,
        retry_at=record.retry_at,
        parked_at=record.parked_at,
        stuck=record.stuck,
        state=record.state,
        since=record.since,
        since_wall=record.since_wall,
        bad_since=record.bad_since if record.disturbed_at is not None else None,  # otherwise it is seen anew
        disturbed_at=record.disturbed_at,
        ended=record.ended,
        proven=record.proven,
        serving_since=record.serving_since if record.proven is not None else None,
        load_s=record.load_s,
    )


def end_of(tail: str) -> str:
    """The last 64 KiB of it, from the beginning of a line."""
    raw = tail.encode("utf-8", "replace")
    if len(raw) <= TAIL_BYTES:
        return tail
    cut = raw[-TAIL_BYTES:].decode("utf-8", "ignore")
    head, newline, rest = cut.partition("\n")
    return rest if newline and rest else head


def record_row(record: Record, moment: Moment) -> Row:
    failure = record.last_failure
    return {
        "name": record.name,
        "port": record.port,
        "restarts": record.restarts,
        "failures": json.dumps([moment.to_wall(at) for at in record.failures]),
        "failed_at": failure.at_wall if failure else None,
        "failed_why": failure.reason if failure else None,
        "failed_tail": end_of(failure.tail) if failure else None,
        "retry_at": moment.to_wall(record.retry_at),
        "parked_at": moment.to_wall(record.parked_at),
        "bad_since": moment.to_wall(record.bad_since),
        "disturbed_at": moment.to_wall(record.disturbed_at),
        "stuck": record.stuck,
        "ended": record.ended,
        "proven": record.proven,
        "serving_since": moment.to_wall(record.serving_since),
        "load_s": record.load_s,
        "state": record.state.value,
        "since": record.since_wall,
        "saved_at": moment.wall,
    }


def record_of(row: Row, moment: Moment) -> Record:
    """Raises ValueError where the row is not what we write."""
    saved = number(row, "saved_at")

    def monotonic(key: str) -> float | None:
        return moment.to_monotonic(_maybe_number(row, key), saved)

    failed_at = _maybe_number(row, "failed_at")
    failure = None
    if failed_at is not None:
        failure = Failure(
            at=monotonic("failed_at") or 0.0,
            at_wall=failed_at,
            reason=str(row["failed_why"] or ""),
            tail=str(row["failed_tail"] or ""),
        )
    failures = [moment.to_monotonic(float(at), saved) for at in json.loads(str(row["failures"]))]
    return Record(
        name=str(row["name"]),
        port=int(number(row, "port")),
        restarts=int(number(row, "restarts")),
        failures=tuple(at for at in failures if at is not None),
        last_failure=failure,
        retry_at=monotonic("retry_at"),
        parked_at=monotonic("parked_at"),
        stuck=_maybe_text(row, "stuck"),
        state=State(str(row["state"])),
        since=(monotonic("since") or 0.0) if row["since"] else 0.0,  # 0: in no state yet
        since_wall=number(row, "since"),
        bad_since=monotonic("bad_since"),
        disturbed_at=monotonic("disturbed_at"),
        ended=_maybe_text(row, "ended"),
        proven=_maybe_text(row, "proven"),
        serving_since=monotonic("serving_since"),
        load_s=_maybe_number(row, "load_s"),
    )


def wants_row(wants: Wants) -> Row:
    pause = wants.pause
    return {
        "desired": wants.desired,
        "mode": wants.mode,
        "drained": json.dumps(sorted(wants.drained)),
        "pause_by": pause.by if pause else None,
        "pause_since": pause.since_wall if pause else None,
        "pause_until": pause.until_wall if pause else None,
        "pause_reason": pause.reason if pause else None,
    }


def wants_of(row: Row) -> Wants:
    """Raises ValueError where the row is not what we write."""
    since = _maybe_number(row, "pause_since")
    pause = None
    if since is not None:
        pause = Pause(
            by=str(row["pause_by"] or ""),
            since_wall=since,
            reason=str(row["pause_reason"] or ""),
            until_wall=_maybe_number(row, "pause_until"),
        )
    drained = frozenset(str(name) for name in json.loads(str(row["drained"])))
    return Wants(desired=int(number(row, "desired")), mode=str(row["mode"]), pause=pause, drained=drained)


def operation_row(operation: Operation) -> Row:
    return {
        "id": operation.id,
        "kind": operation.kind.value,
        "by": operation.by,
        "started": operation.started_wall,
        "ended": operation.ended_wall,
        "state": operation.state.value,
        "sentence": operation.sentence,
        "targets": json.dumps(operation.targets),
        "total": operation.total,
        "before": json.dumps(operation.before),
    }


def operation_of(row: Row, moment: Moment) -> Operation:
    """Raises ValueError where the row is not what we write."""
    started = number(row, "started")
    return Operation(
        id=str(row["id"]),
        kind=OperationKind(str(row["kind"])),
        by=str(row["by"]),
        started=moment.now - max(0.0, moment.wall - started),
        started_wall=started,
        targets=tuple(str(name) for name in json.loads(str(row["targets"]))),
        total=int(number(row, "total")),
        state=OperationState(str(row["state"])),
        sentence=str(row["sentence"]),
        ended_wall=_maybe_number(row, "ended"),
        before=tuple((str(name), int(restarts)) for name, restarts in json.loads(str(row["before"]))),
    )


def entry_row(entry: Entry) -> Row:
    return {
        "id": entry.id,
        "at": entry.at_wall,
        "subject": entry.subject,
        "event": entry.event,
        "sentence": entry.sentence,
        "by": entry.by,
    }


def entry_of(row: Row) -> Entry:
    return Entry(
        id=int(number(row, "id")),
        at_wall=number(row, "at"),
        subject=str(row["subject"]),
        event=str(row["event"]),
        sentence=str(row["sentence"]),
        by=str(row["by"]),
    )


def number(row: Row, key: str) -> float:
    """Raises ValueError where there is none."""
    value = _maybe_number(row, key)
    if value is None:
        raise ValueError(f"{key} is missing")
    return value


def _maybe_number(row: Row, key: str) -> float | None:
    value = row[key]
    if isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not a number")
    return value


def _maybe_text(row: Row, key: str) -> str | None:
    value = row[key]
    return None if value is None else str(value)
