"""Lines of the kernel log that tell of a GPU's fault. Pure but for what earlier lines said.

The forms, as NVIDIA's driver has written them over the years (its Xid documentation and users' logs):

    NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
    NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: ...          a MIG instance's
    NVRM: Xid (0000:03:00): 13, 0001 00000000 0000a097 ...                     old drivers
    NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
    NVRM: GPU at PCI:0000:01:00: GPU-c4a80165-86e4-bfbb-ecfa-1d81a70b138a      before the first Xid of a card
    NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.                        beside an Xid 79, or alone
    NVRM: GPU at 0000:01:00.0 has fallen off the bus.
    NVRM: The NVIDIA GPU 0000:b3:00.0                                          one record of three lines, or three
    NVRM: (PCI ID: 10de:26b5) installed in this system has
    NVRM: fallen off the bus and is not responding to commands.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from hasupervisor.model.gpu import Source, Xid, bus_key

FELL = 79  # the Xid of a GPU that has fallen off the bus
RECOVERY_CHANGED = 154
TOGETHER = 1.0  # seconds between records that are lines of one message
WORDS = 200  # characters of a line that are kept

_BUS = r"(?:PCI:)?(?P<bus>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-9a-fA-F])?"
_XID = re.compile(rf"NVRM: Xid \({_BUS}[^)]*\): (?P<code>\d+)(?:,\s*(?P<words>.*))?", re.DOTALL)
_PID = re.compile(r"pid='?(\d+)")
_RECOVERY = re.compile(r"recovery action changed from .* to (0x[0-9a-fA-F]+|\d+)")
_IS_CALLED = re.compile(rf"NVRM: GPU at {_BUS}: (?P<uuid>GPU-[0-9a-fA-F-]{{36}})")
_FELL = re.compile(rf"NVRM: (?:The NVIDIA )?GPU (?:at )?{_BUS}:?\s.*fallen off the bus", re.DOTALL)
_BEGINS_TO_FALL = re.compile(rf"NVRM: The NVIDIA GPU {_BUS}")
_ENDS_FALLING = re.compile(r"NVRM:.*fallen off the bus and is not responding")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


class XidLines:
    """Reads one message after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uuids: dict[tuple[int, int, int], str] = {}
        self._falling: tuple[str, float] | None = None  # the bus that a first line named, and when

    def read(self, message: str) -> Xid | None:
        """The fault that a message tells of; None: it tells of none."""
        if "NVRM:" not in message:
            return None
        message = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), message)
        if found := _IS_CALLED.search(message):
            if (key := bus_key(found["bus"])) is not None:
                self._uuids[key] = found["uuid"]
            return None
        if found := _XID.search(message):
            return self._xid(found["bus"], int(found["code"]), found["words"] or "")
        if found := _FELL.search(message):
            return self._xid(found["bus"], FELL, "GPU has fallen off the bus")
        return self._in_pieces(message)

    def _in_pieces(self, message: str) -> Xid | None:
        now = self._clock()
        if found := _BEGINS_TO_FALL.search(message):
            self._falling = (found["bus"], now)
        elif self._falling is not None and _ENDS_FALLING.search(message):
            (bus, since), self._falling = self._falling, None
            if now - since <= TOGETHER:
                return self._xid(bus, FELL, "GPU has fallen off the bus")
        return None

    def _xid(self, bus: str, code: int, words: str) -> Xid:
        pid = _PID.match(words)
        recovery = _RECOVERY.search(words) if code == RECOVERY_CHANGED else None
        key = bus_key(bus)
        return Xid(
            code=code,
            at=self._clock(),
            source=Source.KERNEL,
            uuid=self._uuids.get(key) if key is not None else None,
            bus=bus,
            pid=int(pid[1]) if pid else None,
            recovery=int(recovery[1], 16 if recovery[1].startswith("0x") else 10) if recovery else None,
            words=" ".join(words.split())[:WORDS],
        )
