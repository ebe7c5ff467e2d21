"""Writes the table of faults in docs/gpus.md anew from the one that the daemon acts by; a test holds it to that."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hasupervisor.decide.gpu import faults, judge
from hasupervisor.decide.gpu.faults import Action, Row
from hasupervisor.model.gpu import Need

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gpus.md"
BEGIN = (
    "<!-- Written by tools/gpudoc.py from hasupervisor/decide/gpu/faults.py: change it there, then `make docs`. -->\n"
)
END = "<!-- The end of what tools/gpudoc.py writes. -->\n"

MINUTES = f"{judge.THROTTLED_MINUTES} of {judge.OF_MINUTES} minutes"
SHOWN_BY = {
    faults.REMAP_RECORDED.name: "a remap or page retirement is pending",
    faults.REMAP_FAILED.name: "NVML says so",
    faults.OFF_THE_BUS.name: "NVML does not list it any more, or answers 15 (GPU is lost), or 999 for its handle",
    faults.WANTS_RESET.name: "NVML answers 16 (reset required)",
    faults.THROTTLED.name: f"throttle reasons 0x8, 0x40 or 0x80 in {MINUTES}",
    faults.ECC_COUNTED.name: "the counter of uncorrectable errors is not 0",
    faults.SILENT.name: "a call about it does not return within its deadline",
    faults.REFUSES.name: "NVML answers with any other error",
    faults.LEAKS.name: f"over {judge.LEAK_SLACK >> 30} GiB for {judge.LEAK_SETTLES:g} s",
    faults.LEAKS_MUCH.name: "over `gpu.memory_gb`, as long",
    faults.UNKNOWN.name: "any Xid that is in no other row",
}
"""What shows a fault beside Xids and the driver's recovery action."""

_UNTIL = {
    Need.RESET: "a reset or a reboot",
    Need.REBOOT: "a reboot",
    Need.REPAIR: "a repair",
    Need.WORD: "a person's word",
}


def table() -> str:
    """The table in Markdown, a line for each row that anything comes of."""
    rows = [row for row in faults.TABLE if row.action is not Action.NOTHING]
    head = ["| fault | shown by | what is done | quarantined until |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(_line(row) for row in rows)]) + "\n"


def _line(row: Row) -> str:
    name = f"[{row.name}]({row.source})" if row.source.startswith("http") else row.name
    gives_up = row.action in (Action.MOVE, Action.QUARANTINE) or row.escalation is not None
    cells = [name, shown_by(row), _done(row), _UNTIL[row.need] if gives_up else ""]
    return f"| {' | '.join(cells)} |"


def shown_by(row: Row) -> str:
    """The Xids, the values of NVML's field 230 and what else shows it; empty for a row that nothing shows."""
    actions = sorted(value for value, of in faults.VERDICTS.items() if of is row)
    found = [
        *([f"Xid {_runs(row.xids)}"] if row.xids else []),
        *([f"recovery action {_runs(actions)} (NVML's field 230, Xid {faults.RECOVERY_CHANGED})"] if actions else []),
        *([SHOWN_BY[row.name]] if row.name in SHOWN_BY else []),
    ]
    return "; ".join(found)


def _runs(numbers: Iterable[int]) -> str:
    """ "74, 144-150"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _done(row: Row) -> str:
    match row.action:
        case Action.MOVE if row.fences:
            return "moved at once"
        case Action.MOVE:
            return "moved, drained first"
        case Action.QUARANTINE:
            return "stays; nothing new is placed there"
        case Action.AVOID:
            return "suspect while it lasts: no newcomers"
        case Action.RESTART if row.escalation is not None:
            limit = row.escalation
            return f"that instance is restarted; {limit.count} times in {limit.window / 60:g} minutes: moved"
        case Action.RESTART:
            return "that instance is restarted"
        case _:
            return "placed on last" if row is faults.THROTTLED else "said"


def page(text: str) -> str:
    """The page with the table as it is now."""
    above, _, rest = text.partition(BEGIN)
    _, _, below = rest.partition(END)
    return f"{above}{BEGIN}\n{table()}\n{END}{below}"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
