"""What is remembered of GPUs, in SQLite: quarantines and losses; a card of which there is nothing to say has no row.

The other fields of a card's record are in monotonic time and say little after a restart: they are seen anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from hasupervisor.memory.rows import Row
from hasupervisor.model.gpu import CardRecord, Need, Quarantine

CREATE = "CREATE TABLE cards (uuid TEXT PRIMARY KEY, quarantine TEXT, by_hand TEXT, lost_in TEXT NOT NULL) STRICT"


def lasting(record: CardRecord) -> CardRecord:
    """The record without what is seen anew."""
    return CardRecord(record.uuid, record.quarantine, record.by_hand, lost_in=record.lost_in)


def is_blank(record: CardRecord) -> bool:
    """Whether there is nothing to remember."""
    return lasting(record) == CardRecord(record.uuid)


def card_row(record: CardRecord) -> Row:
    return {
        "uuid": record.uuid,
        "quarantine": _text(record.quarantine),
        "by_hand": _text(record.by_hand),
        "lost_in": json.dumps(record.lost_in),
    }


def card_of(row: Row) -> CardRecord:
    """Raises ValueError or TypeError where the row is not what we write."""
    return CardRecord(
        uuid=str(row["uuid"]),
        quarantine=_quarantine(row["quarantine"]),
        by_hand=_quarantine(row["by_hand"]),
        lost_in=tuple(str(boot) for boot in json.loads(str(row["lost_in"]))),
    )


def _text(quarantine: Quarantine | None) -> str | None:
    return None if quarantine is None else json.dumps(asdict(quarantine), ensure_ascii=False)


def _quarantine(value: str | int | float | None) -> Quarantine | None:
    if value is None:
        return None
    found = json.loads(str(value))
    try:
        return Quarantine(
            reason=str(found["reason"]),
            need=Need(found["need"]),
            since_wall=float(found["since_wall"]),
            boot=str(found["boot"]),
            by=str(found["by"]),
            evicts=bool(found["evicts"]),
            fences=bool(found["fences"]),
            index=int(found["index"]) if found.get("index") is not None else None,
        )
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is missing") from missing
