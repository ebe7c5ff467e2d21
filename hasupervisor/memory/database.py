"""Keeps wants, records, operations, history and samples in one SQLite file that no crash leaves half written.

WAL with synchronous=FULL: what `write` has returned from survives a power loss. The file is locked for as long as it
is open, so that nobody else changes it and SQLite needs no shared-memory file beside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from hasupervisor.decide.autoscale.facts import Lesson, Sample
from hasupervisor.memory import cards, lessons, rows, samples
from hasupervisor.memory.rows import Entry, Moment, Row
from hasupervisor.model import Operation, Record, Wants
from hasupervisor.model.gpu import CardRecord

_T = TypeVar("_T")

KEEP_DAYS = 90
KEEP_ENTRIES = 100_000
KEEP_ALWAYS = 1_000  # the newest lines stay whatever their age says: a clock that jumped must not wipe the history
KEEP_OPERATIONS = 50
PRUNE_EVERY = 1_000  # written lines
PRUNE_AT_ONCE = 4 * PRUNE_EVERY

# One tuple of statements a version; PRAGMA user_version counts those that a file has been through. Only ever append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE wants (
            only_one INTEGER PRIMARY KEY CHECK (only_one = 1), desired INTEGER NOT NULL, mode TEXT NOT NULL,
            drained TEXT NOT NULL, pause_by TEXT, pause_since REAL, pause_until REAL, pause_reason TEXT) STRICT""",
        """CREATE TABLE records (
            name TEXT PRIMARY KEY, port INTEGER NOT NULL, restarts INTEGER NOT NULL, failures TEXT NOT NULL,
            failed_at REAL, failed_why TEXT, failed_tail TEXT, retry_at REAL, parked_at REAL, disturbed_at REAL,
            stuck TEXT, ended TEXT, state TEXT NOT NULL, since REAL NOT NULL, saved_at REAL NOT NULL) STRICT""",
        """CREATE TABLE operations (
            number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, by TEXT NOT NULL,
            started REAL NOT NULL, ended REAL, state TEXT NOT NULL, sentence TEXT NOT NULL, targets TEXT NOT NULL,
            total INTEGER NOT NULL, before TEXT NOT NULL) STRICT""",
        """CREATE TABLE history (
            id INTEGER PRIMARY KEY, at REAL NOT NULL, subject TEXT NOT NULL, event TEXT NOT NULL,
            sentence TEXT NOT NULL, by TEXT NOT NULL) STRICT""",
        "CREATE INDEX history_at ON history (at)",
        "CREATE INDEX history_subject ON history (subject, id)",
    ),
    ("ALTER TABLE records ADD COLUMN bad_since REAL",),
    (samples.CREATE,),
    (cards.CREATE,),
    (lessons.CREATE,),
    ("ALTER TABLE samples ADD COLUMN turned_away REAL",),
    (
        "ALTER TABLE records ADD COLUMN proven TEXT",
        "ALTER TABLE records ADD COLUMN serving_since REAL",
        "ALTER TABLE records ADD COLUMN load_s REAL",
    ),
)

_PRAGMAS = (
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "cache_size = -256",  # KiB: the file is read once, at the start, and then only written
    "journal_size_limit = 4194304",
)

_WORDS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_BUSY: "another program holds it",
    sqlite3.SQLITE_NOMEM: "out of memory",
}


class MemoryTrouble(Exception):
    """It cannot be read or written now; later it may. The text says why, `hint` is the next command."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.hint = hint


class MemoryLost(MemoryTrouble):
    """The file is damaged, or somebody has removed it: it has to be opened again and everything saved anew."""


class TooNew(Exception):
    """A newer release has written the file; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the file knew at the start; `mishaps` are sentences about what it no longer knew."""

    wants: Wants | None = None
    records: tuple[Record, ...] = ()
    operations: tuple[Operation, ...] = ()  # the oldest first
    cards: tuple[CardRecord, ...] = ()
    lessons: tuple[Lesson, ...] = ()  # the oldest first
    mishaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written in one transaction."""

    moment: Moment
    wants: Wants | None = None
    records: tuple[Record, ...] = ()
    forgotten: tuple[str, ...] = ()  # names whose record ends
    all_records: bool = False  # `records` are all there are: whatever else the file has is forgotten
    operations: tuple[Operation, ...] = ()
    entries: tuple[Entry, ...] = ()
    samples: tuple[Sample, ...] = ()
    cards: tuple[CardRecord, ...] = ()
    blank_cards: tuple[str, ...] = ()  # UUIDs of which there is nothing to remember any more
    lessons: tuple[Lesson, ...] | None = None  # all there are; None: they have not changed


