"""Writes to the memory in the background: the loop says what is new and never waits for a disk.

What is wanted and remembered is kept whole here, so that a write that failed is simply done later with what holds by
then; only the lines of the history queue up, and to a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from hasupervisor.decide.autoscale.facts import Lesson, Sample
from hasupervisor.memory import cards
from hasupervisor.memory.database import Batch, Memory, MemoryLost, MemoryTrouble, Remembered, TooNew
from hasupervisor.memory.file import File, Written
from hasupervisor.memory.rows import Entry, Moment, lasting
from hasupervisor.memory.thread import CallThread
from hasupervisor.model import Note, Operation, OperationState, Record, Wants
from hasupervisor.model.gpu import CardRecord

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

KEEP_WAITING = 10_000
"""Lines of the history that wait for the disk at most; then the oldest of them are given up, and counted."""

SAMPLES_AT_ONCE = 6
"""Samples that wait for one another, unless something else is written anyway: a crash may lose a minute of them."""

KEEP_SAMPLES_WAITING = 1_000
KEEP_ENDED = 50
RETRY_FIRST, RETRY_MOST = 1.0, 30.0
SLOW = 5.0
"""Seconds after which a write that has not ended is a trouble."""

READ_DEADLINE = 5.0
LOAD_DEADLINE = 30.0
"""Starting without what was known costs more than starting late: the file is checked whole, the disk may be busy."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why what is new does not reach the disk."""

    sentence: str
    hint: str  # the next command
    since: float  # monotonic


