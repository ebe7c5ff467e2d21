"""The status as plain text, for a browser or curl on the HTTP port."""

from __future__ import annotations

from collections.abc import Sequence

from hasupervisor.report import document
from hasupervisor.report.snapshot import Snapshot

_HEAD = ("NAME", "STATE", "COLOUR", "ROUTED", "ENDPOINT", "IN-FLIGHT", "RESTARTS", "SINCE", "REASON")
_GPU_HEAD = ("GPU", "UUID", "NAME", "STATE", "MEMORY-GB", "UTIL", "TEMP", "INSTANCES", "REASON")


def text(snapshot: Snapshot) -> str:
    """The verdict, what is wrong with the next command, then one line for each instance and each GPU."""
    status = document.status(snapshot)
    lines = [f"{status['health'].upper()} {status['service']} on {status['host']}: {status['summary']}", status["now"]]
    if status["paused"] is not None:
        pause = status["paused"]
        lines.append(f"PAUSED by {pause['by']} since {pause['since']}: {pause['reason'] or 'no reason given'}")
    if status["stale"] is not None:
        lines.append(f"STALE {status['stale']['what']}: {status['stale']['sentence']}")
    for problem in status["problems"]:
        lines += [f"{problem['subject']}: {problem['sentence']}", f"    {problem['hint']}"]
    lines += ["", *_table([_HEAD, *(_row(instance) for instance in status["instances"])])]
    if status["gpus"]:
        lines += ["", *_table([_GPU_HEAD, *(_gpu_row(gpu) for gpu in status["gpus"])])]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def _gpu_row(gpu: document.Document) -> tuple[str, ...]:
    used, total, load, heat = (
        gpu[key] for key in ("memory_used_bytes", "memory_total_bytes", "utilization", "temperature_c")
    )
    return (
        str(gpu["index"]),
        gpu["uuid"],
        gpu["name"] or "?",
        gpu["state"],
        f"{_gigabytes(used)}/{_gigabytes(total)}",
        "?" if load is None else f"{load * 100:.0f}%",
        "?" if heat is None else f"{heat}C",
        ",".join(gpu["instances"]) or "-",
        gpu["reason"] or "-",
    )


def _gigabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f}"


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
