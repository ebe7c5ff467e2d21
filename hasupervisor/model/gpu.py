"""GPUs as they are seen: figures, troubles and Xids, with the age of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

GB = 1 << 30
"""Bytes of a GB as GPUs are sold: a "24 GB" card has 24 GiB, and `gpu.memory_gb` is meant by that measure."""


class DriverState(StrEnum):
    """What stands between us and the cards. Only OK and WEDGED have cards to show."""

    UNKNOWN = "unknown"  # not asked yet
    OK = "ok"
    ABSENT = "absent"  # not even a library of it: a machine without GPUs
    MISMATCHED = "mismatched"  # the library is of another version than the loaded driver
    WEDGED = "wedged"  # calls do not return, of no card at all
    FAILED = "failed"  # it answers with an error, is not loaded, or lists no card


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with memory on a card; its pid is the host's."""

    pid: int
    memory_bytes: int | None = None  # None: the driver does not tell


@dataclass(frozen=True, slots=True)
class GpuFact:
    """One card's figures, as of `seen_at` (monotonic). None: this card or this driver has no such figure."""

    uuid: str  # its identity: indices shift when a card is lost
    index: int
    name: str
    bus: str  # NVML's busId, "00000000:3B:00.0"
    seen_at: float
    memory_total_bytes: int
    memory_free_bytes: int
    memory_reserved_bytes: int | None = None  # by the driver itself; neither free nor used by anybody
    utilization: float | None = None  # 0..1, of the time in which any kernel ran
    temperature_c: int | None = None
    power_w: float | None = None
    throttle: int | None = None  # bits, nvmlClocksEventReason*
    ecc_uncorrected: int | None = None  # since the driver was loaded
    remap_pending: bool | None = None  # rows are remapped at the next reset
    remap_failed: bool | None = None
    retirement_pending: bool | None = None  # the same on cards before Ampere: pages
    recovery: int | None = None  # nvmlDeviceGpuRecoveryAction_t, the driver's own verdict; see decide.gpu.faults
    mig: bool = False
    persistence: bool | None = None
    processes: tuple[GpuProcess, ...] = ()
    processes_at: float | None = None  # when they were last listed


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call about one card that was answered with an error."""

    code: int  # nvmlReturn_t
    words: str
    since: float
    handle: bool = False  # not even a handle of it was to be had


@dataclass(frozen=True, slots=True)
class CardView:
    """One card with what is wrong with it now; the last figures stay, with their age."""

    uuid: str | None  # None: it has never said it
    index: int
    fact: GpuFact | None = None
    refusal: Refusal | None = None
    silent_since: float | None = None  # a call about it did not return; no call is made about it now
    missing_since: float | None = None  # NVML does not list it any more


@dataclass(frozen=True, slots=True)
class DriverView:
    """All cards, and whether they can be asked at all."""

    state: DriverState = DriverState.UNKNOWN
    sentence: str = "the GPUs have not been asked yet"
    since: float | None = None  # in this state
    version: str | None = None  # of the driver
    cards: tuple[CardView, ...] = ()
    asked_at: float | None = None  # when the last round through all cards ended


class Source(StrEnum):
    KERNEL = "kernel log"
    NVML = "NVML"


@dataclass(frozen=True, slots=True)
class Xid:
    """One fault that the driver reported. The kernel log names the card by its bus, NVML by its UUID."""

    code: int
    at: float  # when it was read
    source: Source
    uuid: str | None = None
    bus: str | None = None  # "0000:3b:00"; compare with `bus_key`
    pid: int | None = None  # of the process at fault, where the kernel knows it
    recovery: int | None = None  # with 154: what the driver wants done
    words: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """An Xid with whose it was."""

    xid: Xid
    instance: str | None = None  # None: nobody knows, or a stranger
    foreign: bool = False  # a process that is none of ours


@dataclass(frozen=True, slots=True)
class KernelLogView:
    """Whether the kernel log can be read."""

    readable: bool
    sentence: str = ""  # why not, and what that costs
    lost: int = 0  # how often lines were overwritten before they were read


class CardState(StrEnum):
    """A card as people are shown it (CONTRACT 4, `gpus`)."""

    OK = "ok"
    SUSPECT = "suspect"  # no newcomers
    QUARANTINED = "quarantined"  # nothing is placed on it
    LOST = "lost"  # it is not there any more


class Need(StrEnum):
    """What ends a quarantine."""

    RESET = "reset"  # of the card; a reboot does it too
    REBOOT = "reboot"
    REPAIR = "repair"  # no reboot mends it: a person looks, then says `gpu clear`
    WORD = "word"  # of the person who quarantined it


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why nothing is placed on a card, kept over restarts of the daemon."""

    reason: str
    need: Need
    since_wall: float
    boot: str  # boot id of the host then: another one, and a reboot has happened
    by: str = "chatglm-ha"
    evicts: bool = True  # what runs on it has to start elsewhere
    fences: bool = False  # and cannot work any more: it is ended at once
    index: int | None = None  # of the card then: a lost one cannot say who it is


@dataclass(frozen=True, slots=True)
class Counted:
    """One fault that counts towards an escalation."""

    row: str  # the name of its row in the table
    at: float  # of the first line of it
    last_at: float  # and of the last: one fault may be told in many
    instance: str | None = None
    pid: int | None = None  # of the process at fault, where the kernel knows it


@dataclass(frozen=True, slots=True)
class CardRecord:
    """What is remembered of one card. Decisions return new records.

    Kept over restarts of the daemon: the quarantines and `lost_in`; the rest is in monotonic time.
    """

    uuid: str
    quarantine: Quarantine | None = None  # for a fault
    by_hand: Quarantine | None = None  # a person's; no reboot ends it
    counted: tuple[Counted, ...] = ()  # the oldest first
    throttled: tuple[tuple[int, bool], ...] = ()  # minutes since any start, and whether it was throttled in them
    leaking_since: float | None = None
    lost_in: tuple[str, ...] = ()  # boot ids in which it was lost, the oldest first


@dataclass(frozen=True, slots=True)
class Gpus:
    """All that is known of the GPUs in one cycle."""

    driver: DriverView
    kernel_log: KernelLogView
    boot: str  # id of this boot of the host
    records: Mapping[str, CardRecord] = field(default_factory=dict)  # by UUID
    incidents: tuple[Incident, ...] = ()  # since the last cycle
    users: Mapping[int, str] = field(default_factory=dict)  # living processes on the cards, pid -> our instance
    dead: frozenset[int] = frozenset()  # listed on a card, though no such process exists any more


@dataclass(frozen=True, slots=True)
class CardJudged:
    """One card after the cycle: what people are shown."""

    view: CardView
    record: CardRecord
    state: CardState
    reason: str | None = None  # None: nothing is wrong
    instances: tuple[str, ...] = ()  # ours that are on it, or are promised a place there
    available_bytes: int | None = None  # for newcomers; None: it takes none
    foreign_bytes: int = 0  # held by processes that are none of ours
    leaked_bytes: int = 0  # held by no process that is listed
    excluded: bool = False  # by the configuration: left to others


def bus_key(bus: str) -> tuple[int, int, int] | None:
    """Domain, bus, device of "0000:3b:00", "PCI:0000:3B:00", "00000000:3B:00.0": equal where the card is the same."""
    parts = bus.upper().removeprefix("PCI:").split(".")[0].split(":")
    try:
        domain, number, device = (int(part, 16) for part in parts)
    except ValueError:
        return None
    return domain, number, device