class Memory:
    """The open file. Synchronous, for one thread; every failure is a MemoryTrouble."""

    def __init__(self, path: Path, connection: sqlite3.Connection, mishap: str | None) -> None:
        self.path = path
        self.mishap = mishap  # what had to be done to open it, for people; None: nothing
        self._connection = connection
        self._inode = _inode(path)
        self._written_since_prune = PRUNE_EVERY  # a daemon that is restarted often prunes too

    @classmethod
    def open(cls, path: Path) -> Memory:
        """Opens or begins the file. A damaged one is set aside under another name, nothing of it is deleted.

        Raises MemoryTrouble (cannot be opened now) and TooNew.
        """
        try:
            return cls(path, _connect(path), None)
        except MemoryLost as damage:
            kept = _set_aside(path)
            mishap = f"{damage}; it is kept as {kept}, and a new memory was begun"
            return cls(path, _connect(path), mishap)

    def load(self, moment: Moment) -> Remembered:
        """Everything but the history, with its times on the clock of `moment`."""
        with self._guard("read"):
            wants = self._connection.execute("SELECT * FROM wants").fetchall()
            records = self._connection.execute("SELECT * FROM records ORDER BY name").fetchall()
            kept = "SELECT * FROM operations WHERE ended IS NULL OR number > (SELECT max(number) FROM operations) - ?"
            operations = self._connection.execute(f"{kept} ORDER BY number", (KEEP_OPERATIONS,)).fetchall()
            gpus = self._connection.execute("SELECT * FROM cards ORDER BY uuid").fetchall()
            learned = self._connection.execute("SELECT * FROM lessons ORDER BY at, serving").fetchall()
        mishaps = [] if self.mishap is None else [self.mishap]
        wanted = [_read("wanted state", partial(rows.wants_of, row), mishaps) for row in wants]
        held = [_read(f"record of {r['name']}", partial(rows.record_of, r, moment), mishaps) for r in records]
        begun = [_read(f"operation {o['id']}", partial(rows.operation_of, o, moment), mishaps) for o in operations]
        marked = [_read(f"record of GPU {gpu['uuid']}", partial(cards.card_of, gpu), mishaps) for gpu in gpus]
        taught = [_read("lesson of the autoscaler", partial(lessons.lesson_of, it, moment), mishaps) for it in learned]
        return Remembered(
            wants=wanted[0] if wanted else None,
            records=tuple(record for record in held if record is not None),
            operations=tuple(operation for operation in begun if operation is not None),
            cards=tuple(card for card in marked if card is not None),
            lessons=tuple(lesson for lesson in taught if lesson is not None),
            mishaps=tuple(mishaps),
        )

    def write(self, batch: Batch) -> tuple[str, ...]:
        """Writes all of it or, with MemoryTrouble, nothing.

        Returns what could not be written for ever (a value that does not fit its column): a defect of ours that must
        not hold up the rest.
        """
        if _inode(self.path) != self._inode:
            raise MemoryLost(f"{self.path} was removed or replaced under the daemon", f"ls -li {self.path.parent}")
        defects: list[str] = []
        with self._guard("write"), self._transaction():
            if batch.wants is not None:
                self._put("wants", {"only_one": 1, **rows.wants_row(batch.wants)}, "only_one", defects)
            if batch.all_records:
                self._connection.execute("DELETE FROM records")
            for record in batch.records:
                self._put("records", rows.record_row(record, batch.moment), "name", defects)
            for name in batch.forgotten:
                self._connection.execute("DELETE FROM records WHERE name = ?", (_clean(name),))
            for operation in batch.operations:
                self._put("operations", rows.operation_row(operation), "id", defects)
            for card in batch.cards:
                self._put("cards", cards.card_row(card), "uuid", defects)
            for uuid in batch.blank_cards:
                self._connection.execute("DELETE FROM cards WHERE uuid = ?", (_clean(uuid),))
            for entry in batch.entries:
                self._put("history", rows.entry_row(entry), "id", defects)
            if batch.lessons is not None:
                self._connection.execute("DELETE FROM lessons")
                for lesson in batch.lessons:
                    self._put("lessons", lessons.lesson_row(lesson, batch.moment), "serving", defects)
            self._prune(len(batch.entries), batch.moment.wall)
            samples.write(self._connection, batch.samples, batch.moment)
        return tuple(defects)

    def last_id(self) -> int:
        """The id of the newest line of the history, 0 if there is none."""
        with self._guard("read"):
            row = self._connection.execute("SELECT max(id) FROM history").fetchone()
        return int(row[0] or 0)

    def history(
        self, *, n: int, since_wall: float | None = None, subject: str | None = None, after_id: int | None = None
    ) -> list[Entry]:
        """Oldest first: the newest `n` lines, or with `after_id` the first `n` that came after it."""
        order = "DESC" if after_id is None else "ASC"
        query = f"""SELECT * FROM history
            WHERE (:since IS NULL OR at >= :since) AND (:subject IS NULL OR subject = :subject)
              AND (:after IS NULL OR id > :after)
            ORDER BY id {order} LIMIT :n"""
        values = {"since": since_wall, "subject": _clean(subject), "after": after_id, "n": n}
        with self._guard("read"):
            found = [rows.entry_of(row) for row in self._connection.execute(query, values)]
        return found if after_id is not None else found[::-1]

    def samples(self, since_wall: float, moment: Moment) -> list[Sample]:
        """What was sampled since then, the oldest first, on the clock of `moment`."""
        with self._guard("read"):
            return samples.read(self._connection, since_wall, moment)

    def close(self) -> None:
        with self._guard("close"):
            self._connection.close()

    def _put(self, table: str, row: Row, unique: str, defects: list[str]) -> None:
        names = list(row)
        changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != unique)
        statement = (
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)}) "
            f"ON CONFLICT ({unique}) DO UPDATE SET {changes}"
        )
        try:
            self._connection.execute(statement, {name: _clean(value) for name, value in row.items()})
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError) as error:
            defects.append(f"{table} {row[unique]}: {error}")

    def _prune(self, written: int, wall: float) -> None:
        self._written_since_prune += written
        if self._written_since_prune < PRUNE_EVERY:
            return
        self._written_since_prune = 0
        newest = int(self._connection.execute("SELECT max(id) FROM history").fetchone()[0] or 0)
        self._connection.execute(
            """DELETE FROM history WHERE id IN (
                SELECT id FROM history WHERE id <= ? OR (at < ? AND id <= ?) ORDER BY id LIMIT ?)""",
            (newest - KEEP_ENTRIES, wall - KEEP_DAYS * 86400, newest - KEEP_ALWAYS, PRUNE_AT_ONCE),
        )
        self._connection.execute(
            """DELETE FROM operations WHERE ended IS NOT NULL AND number <= (SELECT max(number) FROM operations) - ?""",
            (KEEP_OPERATIONS,),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _trouble(self.path, doing, error) from error


def _read(what: str, of: Callable[[], _T], mishaps: list[str]) -> _T | None:
    """One row. What is not as we write it is left out and said; the other rows count."""
    try:
        return of()
    except (ValueError, TypeError) as error:
        mishaps.append(f"the {what} cannot be read and is forgotten: {error}")
        return None


def read_copy(path: Path, moment: Moment) -> tuple[Remembered, int]:
    """What a file knows that cannot be opened for writing (its disk is full or read-only), and its last_id.

    SQLite needs to write beside a file that it reads, so a copy is read. Raises MemoryTrouble.
    """
    try:
        with tempfile.TemporaryDirectory(dir=_roomy()) as folder:
            copy = Path(folder) / path.name
            for suffix in ("-wal", ""):
                part = path.with_name(path.name + suffix)
                if part.exists() or not suffix:
                    shutil.copyfile(part, copy.with_name(copy.name + suffix))
            memory = Memory.open(copy)
            try:
                return memory.load(moment), memory.last_id()
            finally:
                memory.close()
    except OSError as error:
        raise MemoryTrouble(f"cannot read {path}: {error.strerror}", f"ls -ld {path.parent} {path}") from error


def _roomy() -> str | None:
    """Memory before disk: the disk may be what is full."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _connect(path: Path) -> sqlite3.Connection:
    """Raises MemoryTrouble, MemoryLost where the file is damaged, TooNew."""
    _touch(path)
    connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise MemoryLost(f"{path} is damaged ({found})", f"ls -l {path.parent}")
        _migrate(path, connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _trouble(path, "open", error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise TooNew(
            f"{path} has the format {version}, and this release knows up to {len(MIGRATIONS)}: a newer one wrote it. "
            f"Install that release again, or let this one begin anew: mv {path} {path}.newer"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        for statement in MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")


def _touch(path: Path) -> None:
    """Makes the file readable for its owner alone: the last output of an instance may hold a user's prompt."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise MemoryTrouble(f"cannot open {path}: {error.strerror}", f"ls -ld {path.parent} {path}") from error


def _set_aside(path: Path) -> Path:
    """Renames the damaged file and its WAL, the WAL first: alone it would be played into the new file."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.corrupt-{stamp}.{number}")
    try:
        for suffix in ("-wal", "-shm", ""):
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.rename(kept.with_name(kept.name + suffix))
    except OSError as error:
        raise MemoryTrouble(
            f"{path} is damaged and cannot be renamed: {error.strerror}", f"ls -ld {path.parent}"
        ) from error
    return kept


def _trouble(path: Path, doing: str, error: sqlite3.DatabaseError) -> MemoryTrouble:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (code == sqlite3.SQLITE_ERROR and doing == "open"):
        return MemoryLost(f"{path} is damaged ({error})", f"ls -l {path.parent}")
    why = _WORDS.get(code, str(error))
    return MemoryTrouble(f"cannot {doing} {path}: {why}", f"df -h {path.parent}; ls -l {path}")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _clean(value: rows.Value) -> rows.Value:
    """SQLite takes UTF-8; half a surrogate pair, as in a name that was no text, is not."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
