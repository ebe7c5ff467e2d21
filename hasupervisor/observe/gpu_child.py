"""The one process that calls NVML. Any call may never return, so whoever reads us never waits for us.

    python -I gpu_child.py PERIOD PROCESSES_EVERY SKIP

SKIP: indices of cards that are left alone, comma-joined. It prints one JSON object a line, and says what it is about to
touch before it touches it, so that silence names the card:

    {"begin": "driver"}                                 then {"up": {"driver": "550.163.01", "count": 8}}
    {"begin": 3, "uuid": "GPU-..." or null}             then {"card": {...}}, or {"refused": {...}} with code and words
    {"xid": {"uuid": "GPU-...", "code": 79}}            among those of its card
    {"end": 8}                                          a round is over; 8 cards were listed
    {"down": {"code": 9, "words": "Driver Not Loaded"}}  NVML cannot be used; it ends with that

It ends when nobody reads it. It imports nothing of the project, and NVML's library is loaded once for its whole life:
after the driver was replaced only a new process gets the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

import pynvml as nvml

MISSING = (
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_NO_PERMISSION,
    nvml.NVML_ERROR_INVALID_ARGUMENT,
    nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)
"""What a card or driver answers that has no such thing; every other error is trouble."""
FIELD_RECOVERY = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, which has no name before 13.x
EVENTS_AT_ONCE = 64

Words = dict[str, Any]


class Speech:
    """Gathers lines and lets them go together, so that a round of eight cards is nine writes."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, **words: Any) -> None:
        self._lines.append(json.dumps(words, separators=(",", ":")))

    def go(self, **words: Any) -> None:
        self.add(**words)
        told = ("\n".join(self._lines) + "\n").encode()
        self._lines.clear()
        while told:
            told = told[os.write(1, told) :]  # EPIPE when nobody reads


