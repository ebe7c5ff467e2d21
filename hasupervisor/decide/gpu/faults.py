"""The table of GPU faults: what shows each, and what is done about it.

Where sources disagree this is the project's choice: an instance that can start elsewhere is moved rather than left to
hope, and a card is given up only for what NVIDIA itself says needs a reset, a reboot or a repair.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hasupervisor.model.gpu import Need

CATALOG = "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"
ROWS = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/index.html"
NVML = "https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html"
CHECKS = "https://docs.nvidia.com/health-validation/reference/checks/xid.md"
OURS = "this project's own"

MINUTE, HOUR = 60.0, 3600.0


class Action(StrEnum):
    """What is done for the instances on the card."""

    NOTHING = "nothing"
    WARN = "warn"
    RESTART = "restart"  # the instance whose process it was, on the same card
    MOVE = "move"  # all of the card: they start on others, and this one is quarantined
    AVOID = "avoid"  # none is moved, and no newcomer is placed here for now
    QUARANTINE = "quarantine"  # none is moved, and no newcomer is placed here until somebody says so


@dataclass(frozen=True, slots=True)
class Escalation:
    """So many within so long become a MOVE."""

    count: int
    window: float  # seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of fault."""

    name: str
    says: str  # what happened, for people; begins a sentence
    action: Action
    source: str
    xids: frozenset[int] = frozenset()
    need: Need = Need.RESET  # of a card that is quarantined for it
    fences: bool = False  # with MOVE: nothing on the card can work any more, so nothing there is waited for
    escalation: Escalation | None = None
    hint: str = "chatglm-hactl gpu list"


APPLICATION = Row(
    "application fault",
    "a program on it made an illegal access or did not end in time",
    Action.RESTART,
    CATALOG,
    xids=frozenset({8, 11, 13, 25, 31, 32, 43, 68, 69, 80}),
    escalation=Escalation(3, 10 * MINUTE),
)
CONTEXT_SWITCH = Row(
    "context switch timeout",
    "it could not switch between programs in time",
    Action.RESTART,
    CATALOG,
    xids=frozenset({109}),
    escalation=Escalation(2, HOUR),
)
CONTAINED_ECC = Row(
    "contained memory error",
    "a memory error ended one program and was contained",
    Action.RESTART,
    ROWS,
    xids=frozenset({94}),
)
AFTER_EFFECT = Row(
    "after-effect",
    "a program's work was cleaned away after another fault",
    Action.WARN,
    CATALOG,
    xids=frozenset({45, 92}),
    hint="dmesg | grep NVRM",
)
UNCORRECTABLE_ECC = Row(
    "uncorrectable memory error",
    "a memory error could not be corrected or contained",
    Action.MOVE,
    ROWS,
    xids=frozenset({48, 95, 140, 172}),
    fences=True,
)
REMAP_RECORDED = Row(
    "row remap recorded",
    "a bad row of its memory is replaced at the next reset",
    Action.WARN,
    ROWS,
    xids=frozenset({63}),
    hint="when nothing runs on it: nvidia-smi --gpu-reset -i {uuid}",
)
REMAP_FAILED = Row(
    "row remap failed",
    "a bad row of its memory cannot be replaced: no spare one is left",
    Action.MOVE,
    ROWS,
    xids=frozenset({64}),
    need=Need.REPAIR,
)
ENGINE = Row(
    "engine or firmware fault",
    "its firmware or an engine of it has stopped",
    Action.MOVE,
    CHECKS,
    xids=frozenset({46, 62, 110, 119, 120, 136, 143, 156, 158}),
    fences=True,
)
OFF_THE_BUS = Row(
    "off the bus",
    "it has fallen off the bus",
    Action.MOVE,
    CATALOG,
    xids=frozenset({79}),
    need=Need.REBOOT,
    fences=True,
)
PCIE = Row(
    "PCIe timeout",
    "PCIe gave it no answer in time",
    Action.MOVE,
    CATALOG,
    xids=frozenset({167}),
    need=Need.REBOOT,
    fences=True,
)
NVLINK = Row(
    "NVLink",
    "a link to another GPU has failed; instances use one GPU and go on",
    Action.WARN,
    CATALOG,
    xids=frozenset({74, *range(144, 151)}),
    hint="nvidia-smi nvlink -e",
)
WANTS_RESET = Row("driver asks for a reset", "the driver asks for a reset of it", Action.MOVE, NVML)
WANTS_REBOOT = Row(
    "driver asks for a reboot", "the driver asks for a reboot of the host", Action.MOVE, NVML, need=Need.REBOOT
)
WANTS_DRAIN = Row(
    "driver asks for a drain",
    "the driver asks that programs which use its links end",
    Action.WARN,
    NVML,
    hint="nvidia-smi -q -i {uuid} | grep -i recovery",
)
THROTTLED = Row(
    "throttled",
    "it has been slowed down by heat or power for most of ten minutes; it is placed on last",
    Action.WARN,
    NVML,
    hint="nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {uuid}",
)
ECC_COUNTED = Row(
    "memory errors counted",
    "uncorrectable memory errors have been counted since the driver was loaded",
    Action.WARN,
    ROWS,
    hint="nvidia-smi -q -d ECC,ROW_REMAPPER -i {uuid}",
)
SILENT = Row(
    "silent",
    "NVML's calls about it do not return; what runs on it is judged by its own probe",
    Action.AVOID,
    OURS,
    hint="nvidia-smi -q -i {uuid}; dmesg | grep NVRM",
)
REFUSES = Row(
    "refuses",
    "NVML cannot say how it is",
    Action.AVOID,
    NVML,
    hint="nvidia-smi -q -i {uuid}; dmesg | grep NVRM",
)
LEAKS = Row(
    "leaked memory",
    "memory of it is held by no process that is listed; it counts as used",
    Action.WARN,
    OURS,
    hint="nvidia-smi -q -d MEMORY,PIDS -i {uuid}",
)
LEAKS_MUCH = Row(
    "much leaked memory",
    "more memory than an instance needs is held by no process that is listed",
    Action.QUARANTINE,
    OURS,
)
UNKNOWN = Row(
    "unknown Xid",
    "the driver reported a fault that is not in the table",
    Action.WARN,
    CATALOG,
    hint="dmesg | grep NVRM",
)
FINE = Row("fine", "the driver has nothing to ask for", Action.NOTHING, NVML)

