"""Text for terminals: widths as the eye sees them, ages, amounts and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

Paint = Callable[[str, str], str]  # (text, colour name or "") -> text with or without escape sequences

LEAST_LAST = 20  # columns that the last cell of a row keeps, before the table gives up others for it


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    colour: str = ""
    right: bool = False  # numbers


def clean(text: str) -> str:
    """The text in one line, control characters made visible: what an instance says must not move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def width(text: str) -> int:
    """Columns that the text takes: two for each Chinese character, none for a combining one."""
    if text.isascii():
        return len(text)
    import unicodedata  # a megabyte, needed only here

    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, columns: int) -> str:
    """The text in at most `columns`, with … where something was left out."""
    if width(text) <= columns:
        return text
    kept, taken = [], 0
    for c in text:
        taken += width(c)
        if taken > columns - 1:
            break
        kept.append(c)
    return "".join(kept).rstrip() + "…"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    gap = " " * (columns - width(text))
    return gap + text if right else text + gap


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], paint: Paint, *, columns: int | None, spare: Sequence[str] = ()
) -> list[str]:
    """The rows under their heads, two spaces apart.

    In `columns` (None: as wide as it gets) the last cell is cut; where it would keep less than `LEAST_LAST`, whole
    columns are left out first, in the order of `spare`.
    """
    if not rows:
        return []
    widths = [max(width(head[i]), *(width(row[i].text) for row in rows)) for i in range(len(head))]
    shown = list(range(len(head)))
    last = widths[-1]
    if columns is not None:
        for name in spare:
            if _left_for_last(widths, shown, columns) >= min(last, LEAST_LAST):
                break
            shown.remove(list(head).index(name))
        last = max(min(last, _left_for_last(widths, shown, columns)), 1)
    heads = [Cell(head[i], right=rows[0][i].right) for i in range(len(head))]
    return [
        "  ".join(
            [
                *(paint(pad(row[i].text, widths[i], right=row[i].right), row[i].colour) for i in shown[:-1]),
                paint(cut(row[-1].text, last), row[-1].colour),
            ]
        ).rstrip()
        for row in [heads, *rows]
    ]


def _left_for_last(widths: Sequence[int], shown: Sequence[int], columns: int) -> int:
    return columns - sum(widths[i] + 2 for i in shown[:-1])


def age(seconds: float) -> str:
    """3m12s: the two units that matter."""
    s = max(int(seconds), 0)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60}m"
    return f"{s // 86400}d{s % 86400 // 3600}h"


def moment(rfc3339: str) -> datetime | None:
    """The daemon's time, or None where it is not one."""
    try:
        found = datetime.fromisoformat(rfc3339)
    except ValueError:
        return None
    return found if found.tzinfo else None


def since(then: str | None, now: datetime) -> str:
    """The age of something that began then."""
    began = moment(then) if then else None
    return age((now - began).total_seconds()) if began else "-"


def clock(rfc3339: str) -> str:
    """The daemon's time as the clock on the wall here shows it."""
    found = moment(rfc3339)
    return found.astimezone().strftime("%Y-%m-%d %H:%M:%S") if found else clean(rfc3339)


def milliseconds(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.0f}ms" if ms < 1000 else f"{ms / 1000:.1f}s"


def rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:.1f}"


def share(part: float | None) -> str:
    """A part of one as per cent; what is more than nothing never reads as 0%."""
    if part is None:
        return "-"
    return "<0.1%" if 0 < part < 0.001 else "0%" if part == 0 else f"{part * 100:.1f}%"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def gigabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**30:.1f}"