class Card:
    """One card that answers: its handle, and its own event set, because a lost card fails every set that it is in."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self.uuid: str = nvml.nvmlDeviceGetUUID(self.handle)
        self._name: str = nvml.nvmlDeviceGetName(self.handle)
        self._bus: str = nvml.nvmlDeviceGetPciInfo(self.handle).busId
        self._processes_at: float | None = None
        self._events = self._listen()

    def figures(self, processes_every: float) -> Words:
        """What is told of it, in the words of `card`. Raises NVMLError when the card is in trouble."""
        said: Words = {"index": self.index, "uuid": self.uuid, "name": self._name, "bus": self._bus}
        said |= self._memory() | self._health()
        usage = self._ask("nvmlDeviceGetUtilizationRates")
        power = self._ask("nvmlDeviceGetPowerUsage")
        said["utilization"] = None if usage is None else usage.gpu / 100
        said["temperature_c"] = self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        said["power_w"] = None if power is None else power / 1000
        # This name is in drivers before 535 too; the newer one is not.
        said["throttle"] = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        now = time.monotonic()
        if self._processes_at is None or now - self._processes_at >= processes_every:
            running = self._ask("nvmlDeviceGetComputeRunningProcesses_v3")
            if running is not None:  # a driver that has no such list does not say that nobody is there
                said["processes"] = [[one.pid, one.usedGpuMemory] for one in running]
            self._processes_at = now
        return said

    def xids(self) -> list[int]:
        """Xids since the last time. Asked before the figures: it says more than the error that follows."""
        codes: list[int] = []
        while self._events is not None and len(codes) < EVENTS_AT_ONCE:
            try:
                codes.append(int(nvml.nvmlEventSetWait_v2(self._events, 0).eventData))
            except nvml.NVMLError_Timeout:
                break
            except nvml.NVMLError:
                break  # a lost card: its figures are asked next, and say so
        return codes

    def _ask(self, call: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, call)(self.handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in MISSING:
                return None
            raise

    def _memory(self) -> Words:
        memory = self._ask("nvmlDeviceGetMemoryInfo", nvml.nvmlMemory_v2)
        reserved = None if memory is None else memory.reserved
        if memory is None:  # drivers before 510
            memory = nvml.nvmlDeviceGetMemoryInfo(self.handle)
        return {"memory_total": memory.total, "memory_free": memory.free, "memory_reserved": reserved}

    def _health(self) -> Words:
        ecc = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        rows = self._ask("nvmlDeviceGetRemappedRows")
        verdict = self._ask("nvmlDeviceGetFieldValues", [FIELD_RECOVERY])
        mig = self._ask("nvmlDeviceGetMigMode")
        return {
            "ecc_uncorrected": self._ask("nvmlDeviceGetTotalEccErrors", *ecc),
            "remap_pending": None if rows is None else bool(rows[2]),
            "remap_failed": None if rows is None else bool(rows[3]),
            "retirement_pending": _flag(self._ask("nvmlDeviceGetRetiredPagesPendingStatus")),
            "recovery": int(verdict[0].value.uiVal) if verdict and verdict[0].nvmlReturn == 0 else None,
            "mig": mig is not None and bool(mig[0]),
            "persistence": _flag(self._ask("nvmlDeviceGetPersistenceMode")),
        }

    def _listen(self) -> Any:
        """Its event set; None where it reports no Xids."""
        types = (self._ask("nvmlDeviceGetSupportedEventTypes") or 0) & nvml.nvmlEventTypeXidCriticalError
        if not types:
            return None
        events = nvml.nvmlEventSetCreate()
        try:
            nvml.nvmlDeviceRegisterEvents(self.handle, types, events)
        except nvml.NVMLError as error:
            if error.value in MISSING:
                return None
            raise
        return events

    def close(self) -> None:
        """Lets its event set go, as far as the driver lets us."""
        if self._events is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlEventSetFree(self._events)


def _flag(number: int | None) -> bool | None:
    return None if number is None else bool(number)


def watch(period: float, processes_every: float, skip: frozenset[int], speech: Speech) -> None:
    """Rounds through all cards, for ever. Raises NVMLError when NVML as a whole cannot be used."""
    speech.go(begin="driver")
    nvml.nvmlInit()
    speech.add(up={"driver": nvml.nvmlSystemGetDriverVersion(), "count": nvml.nvmlDeviceGetCount()})
    look = Look(processes_every, speech)
    listed = None
    while True:
        speech.go(begin="driver")
        count = nvml.nvmlDeviceGetCount()
        if count != listed:
            look.forget()
            listed = count
        for index in range(count):
            if index not in skip:
                look.at(index)
        speech.go(end=count)
        time.sleep(period)


class Look:
    """Looks at one card after the other; those that answer stay open."""

    def __init__(self, processes_every: float, speech: Speech) -> None:
        self._processes_every = processes_every
        self._speech = speech
        self._cards: dict[int, Card] = {}
        self._uuids: dict[int, str] = {}  # as last told; while as many are listed the indices do not shift

    def forget(self) -> None:
        """A card came or went: who is at which index shows when all are opened again."""
        for card in self._cards.values():
            card.close()
        self._cards.clear()
        self._uuids.clear()

    def at(self, index: int) -> None:
        self._speech.go(begin=index, uuid=self._uuids.get(index))
        opening = index not in self._cards
        try:
            card = self._cards.get(index)
            if card is None:
                card = self._cards[index] = Card(index)
                self._uuids[index] = card.uuid
                opening = False
            for code in card.xids():
                self._speech.add(xid={"uuid": card.uuid, "code": code})
            self._speech.add(card=card.figures(self._processes_every))
        except nvml.NVMLError as error:
            stale = self._cards.pop(index, None)  # after a reset only a new handle works
            if stale is not None:
                stale.close()
            told = {"index": index, "uuid": self._uuids.get(index), "code": error.value, "words": str(error)}
            self._speech.add(refused=told | {"handle": opening})


def main() -> int:
    period, processes_every = float(sys.argv[1]), float(sys.argv[2])
    skip = frozenset(int(index) for index in sys.argv[3].split(",") if index)
    speech = Speech()
    try:
        watch(period, processes_every, skip, speech)
    except nvml.NVMLError as error:
        speech.go(down={"code": error.value, "words": str(error)})
    except BrokenPipeError:
        os._exit(0)  # the daemon is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
