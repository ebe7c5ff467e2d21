"""Rows and back: nothing of what must survive changes on the way, whatever the clocks did meanwhile."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.memory.rows import (
    TAIL_BYTES,
    Moment,
    end_of,
    lasting,
    operation_of,
    operation_row,
    record_of,
    record_row,
    wants_of,
    wants_row,
)
from hasupervisor.model import (
    Cause,
    Failure,
    Leaving,
    Operation,
    OperationKind,
    OperationState,
    Pause,
    Record,
    State,
    Wants,
)

SAVED = Moment(now=5_000.0, wall=1_800_000_000.0)
ago = st.floats(0, 4_000)
text = st.text(string.printable + "你好", max_size=40)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Records as the loop holds them at SAVED."""

    def past() -> float:
        return SAVED.now - draw(ago)

    failed = past()
    failure = Failure(failed, failed - SAVED.now + SAVED.wall, draw(text), draw(text))
    since = past()
    disturbed = draw(st.one_of(st.none(), ago.map(lambda s: SAVED.now - s)))
    return Record(
        name="chatglm-01",
        port=8000,
        restarts=draw(st.integers(0, 10_000)),
        failures=tuple(sorted(SAVED.now - age for age in draw(st.lists(ago, max_size=5)))),
        last_failure=draw(st.sampled_from([failure, None])),
        retry_at=draw(st.one_of(st.none(), st.floats(0, 300).map(lambda s: SAVED.now + s))),
        parked_at=draw(st.one_of(st.none(), ago.map(lambda s: SAVED.now - s))),
        stuck=draw(st.one_of(st.none(), text)),
        state=draw(st.sampled_from(State)),
        since=since,
        since_wall=since - SAVED.now + SAVED.wall,
        bad_since=disturbed,
        disturbed_at=disturbed,
        ended=draw(st.one_of(st.none(), text)),
        proven=draw(st.one_of(st.none(), text)),
        serving_since=draw(st.one_of(st.none(), ago.map(lambda s: SAVED.now - s))),
        load_s=draw(st.one_of(st.none(), st.floats(0, 600))),
    )


def same(first: Record, second: Record, shift: float) -> None:
    """`second` is `first` with every monotonic time moved by `shift`."""
    assert second.failures == pytest.approx([at + shift for at in first.failures], abs=1e-3)
    for key in ("retry_at", "parked_at", "bad_since", "disturbed_at", "since", "serving_since"):
        before, after = getattr(first, key), getattr(second, key)
        assert after == (None if before is None else pytest.approx(before + shift, abs=1e-3)), key
    if first.last_failure is not None:
        assert second.last_failure is not None
        assert second.last_failure.at == pytest.approx(first.last_failure.at + shift, abs=1e-3)
    nothing: dict[str, None] = {"bad_since": None, "disturbed_at": None, "serving_since": None}
    untimed = [
        replace(one, last_failure=None, failures=(), retry_at=None, parked_at=None, since=0.0, **nothing)
        for one in (first, second)
    ]
    assert untimed[0] == untimed[1]


@given(records())
def test_a_record_read_back_at_once_is_the_same(record: Record) -> None:
    same(record, record_of(record_row(record, SAVED), SAVED), shift=0.0)


@given(records(), st.floats(0, 1e6))
def test_after_a_reboot_every_time_is_as_long_ago_as_the_wall_clock_says(record: Record, later: float) -> None:
    reborn = Moment(now=12.0, wall=SAVED.wall + later)
    same(record, record_of(record_row(record, SAVED), reborn), shift=12.0 - later - SAVED.now)


@given(records(), st.floats(1, 1e6))
def test_a_wall_clock_that_was_set_back_makes_no_past_into_a_future(record: Record, earlier: float) -> None:
    after = Moment(now=SAVED.now, wall=SAVED.wall - earlier)
    back = record_of(record_row(record, SAVED), after)
    same(record, back, shift=0.0)
    assert all(at <= after.now for at in back.failures)


def test_what_the_next_daemon_sees_for_itself_is_not_kept() -> None:
    record = Record(
        name="chatglm-01",
        port=8000,
        in_rotation=True,
        serving_since=1.0,
        bad_since=2.0,
        incarnation="4711@12",
        acted_at=3.0,
        leaving=Leaving(Cause.RESTART, "by hand", since=4.0),
        operation="op-1",
        ended="4710@10",
        restarts=3,
    )
    assert lasting(record) == Record(name="chatglm-01", port=8000, restarts=3, ended="4710@10")


def test_that_this_very_life_has_served_is_kept_and_how_long_it_took_to_load() -> None:
    record = Record("chatglm-01", 8000, proven="4711@12", serving_since=10.0, load_s=42.0)
    assert lasting(record) == record


def test_a_healing_that_is_under_way_is_kept_so_that_it_stays_the_only_one() -> None:
    record = Record("chatglm-01", 8000, bad_since=10.0, disturbed_at=12.0)
    assert lasting(record) == record


@pytest.mark.parametrize(
    "wants",
    [
        Wants(desired=2),
        Wants(desired=0, mode="manual", drained=frozenset({"chatglm-02", "chatglm-07"})),
        Wants(desired=3, pause=Pause("alice (uid 1000)", 1_799_999_000.5, "maintenance", 1_800_000_600.25)),
        Wants(desired=3, pause=Pause("alice (uid 1000)", 1_799_999_000.5)),
    ],
)
def test_wants_come_back_as_they_were(wants: Wants) -> None:
    assert wants_of(wants_row(wants)) == wants


def test_an_operation_comes_back_as_it_was() -> None:
    operation = Operation(
        id="op-7",
        kind=OperationKind.RESTART,
        by="alice (uid 1000)",
        started=SAVED.now - 30,
        started_wall=SAVED.wall - 30,
        targets=("chatglm-02",),
        total=2,
        sentence="1 of 2 restarted",
        before=(("chatglm-01", 0), ("chatglm-02", 4)),
    )
    assert operation_of(operation_row(operation), SAVED) == operation
    ended = replace(operation, state=OperationState.DONE, ended_wall=SAVED.wall, targets=())
    assert operation_of(operation_row(ended), SAVED) == ended


def test_of_a_long_tail_the_last_lines_are_kept_whole() -> None:
    lines = [f"{number:08d} 加载模型" for number in range(20_000)]
    kept = end_of("\n".join(lines))
    assert TAIL_BYTES - 100 < len(kept.encode()) <= TAIL_BYTES
    assert kept.split("\n") == lines[-len(kept.split("\n")) :]


@given(st.text(max_size=200).map(lambda text: text * 2_000))
def test_a_tail_is_never_longer_than_its_bound(tail: str) -> None:
    assert len(end_of(tail).encode("utf-8", "replace")) <= TAIL_BYTES


@pytest.mark.parametrize(
    ("key", "value"), [("saved_at", None), ("since", "noon"), ("state", "asleep"), ("failures", "[1,"), ("port", None)]
)
def test_a_row_that_is_not_ours_is_a_value_error(key: str, value: str | None) -> None:
    row = {**record_row(Record("chatglm-01", 8000), SAVED), key: value}
    with pytest.raises(ValueError, match=r".+"):
        record_of(row, SAVED)
