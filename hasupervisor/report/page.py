"""The status as plain text, for a browser or curl on the HTTP port."""

from __future__ import annotations

from hasupervisor.report import document
from hasupervisor.report.snapshot import Snapshot

_HEAD = ("NAME", "STATE", "COLOUR", "ROUTED", "ENDPOINT", "IN-FLIGHT", "RESTARTS", "SINCE", "REASON")


def text(snapshot: Snapshot) -> str:
    """The verdict, what is wrong with the next command, then one line for each instance."""
    status = document.status(snapshot)
    lines = [f"{status['health'].upper()} {status['service']} on {status['host']}: {status['summary']}", status["now"]]
    if status["paused"] is not None:
        pause = status["paused"]
        lines.append(f"PAUSED by {pause['by']} since {pause['since']}: {pause['reason'] or 'no reason given'}")
    if status["stale"] is not None:
        lines.append(f"STALE {status['stale']['what']}: {status['stale']['sentence']}")
    for problem in status["problems"]:
        lines += [f"{problem['subject']}: {problem['sentence']}", f"    {problem['hint']}"]
    rows = [_HEAD, *(_row(instance) for instance in status["instances"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    lines.append("")
    lines += [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def _row(instance: document.Document) -> tuple[str, ...]:
    in_flight = instance["in_flight"]
    return (
        instance["name"],
        instance["state"],
        instance["colour"],
        "yes" if instance["routed"] else "no",
        instance["endpoint"],
        "?" if in_flight is None else str(in_flight),
        str(instance["restarts"]),
        instance["since"],
        instance["reason"],
    )
