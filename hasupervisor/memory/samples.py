"""The load that was sampled, in SQLite: every sample for a day, means of five minutes for ninety.

Of each period there is one row; its `span` is its length in seconds, FINE for a sample whatever `autoscale.sample` is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import fields, replace

from hasupervisor.decide.autoscale.facts import Sample
from hasupervisor.memory.rows import Moment

FINE, COARSE = 10, 300
KEEP_FINE = 86_400.0
KEEP_COARSE = 90 * 86_400.0
MOST = 9_000  # rows of one reading: a day of samples

_VALUES = tuple(field.name for field in fields(Sample) if field.name != "at")
_COUNTS = ("serving", "desired", "starting")

CREATE = (
    "CREATE TABLE samples (span INTEGER NOT NULL, at REAL NOT NULL, "
    "serving INTEGER NOT NULL, desired INTEGER NOT NULL, starting INTEGER NOT NULL, in_flight REAL, queued REAL, "
    "connections REAL, response_time_ms REAL, gpu_utilization REAL, qps REAL, cpu_percent REAL, memory_percent REAL, "
    "gpu_memory_used_gb REAL, gpu_memory_total_gb REAL, PRIMARY KEY (span, at)) STRICT, WITHOUT ROWID"
)


def write(connection: sqlite3.Connection, samples: Iterable[Sample], moment: Moment) -> None:
    """Adds them, rolls what they complete up, and forgets what is old. Needs a transaction that is open."""
    rows = [(FINE, moment.to_wall(sample.at), *(getattr(sample, name) for name in _VALUES)) for sample in samples]
    if not rows:
        return
    places = ", ".join("?" * (2 + len(_VALUES)))
    connection.executemany(f"INSERT OR REPLACE INTO samples (span, at, {', '.join(_VALUES)}) VALUES ({places})", rows)
    first = min(float(row[1] or 0.0) for row in rows)
    _roll_up(connection, first // COARSE * COARSE)
    for span, keep in ((FINE, KEEP_FINE), (COARSE, KEEP_COARSE)):
        connection.execute("DELETE FROM samples WHERE span = ? AND at < ?", (span, moment.wall - keep))


def _roll_up(connection: sqlite3.Connection, begin: float) -> None:
    """The means from `begin` on, made anew: what is not whole yet is made again with the next samples."""
    means = [f"CAST(round(avg({name})) AS INTEGER)" if name in _COUNTS else f"avg({name})" for name in _VALUES]
    connection.execute(
        f"""INSERT OR REPLACE INTO samples (span, at, {", ".join(_VALUES)})
            SELECT {COARSE}, (CAST(at / {COARSE} AS INTEGER) + 1) * {COARSE}.0, {", ".join(means)}
            FROM samples WHERE span = {FINE} AND at >= ? GROUP BY CAST(at / {COARSE} AS INTEGER)""",
        (begin,),
    )


def read(connection: sqlite3.Connection, since_wall: float, moment: Moment) -> list[Sample]:
    """The oldest first, on the clock of `moment`: every sample where they reach back so far, else the means.

    What a clock that was set back has left in the future is left out.
    """
    span = FINE if since_wall >= moment.wall - KEEP_FINE else COARSE
    query = f"""SELECT at, {", ".join(_VALUES)} FROM samples
        WHERE span = ? AND at >= ? AND at <= ? ORDER BY at DESC LIMIT ?"""
    found = connection.execute(query, (span, since_wall, moment.wall, MOST)).fetchall()
    samples = [Sample(**dict(row)) for row in found]
    return [replace(sample, at=moment.now - (moment.wall - sample.at)) for sample in reversed(samples)]
