"""The autoscaler's lessons in SQLite, so that a restart of the daemon does not make it learn them again.

They are few and change together, so all of them are written each time.
"""

from __future__ import annotations

from hasupervisor.decide.autoscale.facts import Lesson
from hasupervisor.memory.rows import Moment, Row, number

CREATE = (
    "CREATE TABLE lessons (serving INTEGER PRIMARY KEY, qps REAL NOT NULL, at REAL NOT NULL, holds REAL NOT NULL, "
    "saved_at REAL NOT NULL) STRICT"
)


def lesson_row(lesson: Lesson, moment: Moment) -> Row:
    return {
        "serving": lesson.serving,
        "qps": lesson.qps,
        "at": moment.to_wall(lesson.at),
        "holds": lesson.holds,
        "saved_at": moment.wall,
    }


def lesson_of(row: Row, moment: Moment) -> Lesson:
    """Raises ValueError or TypeError where the row is not what we write."""
    at = moment.to_monotonic(number(row, "at"), number(row, "saved_at"))
    assert at is not None
    return Lesson(int(number(row, "serving")), qps=number(row, "qps"), at=at, holds=number(row, "holds"))
