"""The scribe: the loop never waits for it, what failed is written later, and the history is whole meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.memory import Memory, MemoryTrouble, Remembered, Scribe, TooNew
from hasupervisor.memory import scribe as scribe_module
from hasupervisor.memory.database import MIGRATIONS, Batch
from hasupervisor.model import Note, Operation, OperationKind, OperationState, Record, Wants
from hasupervisor.model.gpu import CardRecord
from tests.memory.scribing import NOW, WALL, scribe_at


def note(number: int) -> Note:
    return Note("chatglm-01", "state", f"line {number}")


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"not within 10 s: {what}"
        await asyncio.sleep(0.01)


class Gate(Memory):
    """The real file behind a gate that a test can shut, as a disk that hangs does."""

    open_gate: threading.Event

    def write(self, batch: Batch) -> tuple[str, ...]:
        assert self.open_gate.wait(20)
        return super().write(batch)


def gated(gate: threading.Event) -> Callable[[Path], Memory]:
    def opener(path: Path) -> Memory:
        memory = Gate.open(path)
        assert isinstance(memory, Gate)
        memory.open_gate = gate
        return memory

    return opener


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def test_what_is_said_is_on_disk_once_flushed_and_known_to_the_next_daemon(path: Path) -> None:
    async with scribe_at(path) as (scribe, remembered):
        assert remembered == Remembered()
        scribe.save_wants(Wants(4, mode="manual"))
        scribe.save_records([Record("chatglm-01", 8000, restarts=3)], NOW, WALL)
        scribe.save_operation(Operation("op-1", OperationKind.SCALE, "root (uid 0)", NOW, WALL))
        scribe.note(note(1), WALL)
        assert await scribe.flush(5) is None
        assert scribe.trouble is None
    async with scribe_at(path) as (scribe, remembered):
        assert remembered.wants == Wants(4, mode="manual")
        assert [(record.name, record.restarts) for record in remembered.records] == [("chatglm-01", 3)]
        assert [operation.id for operation in remembered.operations] == ["op-1"]
        scribe.note(note(2), WALL)
        assert [(entry.id, entry.sentence) for entry in await scribe.history(n=10)] == [(1, "line 1"), (2, "line 2")]


async def test_closing_writes_what_was_said_last(path: Path) -> None:
    async with scribe_at(path) as (scribe, _):
        for number in range(50):
            scribe.save_wants(Wants(number))
            scribe.note(note(number), WALL)
    async with scribe_at(path) as (scribe, remembered):
        assert remembered.wants == Wants(49)
        assert len(await scribe.history(n=1000)) == 50


async def test_a_record_that_is_no_longer_there_is_forgotten(path: Path) -> None:
    async with scribe_at(path) as (scribe, _):
        both = [Record("chatglm-01", 8000), Record("chatglm-02", 8001)]
        scribe.save_records(both, NOW, WALL)
        assert await scribe.flush(5) is None
        scribe.save_records(both[:1], NOW, WALL)
    async with scribe_at(path) as (_, remembered):
        assert [record.name for record in remembered.records] == ["chatglm-01"]


async def test_records_that_have_not_changed_are_not_written_again(path: Path) -> None:
    written: list[Batch] = []

    class Counted(Memory):
        def write(self, batch: Batch) -> tuple[str, ...]:
            written.append(batch)
            return super().write(batch)

    async with scribe_at(path, Counted.open) as (scribe, _):
        record = Record("chatglm-01", 8000, restarts=1, failures=(90.0,), parked_at=95.0)
        for second in range(20):
            seen = replace(record, serving_since=float(second), in_rotation=True, acted_at=float(second))
            scribe.save_records([seen, Record("chatglm-02", 8001)], NOW + second, WALL + second)
            assert await scribe.flush(5) is None
        scribe.save_records([replace(record, restarts=2), Record("chatglm-02", 8001)], NOW + 20, WALL + 20)
    names = [[r.name for r in batch.records] for batch in written if batch.records]
    assert names == [["chatglm-01", "chatglm-02"], ["chatglm-01"]]


async def test_a_disk_that_hangs_holds_up_nobody_and_is_a_trouble_in_words(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe_module, "SLOW", 0.2)
    monkeypatch.setattr(scribe_module, "READ_DEADLINE", 0.3)
    gate = threading.Event()
    gate.set()
    async with scribe_at(path, gated(gate)) as (scribe, _):
        gate.clear()
        began = time.monotonic()
        for number in range(1_000):
            scribe.save_wants(Wants(number))
            scribe.note(note(number), WALL)
            scribe.save_records([Record("chatglm-01", 8000, restarts=number)], NOW, WALL)
        assert time.monotonic() - began < 1.0
        await until(lambda: scribe.trouble is not None, "the write is called slow")
        assert scribe.trouble is not None
        assert scribe.trouble.sentence == f"a write to {path} has not ended in 0 s"
        assert await scribe.flush(0.1) == f"a write to {path} has not ended in 0.1 s"
        with pytest.raises(MemoryTrouble, match=r"no answer from the disk of .* in 0.3 s"):
            await scribe.history(n=1)
        gate.set()
        assert await scribe.flush(5) is None
        assert scribe.trouble is None
        assert len(await scribe.history(n=5_000)) == 1_000
    async with scribe_at(path) as (_, remembered):
        assert remembered.wants == Wants(999)


async def test_a_disk_that_hangs_for_good_does_not_hold_up_the_end(path: Path) -> None:
    gate = threading.Event()
    scribe = Scribe(path, opener=gated(gate))
    await scribe.load(NOW, WALL)
    task = asyncio.create_task(scribe.run())
    scribe.save_wants(Wants(1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    began = time.monotonic()
    await scribe.close(timeout=0.2)
    assert time.monotonic() - began < 1.0
    gate.set()  # lets the thread of this test go


async def test_a_write_that_was_cut_off_by_the_end_is_done_once_more_when_closing(path: Path) -> None:
    gate = threading.Event()
    scribe = Scribe(path, opener=gated(gate))
    await scribe.load(NOW, WALL)
    task = asyncio.create_task(scribe.run())
    scribe.save_wants(Wants(7))
    scribe.note(note(1), WALL)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    gate.set()
    await scribe.close()
    async with scribe_at(path) as (scribe, remembered):
        assert remembered.wants == Wants(7)
        assert [entry.sentence for entry in await scribe.history(n=9)] == ["line 1"]


async def test_a_file_that_cannot_be_opened_is_a_trouble_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe_module, "RETRY_FIRST", 0.05)
    path = tmp_path / "later" / "state.db"
    async with scribe_at(path) as (scribe, remembered):
        assert remembered.wants is None
        assert remembered.mishaps == (f"cannot open {path}: No such file or directory",)
        assert scribe.trouble is not None
        assert scribe.trouble.sentence == remembered.mishaps[0]
        scribe.save_wants(Wants(3))
        assert await scribe.flush(1) == remembered.mishaps[0]
        assert [entry.sentence for entry in await scribe.history(n=9)] == [remembered.mishaps[0]]
        path.parent.mkdir()
        await until(lambda: scribe.trouble is None, "the file is opened")
        last = (await scribe.history(n=1))[0].sentence
        assert last.startswith(f"{path} can be written again after ")
    async with scribe_at(path) as (_, remembered):
        assert remembered.wants == Wants(3)


async def test_a_file_that_opens_only_later_keeps_its_own_history_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe_module, "RETRY_FIRST", 0.05)
    path = tmp_path / "state" / "state.db"
    path.parent.mkdir()
    async with scribe_at(path) as (scribe, _):
        for number in range(1, 11):
            scribe.note(note(number), WALL)
        scribe.save_records([Record("chatglm-09", 8009)], NOW, WALL)
        scribe.save_wants(Wants(9))
    path.parent.rename(tmp_path / "away")
    async with scribe_at(path) as (scribe, _):
        scribe.note(note(11), WALL)
        scribe.save_records([Record("chatglm-01", 8000)], NOW, WALL)
        (tmp_path / "away").rename(path.parent)
        await until(lambda: scribe.trouble is None, "the file is opened")
        scribe.note(note(12), WALL)
        entries = await scribe.history(n=100)
        assert [entry.sentence for entry in entries if "line" in entry.sentence] == [f"line {n}" for n in range(1, 13)]
        assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    async with scribe_at(path) as (_, remembered):
        assert remembered.wants == Wants(9), "nobody has wanted anything else meanwhile"
        assert [record.name for record in remembered.records] == ["chatglm-01"]


async def test_a_file_that_was_removed_is_written_anew_with_everything(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe_module, "RETRY_FIRST", 0.05)
    lost = CardRecord("GPU-1", lost_in=("boot-1",))
    async with scribe_at(path) as (scribe, _):
        scribe.save_wants(Wants(6))
        scribe.save_records([Record("chatglm-01", 8000, restarts=5)], NOW, WALL)
        scribe.save_operation(Operation("op-4", OperationKind.SCALE, "root (uid 0)", NOW, WALL))
        scribe.save_cards([lost])
        assert await scribe.flush(5) is None
        for found in list(path.parent.iterdir()):
            found.unlink()
        scribe.note(note(1), WALL)
        await until(lambda: scribe.trouble is not None, "the loss is noticed")
        await until(lambda: scribe.trouble is None, "a new file is begun")
    async with scribe_at(path) as (scribe, remembered):
        assert remembered.wants == Wants(6)
        assert [(r.name, r.restarts) for r in remembered.records] == [("chatglm-01", 5)]
        assert [o.id for o in remembered.operations] == ["op-4"]
        assert remembered.cards == (lost,)
        sentences = [entry.sentence for entry in await scribe.history(n=9)]
        assert sentences[0] == "line 1"
        assert sentences[1] == f"{path} was removed or replaced under the daemon"


@pytest.fixture
def damaged(path: Path) -> Path:
    path.write_bytes(b"nothing of ours" * 999)
    return path


async def test_a_damaged_file_is_said_in_the_history(damaged: Path) -> None:
    async with scribe_at(damaged) as (scribe, remembered):
        (line,) = await scribe.history(n=9)
        assert (line.subject, line.event) == ("daemon", "memory")
        assert (line.sentence,) == remembered.mishaps
        assert "a new memory was begun" in line.sentence


async def test_a_newer_file_refuses_the_start(path: Path) -> None:
    memory = Memory.open(path)
    memory._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    memory.close()
    scribe = Scribe(path)
    with pytest.raises(TooNew, match="a newer one wrote it"):
        await scribe.load(NOW, WALL)
    await scribe.close()


async def test_lines_wait_for_the_disk_up_to_a_bound_and_those_given_up_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe_module, "RETRY_FIRST", 0.05)
    monkeypatch.setattr(scribe_module, "KEEP_WAITING", 10)
    path = tmp_path / "later" / "state.db"
    async with scribe_at(path) as (scribe, _):
        for number in range(30):
            scribe.note(note(number), WALL)
        assert [entry.sentence for entry in await scribe.history(n=99)] == [f"line {n}" for n in range(20, 30)]
        path.parent.mkdir()
        await until(lambda: scribe.trouble is None, "the file is opened")
        assert "21 lines of the history were given up" in (await scribe.history(n=1))[0].sentence


async def test_following_yields_the_newest_lines_then_each_new_one_once(path: Path) -> None:
    async with scribe_at(path) as (scribe, _):
        for number in range(10):
            scribe.note(note(number), WALL)
        assert await scribe.flush(5) is None
        got: list[str] = []

        async def follow() -> None:
            async for entry in scribe.follow(n=3):
                got.append(entry.sentence)

        task = asyncio.create_task(follow())
        await until(lambda: len(got) == 3, "the first lines")
        for number in range(10, 700):
            scribe.note(note(number), WALL)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(got) == 693, "all new lines")
        assert got == [f"line {n}" for n in range(7, 700)]
        task.cancel()
        await asyncio.wait([task])


async def test_following_from_nothing_shows_only_what_is_new(path: Path) -> None:
    async with scribe_at(path) as (scribe, _):
        scribe.note(note(0), WALL)
        follower = scribe.follow(n=0)
        first = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0.05)
        assert not first.done()
        scribe.note(note(1), WALL)
        assert (await asyncio.wait_for(first, 5)).sentence == "line 1"
        await follower.aclose()


async def test_only_the_last_ended_operations_are_held(path: Path) -> None:
    async with scribe_at(path) as (scribe, _):
        running = Operation("op-0", OperationKind.RESTART, "root (uid 0)", NOW, WALL)
        scribe.save_operation(running)
        for number in range(1, 200):
            ended = replace(running, id=f"op-{number}", state=OperationState.DONE, ended_wall=WALL)
            scribe.save_operation(ended)
            if number % 10 == 0:
                assert await scribe.flush(5) is None
        assert len(scribe._operations) <= 62
        assert "op-0" in scribe._operations