TABLE = (
    APPLICATION,
    CONTEXT_SWITCH,
    CONTAINED_ECC,
    AFTER_EFFECT,
    UNCORRECTABLE_ECC,
    REMAP_RECORDED,
    REMAP_FAILED,
    ENGINE,
    OFF_THE_BUS,
    PCIE,
    NVLINK,
    WANTS_RESET,
    WANTS_REBOOT,
    WANTS_DRAIN,
    THROTTLED,
    ECC_COUNTED,
    SILENT,
    REFUSES,
    LEAKS,
    LEAKS_MUCH,
    UNKNOWN,
    FINE,
)

RECOVERY_CHANGED = 154
"""The Xid that carries the driver's own verdict."""

VERDICTS = {
    0: FINE,
    1: WANTS_RESET,
    2: WANTS_REBOOT,
    3: WANTS_DRAIN,  # of peer-to-peer work
    4: WANTS_RESET,  # drain and reset
    5: WANTS_DRAIN,  # of the NVLink domain
    6: WANTS_RESET,  # of its bus
    7: WANTS_REBOOT,  # of the system
}
"""By nvmlDeviceGpuRecoveryAction_t."""

GPU_IS_LOST, RESET_REQUIRED, UNKNOWN_ERROR = 15, 16, 999
"""nvmlReturn_t."""

_BY_XID = {code: row for row in TABLE for code in row.xids}


def row_of_xid(code: int, recovery: int | None = None) -> Row:
    """The row of an Xid. `recovery`: what the driver wants done, as 154 says in the kernel log (NVML's does not)."""
    if code == RECOVERY_CHANGED:
        # Not read: it may be the end of a trouble as well. The card's own figure says which.
        return VERDICTS.get(recovery, WANTS_RESET) if recovery is not None else FINE
    return _BY_XID.get(code, UNKNOWN)


def row_of_refusal(code: int, *, handle: bool) -> Row:
    """The row of an error that a call about one card was answered with. `handle`: it was the very first call."""
    if code == GPU_IS_LOST or (code == UNKNOWN_ERROR and handle):
        return OFF_THE_BUS
    return WANTS_RESET if code == RESET_REQUIRED else REFUSES
