"""The file: one transaction for one batch, damaged files set aside, newer ones refused, old lines pruned."""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.memory.database import (
    KEEP_ALWAYS,
    KEEP_DAYS,
    KEEP_ENTRIES,
    KEEP_OPERATIONS,
    MIGRATIONS,
    PRUNE_EVERY,
    Batch,
    Memory,
    MemoryLost,
    MemoryTrouble,
    TooNew,
)
from hasupervisor.memory.rows import Entry, Moment
from hasupervisor.model import Failure, Operation, OperationKind, OperationState, Record, State, Wants

MOMENT = Moment(now=100.0, wall=1_800_000_000.0)


def entry(number: int, at: float = MOMENT.wall, subject: str = "chatglm-01") -> Entry:
    return Entry(number, at, subject, "state", f"line {number}", "chatglm-ha")


def operation(number: int, state: OperationState = OperationState.DONE) -> Operation:
    ended = None if state is OperationState.RUNNING else MOMENT.wall
    return Operation(
        f"op-{number}", OperationKind.SCALE, "root (uid 0)", 50.0, MOMENT.wall - 50, state=state, ended_wall=ended
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_what_was_written_is_there_after_the_file_was_closed(path: Path) -> None:
    wants = Wants(desired=4, mode="manual", drained=frozenset({"chatglm-03"}))
    failure = Failure(90.0, MOMENT.wall - 10, "exited 1", "last words\n最后")
    record = Record("chatglm-01", 8000, restarts=2, failures=(90.0,), last_failure=failure, ended="4711@3")
    memory = Memory.open(path)
    memory.write(
        Batch(MOMENT, wants, (record,), operations=(operation(1),), entries=(entry(1), entry(2, subject="op-1")))
    )
    memory.close()
    memory = Memory.open(path)
    found = memory.load(MOMENT)
    assert (found.wants, found.records, found.operations, found.mishaps) == (wants, (record,), (operation(1),), ())
    assert memory.history(n=10) == [entry(1), entry(2, subject="op-1")]
    assert memory.last_id() == 2
    memory.close()


def test_an_empty_memory_knows_nothing_and_says_no_more(path: Path) -> None:
    found = Memory.open(path).load(MOMENT)
    assert (found.wants, found.records, found.operations, found.mishaps) == (None, (), (), ())


def test_a_forgotten_record_is_gone_and_a_whole_set_replaces_all(path: Path) -> None:
    memory = Memory.open(path)
    memory.write(Batch(MOMENT, records=tuple(Record(f"chatglm-0{n}", 8000 + n) for n in range(1, 5))))
    memory.write(Batch(MOMENT, forgotten=("chatglm-02",)))
    assert [record.name for record in memory.load(MOMENT).records] == ["chatglm-01", "chatglm-03", "chatglm-04"]
    memory.write(Batch(MOMENT, records=(Record("chatglm-09", 8009),), all_records=True))
    assert [record.name for record in memory.load(MOMENT).records] == ["chatglm-09"]


def test_nobody_else_may_read_the_file(path: Path) -> None:
    before = os.umask(0)
    try:
        memory = Memory.open(path)
        memory.write(Batch(MOMENT, Wants(1)))
    finally:
        os.umask(before)
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600}
    memory.close()


def test_the_history_can_be_asked_by_age_subject_and_number(path: Path) -> None:
    memory = Memory.open(path)
    lines = tuple(entry(n, MOMENT.wall + n, subject=f"chatglm-0{n % 2}") for n in range(1, 21))
    memory.write(Batch(MOMENT, entries=lines))
    assert memory.history(n=3) == list(lines[-3:])
    assert memory.history(n=100, since_wall=MOMENT.wall + 18) == list(lines[17:])
    assert memory.history(n=2, subject="chatglm-01") == [lines[16], lines[18]]
    assert memory.history(n=2, after_id=5) == list(lines[5:7])
    assert memory.history(n=0) == []


def test_a_value_that_fits_no_column_does_not_hold_up_the_rest(path: Path) -> None:
    memory = Memory.open(path)
    impossible = replace(entry(1), at_wall=float("nan"))  # SQLite makes NaN into NULL
    too_big = Record("chatglm-02", 2**70)
    defects = memory.write(
        Batch(MOMENT, Wants(3), (too_big, Record("chatglm-01", 8000)), entries=(impossible, entry(2)))
    )
    assert [defect.split(":")[0] for defect in defects] == ["records chatglm-02", "history 1"]
    found = memory.load(MOMENT)
    assert found.wants == Wants(3)
    assert [record.name for record in found.records] == ["chatglm-01"]
    assert memory.history(n=5) == [entry(2)]


