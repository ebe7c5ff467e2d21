"""The sheet of a drill: where it stands and what it has seen, one JSON file that outlives the daemon and the drill."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hasupervisor.report.document import timestamp
from hasupervisor.runtimes.process_records import Identity

RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"
SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Until:
    """Seconds from the fault, by the daemon's own history and status. None: it did not come to that."""

    out_of_rotation: float | None = None
    fenced: float | None = None  # the daemon ended the process
    serving_again: float | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the load. Every request that was sent is answered, shed, failed, or still open."""

    sent: int = 0
    answered: int = 0
    shed: int = 0  # told 503 with Retry-After during a spike
    failures: tuple[tuple[str, int], ...] = ()  # what happened instead of an answer, and how often
    slowest: float = 0.0  # seconds, of the answered ones
    late: float = 0.0  # seconds that the latest departure was behind its time: the load's own honesty

    @property
    def failed(self) -> int:
        return sum(count for _, count in self.failures)


@dataclass(frozen=True, slots=True)
class Sheet:
    """One drill from its beginning to its end."""

    id: str
    fault: str
    name: str | None
    by: str
    rate: float
    seconds: float
    patience: float
    process: Identity  # that carries it out
    started: float  # Unix seconds, as all moments here
    state: str = RUNNING  # done: as promised; failed: not as promised, or it could not be carried out
    sentence: str = "begins"
    fault_at: float | None = None
    ended: float | None = None
    load: Tally = Tally()
    until: Until = Until()
    findings: tuple[str, ...] = ()  # what was not as promised, a sentence each
    history: tuple[dict[str, Any], ...] = ()  # what the daemon wrote down meanwhile
    held: Identity | None = None  # whom it may have stopped
    noted: bool = False  # its end is in the history

    def document(self) -> dict[str, Any]:
        """What people and programs are shown (docs/control-api.md)."""
        load, until = self.load, self.until
        return {
            "id": self.id,
            "fault": self.fault,
            "name": self.name,
            "by": self.by,
            "state": self.state,
            "sentence": self.sentence,
            "started": timestamp(self.started),
            "fault_at": _maybe(self.fault_at),
            "ended": _maybe(self.ended),
            "load": {
                "rate": self.rate,
                "seconds": self.seconds,
                "patience_s": self.patience,
                "sent": load.sent,
                "answered": load.answered,
                "shed": load.shed,
                "failed": load.failed,
                "failures": [{"what": what, "count": count} for what, count in load.failures],
                "slowest_s": round(load.slowest, 3),
                "late_s": round(load.late, 3),
            },
            "until": {
                "out_of_rotation_s": _rounded(until.out_of_rotation),
                "fenced_s": _rounded(until.fenced),
                "serving_again_s": _rounded(until.serving_again),
            },
            "findings": list(self.findings),
            "history": list(self.history),
        }

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for what is no sheet."""
        try:
            found: dict[str, Any] = json.loads(text)
            load, held = found.pop("load"), found.pop("held")
            failures = tuple((str(what), int(count)) for what, count in load.pop("failures"))
            return cls(
                load=Tally(failures=failures, **load),
                until=Until(**found.pop("until")),
                findings=tuple(found.pop("findings")),
                history=tuple(found.pop("history")),
                process=Identity(**found.pop("process")),
                held=Identity(**held) if held is not None else None,
                **found,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a drill's sheet: {error!r}") from error


def write(folder: Path, sheet: Sheet, *, lasting: bool = False) -> None:
    """Replaces the sheet's file as a whole. `lasting`: it is there after a crash of the machine. Raises OSError."""
    path = path_of(folder, sheet.id)
    staged = path.with_suffix(".new")
    with staged.open("w", encoding="utf-8") as file:
        json.dump(asdict(sheet), file, ensure_ascii=False)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    staged.rename(path)


def read(folder: Path, name: str) -> Sheet | None:
    """None where there is none. Raises OSError, and ValueError for a file that is none."""
    try:
        return Sheet.from_json(path_of(folder, name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name}{SUFFIX}"


def _maybe(wall: float | None) -> str | None:
    return timestamp(wall) if wall is not None else None


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None
