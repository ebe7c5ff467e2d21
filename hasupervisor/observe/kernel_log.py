"""The kernel log sense: GPU faults from /dev/kmsg, as they happen, with the process at fault.

NVML does not report every Xid (79, 119 and 120 among them), and never which process it was.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from hasupervisor.model.gpu import KernelLogView, Xid
from hasupervisor.observe.xid_lines import XidLines

log = structlog.get_logger(__name__)

KMSG = Path("/dev/kmsg")
RECORD = 8192  # bytes: the kernel's longest record, its escapes included
AT_ONCE = 64  # records, then the loop goes on
REST_LIMIT = 65536  # bytes without a line's end
XIDS_KEPT = 256  # until somebody takes them


class KernelLog:
    """Reads the kernel log from `start` on; `on_change` is called, in the event loop, for every Xid and when it fails.

    A path that is a FIFO works too: lines with or without the prefix of /dev/kmsg.
    """

    def __init__(
        self, on_change: Callable[[], None], path: Path = KMSG, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_change = on_change
        self._path = path
        self._lines = XidLines(clock)
        self._xids: list[Xid] = []
        self._view = KernelLogView(readable=False, sentence="the kernel log has not been opened yet")
        self._lost = 0
        self._rest = b""
        self._file: int | None = None

    def view(self) -> KernelLogView:
        """Whether it can be read."""
        return self._view

    def take_xids(self) -> tuple[Xid, ...]:
        """The Xids since the last time, each handed out once."""
        taken, self._xids = tuple(self._xids), []
        return taken

    def start(self) -> None:
        """Begins to read, from now on; needs a running loop. Where it may not be read it says so, once."""
        try:
            self._file = _open(self._path)
            asyncio.get_running_loop().add_reader(self._file, self._readable)
        except OSError as error:
            self._give_up(error)
            return
        self._view = KernelLogView(readable=True)

    def close(self) -> None:
        """Reads no more."""
        if self._file is not None:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
            self._file = None

    def _readable(self) -> None:
        heard = False
        for _ in range(AT_ONCE):
            if self._file is None:
                break
            try:
                chunk = os.read(self._file, RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:  # the kernel wrote over what we had not read yet; what is left comes next
                self._lost += 1
                self._view = KernelLogView(readable=True, lost=self._lost)
                continue
            except OSError as error:
                self._give_up(error)
                break
            heard |= self._take(chunk)
        if heard:
            self._on_change()

    def _take(self, chunk: bytes) -> bool:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-REST_LIMIT:]
        before = len(self._xids)
        for line in lines:
            if line.startswith(b" "):  # the device that the record before was about
                continue
            xid = self._lines.read(_message(line.decode(errors="replace")))
            if xid is not None:
                log.warning("a GPU fault in the kernel log", xid=xid.code, bus=xid.bus, pid=xid.pid, words=xid.words)
                self._xids.append(xid)
        came = len(self._xids) > before
        self._xids = self._xids[-XIDS_KEPT:]
        return came

    def _give_up(self, error: OSError) -> None:
        self.close()
        sentence = (
            f"the kernel log cannot be read ({self._path}: {error.strerror}): GPU faults are heard from NVML alone, "
            "which knows neither all of them nor whose they are; chatglm-hactl doctor says how the daemon may read it"
        )
        log.info(sentence)
        self._view = KernelLogView(readable=False, sentence=sentence, lost=self._lost)
        self._on_change()


def _open(path: Path) -> int:
    is_fifo = stat.S_ISFIFO(path.stat().st_mode)
    # Read and write: a FIFO that was opened for reading alone ends whenever its last writer goes.
    file = os.open(path, (os.O_RDWR if is_fifo else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
    if not is_fifo:
        os.lseek(file, 0, os.SEEK_END)  # what happened before is told by the cards themselves
    return file


def _message(record: str) -> str:
    """Without the prefix of /dev/kmsg, "<priority>,<sequence>,<microseconds>,<flags>;"."""
    head, separator, message = record.partition(";")
    return message if separator and head[:1].isdigit() and head.count(",") >= 3 else record