def test_text_that_is_no_unicode_is_kept_as_well_as_it_can_be(path: Path) -> None:
    memory = Memory.open(path)
    assert memory.write(Batch(MOMENT, entries=(replace(entry(1), sentence="name \udcff\x00 odd"),))) == ()
    assert memory.history(n=1)[0].sentence == "name ?\x00 odd"


def test_a_row_that_somebody_has_spoiled_is_said_and_the_others_count(path: Path) -> None:
    memory = Memory.open(path)
    memory.write(Batch(MOMENT, Wants(2), (Record("chatglm-01", 8000), Record("chatglm-02", 8001))))
    memory.close()
    with sqlite3.connect(path) as by_hand:
        by_hand.execute("UPDATE records SET state = 'asleep' WHERE name = 'chatglm-01'")
    by_hand.close()
    found = Memory.open(path).load(MOMENT)
    assert [record.name for record in found.records] == ["chatglm-02"]
    assert found.mishaps == ("the record of chatglm-01 cannot be read and is forgotten: 'asleep' is not a valid State",)


@pytest.mark.parametrize("damage", ["no database", "a page", "cut short", "another program's"])
def test_a_damaged_file_is_set_aside_whole_and_a_new_one_begun(path: Path, damage: str) -> None:
    memory = Memory.open(path)
    memory.write(Batch(MOMENT, Wants(5), entries=tuple(entry(n) for n in range(1, 2_000))))
    memory.close()
    whole = path.read_bytes()
    match damage:
        case "no database":
            path.write_bytes(b"once upon a time\n" * 1000)
        case "a page":
            path.write_bytes(whole[:4096] + os.urandom(8192) + whole[4096 + 8192 :])
        case "cut short":
            path.write_bytes(whole[: len(whole) // 2])
        case _:
            path.unlink()
            with sqlite3.connect(path) as theirs:
                theirs.execute("CREATE TABLE wants (pony TEXT)")
                theirs.execute("INSERT INTO wants VALUES ('black')")
            theirs.close()
    before = path.read_bytes()
    memory = Memory.open(path)
    (kept,) = path.parent.glob("state.db.corrupt-*")
    if damage == "another program's":
        with sqlite3.connect(kept) as theirs:
            assert theirs.execute("SELECT pony FROM wants").fetchall() == [("black",)]
        theirs.close()
    else:
        assert kept.read_bytes() == before
    found = memory.load(MOMENT)
    assert found.wants is None
    assert found.mishaps == (memory.mishap,)
    assert memory.mishap is not None
    assert memory.mishap.startswith(f"{path} is damaged (")
    assert memory.mishap.endswith(f"); it is kept as {kept}, and a new memory was begun")
    memory.write(Batch(MOMENT, Wants(2)))
    memory.close()
    assert Memory.open(path).load(MOMENT).wants == Wants(2)


def test_two_damaged_files_in_one_second_are_both_kept(path: Path) -> None:
    for content in (b"first" * 1000, b"second" * 1000):
        path.write_bytes(content)
        Memory.open(path).close()
        path.unlink()
    kept = sorted(found.read_bytes()[:6] for found in path.parent.glob("state.db.corrupt-*"))
    assert kept == [b"firstf", b"second"]


def test_a_file_of_a_newer_release_is_refused_with_the_way_out_and_left_alone(path: Path) -> None:
    Memory.open(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 2}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(TooNew) as refusal:
        Memory.open(path)
    assert f"has the format {len(MIGRATIONS) + 2}, and this release knows up to {len(MIGRATIONS)}" in str(refusal.value)
    assert f"mv {path} {path}.newer" in str(refusal.value)
    assert path.read_bytes() == before
    assert sorted(found.name for found in path.parent.iterdir()) == ["state.db"]


def test_a_file_of_any_older_release_is_brought_up_to_date_with_what_it_knows(path: Path) -> None:
    for version in range(1, len(MIGRATIONS)):
        with sqlite3.connect(path) as older:
            for statements in MIGRATIONS[:version]:
                for statement in statements:
                    older.execute(statement)
            older.execute(
                """INSERT INTO records (name, port, restarts, failures, state, since, saved_at)
                VALUES ('chatglm-01', 8000, 7, '[]', 'serving', 1.0, 2.0)"""
            )
            older.execute(f"PRAGMA user_version = {version}")
        older.close()
        memory = Memory.open(path)
        assert memory.mishap is None
        assert [record.restarts for record in memory.load(MOMENT).records] == [7]
        memory.write(Batch(MOMENT, records=(Record("chatglm-02", 8001, bad_since=90.0, disturbed_at=95.0),)))
        assert memory.load(MOMENT).records[1].bad_since == pytest.approx(90.0)
        memory.close()
        path.unlink()


def test_a_second_program_on_the_file_is_told_that_another_holds_it(path: Path) -> None:
    memory = Memory.open(path)
    memory.write(Batch(MOMENT, Wants(1)))
    with pytest.raises(MemoryTrouble, match="another program holds it"):
        Memory.open(path)
    memory.write(Batch(MOMENT, Wants(2)))
    memory.close()


def test_a_file_in_a_folder_that_does_not_exist_is_a_trouble(tmp_path: Path) -> None:
    with pytest.raises(MemoryTrouble, match=r"cannot open .*: No such file or directory") as trouble:
        Memory.open(tmp_path / "nowhere" / "state.db")
    assert trouble.value.hint == f"ls -ld {tmp_path / 'nowhere'} {tmp_path / 'nowhere' / 'state.db'}"


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_was_removed_under_the_daemon_is_noticed_by_the_next_write(path: Path, how: str) -> None:
    memory = Memory.open(path)
    memory.write(Batch(MOMENT, Wants(1)))
    path.unlink()
    if how == "replaced":
        path.write_bytes(b"")
    with pytest.raises(MemoryLost, match="was removed or replaced under the daemon"):
        memory.write(Batch(MOMENT, Wants(2)))


def test_old_lines_are_pruned_by_number_and_by_age_and_the_newest_stay(path: Path) -> None:
    memory = Memory.open(path)
    old = MOMENT.wall - (KEEP_DAYS + 1) * 86400
    memory.write(Batch(MOMENT, entries=tuple(entry(n, old) for n in range(1, PRUNE_EVERY + 1))))
    assert len(memory.history(n=10**6)) == PRUNE_EVERY, "all are old, but the newest stay whatever their age"
    memory.write(Batch(MOMENT, entries=tuple(entry(n) for n in range(1001, 1501))))
    memory.write(Batch(MOMENT, entries=tuple(entry(n) for n in range(1501, 2001))))
    assert memory.history(n=10**6)[0].id == 2000 - KEEP_ALWAYS + 1
    far = 2000 + KEEP_ENTRIES
    memory.write(Batch(MOMENT, entries=tuple(entry(n) for n in range(far, far + PRUNE_EVERY))))
    assert [e.id for e in memory.history(n=10**6)] == list(range(far, far + PRUNE_EVERY))


def test_of_ended_operations_the_newest_are_kept_and_a_running_one_always(path: Path) -> None:
    memory = Memory.open(path)
    first = operation(0, OperationState.RUNNING)
    memory.write(Batch(MOMENT, operations=(first, *(operation(n) for n in range(1, 200)))))
    memory.write(Batch(MOMENT, entries=tuple(entry(n) for n in range(1, PRUNE_EVERY + 1))))
    numbers = [o.id for o in memory.load(MOMENT).operations]
    assert numbers[0] == "op-0"
    assert numbers[1:] == [f"op-{n}" for n in range(200 - KEEP_OPERATIONS, 200)]


def test_an_operation_that_moves_keeps_its_place(path: Path) -> None:
    memory = Memory.open(path)
    memory.write(Batch(MOMENT, operations=(operation(1, OperationState.RUNNING), operation(2))))
    memory.write(Batch(MOMENT, operations=(operation(1),)))
    assert memory.load(MOMENT).operations == (operation(1), operation(2))


def test_the_file_does_not_grow_when_the_same_things_change_again_and_again(path: Path) -> None:
    memory = Memory.open(path)
    record = Record("chatglm-01", 8000, state=State.SERVING)
    sizes = []
    for _ in range(3):
        for n in range(400):
            memory.write(Batch(MOMENT, Wants(n), (replace(record, restarts=n),), operations=(operation(n % 9),)))
        sizes.append(sum(found.stat().st_size for found in path.parent.iterdir()))
    memory.close()
    assert sizes[2] <= sizes[1] * 1.2
    assert sum(found.stat().st_size for found in path.parent.iterdir()) < 200_000
