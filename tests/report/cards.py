"""The GPUs of the example host: one that serves, one that is quarantined by hand, one that is lost."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.model.gpu import (
    GB,
    CardJudged,
    CardRecord,
    CardState,
    CardView,
    DriverState,
    DriverView,
    GpuFact,
    KernelLogView,
    Need,
    Quarantine,
)
from hasupervisor.report.snapshot import GpusView
from tests.report.example import NOW, SNAPSHOT, WALL

DRIVER = DriverView(DriverState.OK, "driver 550.163.01, 3 GPUs", since=NOW - 60, version="550.163.01")
DEAF = "the kernel log cannot be read (/dev/kmsg: Operation not permitted)"


def fact(index: int, **changes: object) -> GpuFact:
    """A card's figures of this moment, half of its memory in use."""
    whole = GpuFact(
        f"GPU-{index}a1f0000-0000-4000-8000-000000000000",
        index,
        "NVIDIA L4",
        f"00000000:{index + 1:02X}:00.0",
        seen_at=NOW,
        memory_total_bytes=24 * GB,
        memory_free_bytes=11 * GB,
        memory_reserved_bytes=GB,
        utilization=0.71,
        temperature_c=61,
        power_w=66.1234,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def card(index: int, state: CardState = CardState.OK, reason: str | None = None, **changes: object) -> CardJudged:
    """A card in that state, seen just now and used by chatglm-01."""
    seen = fact(index)
    whole = CardJudged(
        CardView(seen.uuid, index, seen),
        CardRecord(seen.uuid),
        state,
        reason,
        instances=("chatglm-01",),
        available_bytes=10 * GB,
        foreign_bytes=GB,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


SERVING = card(0)
BY_HAND = card(
    1,
    CardState.QUARANTINED,
    "new riser; by alice (uid 1000), until it is cleared",
    record=CardRecord(
        fact(1).uuid, by_hand=Quarantine("new riser", Need.WORD, WALL - 60, "a boot", "alice (uid 1000)", evicts=False)
    ),
    available_bytes=None,
)
LOST = card(
    2,
    CardState.LOST,
    "it has fallen off the bus (Xid 79); needs a reboot",
    view=CardView(fact(2).uuid, 2, fact(2, seen_at=NOW - 30), missing_since=NOW - 29),
    record=CardRecord(
        fact(2).uuid, Quarantine("it has fallen off the bus (Xid 79)", Need.REBOOT, WALL - 29, "a boot", fences=True)
    ),
    instances=(),
    available_bytes=None,
    foreign_bytes=0,
)
NEVER_ANSWERED = CardJudged(CardView(None, 3, silent_since=NOW - 5), CardRecord("index 3"), CardState.SUSPECT, "silent")

GPUS = GpusView(DRIVER, KernelLogView(readable=False, sentence=DEAF), (SERVING, BY_HAND, LOST, NEVER_ANSWERED), room=0)
ABSENT = GpusView(DriverView(DriverState.ABSENT, "no NVIDIA driver is installed"), KernelLogView(readable=True))
WITH_GPUS = replace(SNAPSHOT, gpus=GPUS)
WITHOUT_GPUS = replace(SNAPSHOT, gpus=ABSENT)
