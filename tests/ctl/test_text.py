"""Widths, ages and amounts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.ctl.screen import painter
from hasupervisor.ctl.text import Cell, age, clean, cut, milliseconds, pad, rate, share, table, width

PLAIN = painter(color=False)


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("abc", 3), ("你好", 4), ("a你b", 4), ("e\u0301", 1), ("…", 1), ("\u200b", 0)]
)
def test_a_chinese_character_is_two_columns_and_a_combining_one_none(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "columns", "kept"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("显存不足", 8, "显存不足"),
        ("显存不足", 7, "显存不…"),
        ("显存不足", 6, "显存…"),  # half a character has no place
        ("ab cdef", 4, "ab…"),
    ],
)
def test_a_text_is_cut_between_characters(text: str, columns: int, kept: str) -> None:
    assert cut(text, columns) == kept


@given(st.text(), st.integers(min_value=1, max_value=40))
def test_a_cut_text_never_takes_more_columns_than_it_has(text: str, columns: int) -> None:
    assert width(cut(clean(text), columns)) <= columns


@given(st.text(max_size=10))
def test_a_padded_text_takes_just_its_columns(text: str) -> None:
    assert width(pad(clean(text), 100)) == 100


@given(st.text())
def test_clean_text_is_one_line_without_control_characters(text: str) -> None:
    assert clean(text).isprintable()


@given(
    st.lists(st.lists(st.text(max_size=30), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(min_value=40, max_value=120),
)
def test_a_table_lines_up_whatever_is_in_it(texts: list[list[str]], columns: int) -> None:
    rows = [[Cell(f"x{clean(text)[:5]}") for text in row[:-1]] + [Cell(f"y{clean(row[-1])}")] for row in texts]
    lines = table(["A", "B", "C", "D"], rows, PLAIN, columns=columns, spare=["C", "B"])
    assert len(lines) == len(rows) + 1
    assert all(width(line) <= columns for line in lines)


def test_a_table_gives_up_spare_columns_only_until_the_last_has_room() -> None:
    rows = [[Cell("a" * 10), Cell("b" * 10), Cell("c" * 10), Cell("d" * 30)]]
    head = ["A", "B", "C", "D"]
    assert table(head, rows, PLAIN, columns=56, spare=["C", "B"])[0].split() == ["A", "B", "C", "D"]
    assert table(head, rows, PLAIN, columns=55, spare=["C", "B"])[0].split() == ["A", "B", "D"]
    assert table(head, rows, PLAIN, columns=43, spare=["C", "B"])[0].split() == ["A", "D"]
    assert table(head, rows, PLAIN, columns=15, spare=["C", "B"])[1] == "aaaaaaaaaa  dd…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m0s"),
        (192, "3m12s"),
        (3599, "59m59s"),
        (3600, "1h0m"),
        (86399, "23h59m"),
        (86400, "1d0h"),
        (1e6, "11d13h"),
    ],
)
def test_an_age_has_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(("ms", "text"), [(None, "-"), (0.4, "0ms"), (999, "999ms"), (1000, "1.0s"), (61234, "61.2s")])
def test_milliseconds_become_seconds_where_they_are_many(ms: float | None, text: str) -> None:
    assert milliseconds(ms) == text


@pytest.mark.parametrize(("part", "text"), [(None, "-"), (0, "0%"), (0.0004, "<0.1%"), (0.012, "1.2%"), (1, "100.0%")])
def test_a_share_of_errors_is_never_rounded_down_to_none(part: float | None, text: str) -> None:
    assert share(part) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0, "0.0"), (4.25, "4.2"), (1234.5, "1234.5")])
def test_a_rate_has_one_digit_behind_the_point(value: float | None, text: str) -> None:
    assert rate(value) == text