class Scribe:
    """The memory as the loop sees it. All of it belongs to one event loop; only the file is touched in a thread."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        opener: Callable[[Path], Memory] = Memory.open,
    ) -> None:
        self._path = path
        self._clock, self._wall = clock, wall
        self._file = File(path, opener)
        self._thread = CallThread("memory")
        self._moment = Moment(clock(), wall())
        self._wants: Wants | None = None
        self._records: dict[str, Record] = {}
        self._operations: dict[str, Operation] = {}
        self._cards: dict[str, CardRecord] = {}  # those with something to remember
        self._lessons: tuple[Lesson, ...] = ()
        self._changed = _Changed()
        self._waiting: deque[Entry] = deque()
        self._given_up = 0
        self._samples: deque[Sample] = deque(maxlen=KEEP_SAMPLES_WAITING)
        self._next_id = 1
        self._trouble: Trouble | None = None
        self._writing_since: float | None = None
        self._asked = self._written = 0  # how many changes there were, and how many of them are on disk
        self._something = asyncio.Event()
        self._ended = asyncio.Event()  # replaced each time a write ends, well or not
        self._news = asyncio.Event()  # replaced each time a line is added to the history

    @property
    def trouble(self) -> Trouble | None:
        """Why what is new does not reach the disk, or None."""
        since = self._writing_since
        if self._trouble is None and since is not None and self._clock() - since > SLOW:
            sentence = f"a write to {self._path} has not ended in {self._clock() - since:.0f} s"
            return Trouble(sentence, f"df -h {self._path.parent}", since)
        return self._trouble

    async def load(self, now: float, now_wall: float) -> Remembered:
        """What was known before. Where the file cannot be read, nothing is, `mishaps` says why and `run` tries again.

        Raises TooNew. Waits LOAD_DEADLINE at most.
        """
        self._moment = Moment(now, now_wall)
        trouble: MemoryTrouble | None
        try:
            remembered, last_id, trouble = await self._call(partial(self._file.load, self._moment), LOAD_DEADLINE)
        except MemoryTrouble as error:
            remembered, last_id, trouble = Remembered(), 0, error
        self._next_id = last_id + 1
        self._wants = remembered.wants
        self._records = {record.name: record for record in remembered.records}
        self._operations = {operation.id: operation for operation in remembered.operations}
        self._cards = {card.uuid: card for card in remembered.cards}
        self._lessons = remembered.lessons
        for mishap in remembered.mishaps:
            log.warning(mishap)
            self.note(Note("daemon", "memory", mishap), now_wall)
        if trouble is not None:
            self._changed.whole = True
            self._failed(trouble)
            remembered = replace(remembered, mishaps=(*remembered.mishaps, str(trouble)))
        return remembered

    # --- what is new: each returns at once ----------------------------------------------------------------------------

    def save_wants(self, wants: Wants) -> None:
        if wants != self._wants:
            self._wants = wants
            self._changed.wants = True
            self._ask()

    def save_records(self, records: Iterable[Record], now: float, now_wall: float) -> None:
        """All records there are: one that is not among them any more is forgotten. Unchanged ones cost nothing."""
        self._moment = Moment(now, now_wall)
        new = {record.name: lasting(record) for record in records}
        changed = {name for name, record in new.items() if self._records.get(name) != record}
        changed |= self._records.keys() - new.keys()
        if changed:
            self._changed.records |= changed
            self._records = new
            self._ask()

    def save_operation(self, operation: Operation) -> None:
        self._operations[operation.id] = operation
        self._changed.operations.add(operation.id)
        ended = [o.id for o in self._operations.values() if o.state is not OperationState.RUNNING]
        for old in ended[:-KEEP_ENDED]:
            if old not in self._changed.operations:
                del self._operations[old]
        self._ask()

    def save_cards(self, records: Iterable[CardRecord]) -> None:
        """Records of GPUs; those not named stay as they are. Unchanged ones cost nothing."""
        for record in records:
            new = None if cards.is_blank(record) else cards.lasting(record)
            if self._cards.get(record.uuid) == new:
                continue
            if new is None:
                del self._cards[record.uuid]
            else:
                self._cards[record.uuid] = new
            self._changed.cards.add(record.uuid)
            self._ask()

    def save_lessons(self, lessons: tuple[Lesson, ...], now: float, now_wall: float) -> None:
        """All that the autoscaler has learned."""
        self._moment = Moment(now, now_wall)
        if lessons != self._lessons:
            self._lessons = lessons
            self._changed.lessons = True
            self._ask()

    def note(self, note: Note, at_wall: float) -> None:
        """A line for the history."""
        entry = Entry(self._next_id, at_wall, note.subject, note.event, note.sentence, note.by)
        self._next_id += 1
        self._waiting.append(entry)
        if len(self._waiting) > KEEP_WAITING:
            self._waiting.popleft()
            self._given_up += 1
        self._ask()
        self._news.set()
        self._news = asyncio.Event()

    def save_sample(self, sample: Sample, now: float, now_wall: float) -> None:
        """One period of load; it is written with whatever is written next, or once there are enough of them."""
        self._moment = Moment(now, now_wall)
        self._samples.append(sample)
        if len(self._samples) % SAMPLES_AT_ONCE == 0:
            self._ask()

    async def samples(self, since_wall: float) -> list[Sample]:
        """What was sampled since then, the oldest first, also what still waits for the disk. Raises MemoryTrouble."""
        moment = Moment(self._clock(), self._wall())
        written = await self._call(partial(self._file.samples, since_wall, moment), READ_DEADLINE)
        last = written[-1].at if written else moment.now - (moment.wall - since_wall)
        return [*written, *(sample for sample in self._samples if sample.at > last + 0.001)]

    # --- the history --------------------------------------------------------------------------------------------------

    async def history(
        self, *, n: int, since_wall: float | None = None, subject: str | None = None, after_id: int | None = None
    ) -> list[Entry]:
        """Oldest first: the newest `n` lines, or with `after_id` the first `n` that came after it.

        Lines that still wait for the disk are among them. Raises MemoryTrouble.
        """
        ask = partial(self._file.history, n=n, since_wall=since_wall, subject=subject, after_id=after_id)
        written = await self._call(ask, READ_DEADLINE)
        if after_id is not None and len(written) >= n:
            return written
        newest = written[-1].id if written else (after_id or 0)
        waiting = [
            entry
            for entry in self._waiting
            if entry.id > newest
            and (since_wall is None or entry.at_wall >= since_wall)
            and (subject is None or entry.subject == subject)
        ]
        both = [*written, *waiting]
        return both[:n] if after_id is not None else both[max(0, len(both) - n) :]

    async def follow(self, *, n: int, since_wall: float | None = None) -> AsyncGenerator[Entry, None]:
        """The newest `n` lines, then each new one as it comes, without end. Raises MemoryTrouble."""
        last = self._next_id - 1
        for entry in await self.history(n=n, since_wall=since_wall):
            last = max(last, entry.id)
            yield entry
        while True:
            news = self._news
            for entry in await self.history(n=500, after_id=last):
                last = entry.id
                yield entry
            if self._next_id - 1 <= last:
                await news.wait()

    # --- the writing --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes what is new until cancelled; a failure is kept in `trouble` and tried again, later and later."""
        wait = RETRY_FIRST
        while True:
            await self._something.wait()
            self._something.clear()
            if await self._write():
                wait = RETRY_FIRST
                continue
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_MOST)
            self._something.set()

    async def flush(self, timeout: float) -> str | None:
        """Waits until everything said so far is on disk: None. Otherwise the sentence why it is not (yet).

        `run` has to be running.
        """
        asked = self._asked
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._written < asked and self._trouble is None:
                    await self._ended.wait()
        if self._written >= asked:
            return None
        return self._trouble.sentence if self._trouble else f"a write to {self._path} has not ended in {timeout:g} s"

    async def close(self, timeout: float = 2.0) -> None:
        """Writes what is left, within `timeout` seconds, and lets the file go. `run` must have ended."""
        try:
            async with asyncio.timeout(timeout):
                if (self._samples or self._asked > self._written) and not await self._write():
                    log.warning("the last changes are not saved", why=self._trouble.sentence if self._trouble else "")
                await self._call(self._file.close, None)
        except (TimeoutError, MemoryTrouble) as error:
            log.warning("the memory was let go as it is", why=str(error) or f"no end in {timeout:g} s")
        self._thread.end()

    async def _write(self) -> bool:
        asked, batch, changed = self._asked, self._batch(), self._changed
        self._changed = _Changed()
        self._writing_since = self._clock()
        written: Written | None = None
        try:
            written = await self._call(partial(self._file.write, batch), None)
        except (MemoryTrouble, TooNew) as trouble:
            self._failed(trouble)
            if isinstance(trouble, MemoryLost):
                changed = self._everything()
        except Exception as error:
            log.exception("BUG: the memory could not be written")
            self._failed(MemoryTrouble(f"cannot write {self._path}: {error}", "journalctl -u chatglm-ha"))
        finally:
            self._writing_since = None
            if written is None:  # also when cancelled: writing it twice does no harm
                self._changed.add(changed)
        if written is not None:
            self._wrote(batch, written, asked)
        self._ended.set()
        self._ended = asyncio.Event()
        return written is not None

    def _batch(self) -> Batch:
        changed = self._changed
        return Batch(
            moment=self._moment,
            wants=self._wants if changed.wants else None,
            records=tuple(self._records[name] for name in sorted(changed.records & self._records.keys())),
            forgotten=tuple(sorted(changed.records - self._records.keys())),
            all_records=changed.whole,
            operations=tuple(o for o in self._operations.values() if o.id in changed.operations),
            entries=tuple(self._waiting),
            samples=tuple(self._samples),
            cards=tuple(self._cards[uuid] for uuid in sorted(changed.cards & self._cards.keys())),
            blank_cards=tuple(sorted(changed.cards - self._cards.keys())),
            lessons=self._lessons if changed.lessons else None,
        )

    def _wrote(self, batch: Batch, written: Written, asked: int) -> None:
        self._written = max(self._written, asked)
        for _ in batch.samples:
            self._samples.popleft()
        last = batch.entries[-1].id if batch.entries else 0
        while self._waiting and self._waiting[0].id <= last:
            self._waiting.popleft()
        self._waiting = deque(replace(entry, id=entry.id + written.shift) for entry in self._waiting)
        self._next_id += written.shift
        for defect in written.defects:
            log.error("BUG: a value does not fit its column and is left out", what=defect)
        if written.mishap is not None:
            log.warning(written.mishap)
            self.note(Note("daemon", "memory", written.mishap), self._wall())
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            lost = f", {self._given_up} lines of the history were given up" if self._given_up else ""
            sentence = f"{self._path} can be written again after {self._clock() - trouble.since:.0f} s{lost}"
            self._given_up = 0
            log.warning(sentence)
            self.note(Note("daemon", "memory", sentence), self._wall())

    def _failed(self, trouble: MemoryTrouble | TooNew) -> None:
        before, sentence = self._trouble, str(trouble)
        hint = trouble.hint if isinstance(trouble, MemoryTrouble) else f"ls -l {self._path.parent}"
        self._trouble = Trouble(sentence, hint, before.since if before is not None else self._clock())
        if before is None or before.sentence != sentence:
            log.warning(sentence, hint=hint)
            self.note(Note("daemon", "memory", sentence), self._wall())

    def _everything(self) -> _Changed:
        return _Changed(
            wants=self._wants is not None,
            records=set(self._records),
            operations=set(self._operations),
            cards=set(self._cards),
            lessons=True,
            whole=True,
        )

    def _ask(self) -> None:
        self._asked += 1
        self._something.set()

    async def _call(self, work: Callable[[], _T], timeout: float | None) -> _T:
        try:
            return await self._thread.call(work, timeout)
        except TimeoutError as error:
            sentence = f"no answer from the disk of {self._path} in {timeout:g} s"
            raise MemoryTrouble(sentence, f"df -h {self._path.parent}") from error


@dataclass
class _Changed:
    """What is not on disk yet."""

    wants: bool = False
    records: set[str] = field(default_factory=set)
    operations: set[str] = field(default_factory=set)
    cards: set[str] = field(default_factory=set)
    lessons: bool = False
    whole: bool = False  # the file may hold records that nobody has read

    def add(self, other: _Changed) -> None:
        self.wants |= other.wants
        self.records |= other.records
        self.operations |= other.operations
        self.cards |= other.cards
        self.lessons |= other.lessons
        self.whole |= other.whole
