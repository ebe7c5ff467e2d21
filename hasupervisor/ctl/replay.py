"""Reads a trace of traffic, and draws what a replay came to: a chart over time, the steps, the totals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.text import Cell, Paint, age, clean, number, table

CHART_COLUMNS = 72
MARGIN = 7  # columns left of the chart
TABLE_ROWS = 20
DEFAULT_WORK_S = 1.0
_LEVELS = " ▁▂▃▄▅▆▇█"


def trace_of(path: Path) -> list[list[float]]:
    """Lines of `SECOND REQUESTS_PER_SECOND [SECONDS_OF_WORK]`, with commas or blanks between; `#` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Failure(Exit.USAGE, f"cannot read {path}: {why}") from error
    rows = []
    for place, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) not in (2, 3) or not all(map(math.isfinite, values)):
            wanted = "SECOND REQUESTS_PER_SECOND [SECONDS_OF_WORK]"
            raise Failure(Exit.USAGE, f"{path}:{place}: should be {wanted}, not {clean(line)!r}")
        rows.append([*values, DEFAULT_WORK_S][:3])
    if not rows:
        raise Failure(Exit.USAGE, f"{path}: has no line of traffic")
    return rows


def picture(rows: Sequence[Document], total: Document, paint: Paint, columns: int | None) -> list[str]:
    """The whole replay for a terminal."""
    lines = [*_chart(rows, columns), "", *_table(rows, paint, columns)]
    return [*lines, "", *_totals(total)]


def _chart(rows: Sequence[Document], columns: int | None) -> list[str]:
    """Instances over time (█ serve, ░ are wanted and do not serve yet), and below it the load and the waits."""
    if not rows:
        return []
    buckets = _buckets(rows, min(CHART_COLUMNS, (columns or 80) - MARGIN - 1))
    serving = [max(row.number("serving") for row in bucket) for bucket in buckets]
    desired = [max(row.number("desired") for row in bucket) for bucket in buckets]
    lines = []
    for level in range(int(max([1.0, *serving, *desired])), 0, -1):
        bars = "".join("█" if s >= level else "░" if d >= level else " " for s, d in zip(serving, desired, strict=True))
        lines.append(f"{level:>{MARGIN - 2}} │{bars.rstrip()}")
    end = age(rows[-1].number("at"))
    lines.append(f"{'0':>{MARGIN - 2}} └{'─' * len(buckets)} {end}")
    for name, key, unit in (("req/s", "qps", "/s"), ("wait", "wait_p95_s", " s")):
        values = [max(row.maybe_number(key) or 0.0 for row in bucket) for bucket in buckets]
        lines.append(f"{name:>{MARGIN - 2}}  {_spark(values)}  max {number(round(max(values), 1))}{unit}")
    return lines


def _buckets(rows: Sequence[Document], most: int) -> list[Sequence[Document]]:
    count = max(1, min(most, len(rows)))
    bounds = [len(rows) * place // count for place in range(count + 1)]
    return [rows[a:b] for a, b in pairwise(bounds)]


def _spark(values: Sequence[float]) -> str:
    most = max(values)
    return "".join(_LEVELS[math.ceil(value / most * (len(_LEVELS) - 1))] if most > 0 else " " for value in values)


def _table(rows: Sequence[Document], paint: Paint, columns: int | None) -> list[str]:
    """Every step, and where there are few of them some rows in between."""
    every = max(1, len(rows) // TABLE_ROWS)
    shown = [row for place, row in enumerate(rows) if row.maybe_text("step") or place % every == 0]
    cells = [
        [
            Cell(age(row.number("at")), right=True),
            Cell(f"{row.number('qps'):.1f}", right=True),
            Cell(f"{row.number('in_flight'):.1f}", right=True),
            Cell(number(row.number("serving")), right=True),
            Cell(number(row.number("desired")), right=True),
            Cell(_seconds(row.maybe_number("wait_p95_s")), right=True),
            Cell(clean(row.maybe_text("step") or "")),
        ]
        for row in shown
    ]
    head = ("AT", "REQ/S", "IN-FLIGHT", "SERVING", "WANTED", "WAIT-P95", "STEP")
    return table(head, cells, paint, columns=columns, spare=("IN-FLIGHT", "REQ/S"))


def _totals(total: Document) -> list[str]:
    first = total.maybe_number("first_step_s")
    facts = (
        ("requests", f"{total.number('requests'):.0f} in {age(total.number('seconds'))}"),
        ("steps", f"{total.number('steps'):g}, {total.number('turns'):g} of them back"),
        ("first step", f"after {age(first)}" if first is not None else "none"),
        ("most", f"{total.number('most'):g} instances"),
        (
            "wait",
            f"p95 {_seconds(total.maybe_number('wait_p95_s'))}, worst {_seconds(total.maybe_number('wait_worst_s'))}",
        ),
        ("replica-minutes", f"{total.number('replica_minutes'):.1f}"),
    )
    return [f"{key:<16} {value}" for key, value in facts]


def _seconds(value: float | None) -> str:
    """A wait without end is none that a number can say."""
    return "no end" if value is None else f"{value:.1f}s"
