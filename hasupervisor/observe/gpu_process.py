"""Starts the process that calls NVML, reads what it says, and leaves it behind when it hangs: nothing waits for it.

A thread would not do, and neither would multiprocessing: a call that hangs in the kernel (D state) cannot be ended by
any signal, and then keeps the daemon's port and lock, or keeps it from exiting. A plain process, started with no
descriptor of ours and never waited for, keeps nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("gpu_child.py")
AT_ONCE = 64 * 1024  # bytes
LINE_LIMIT = 1024 * 1024  # bytes; a card with a thousand processes is 30 kB
LATE = 0.2
"""Seconds beyond a deadline: where it was our own loop that stood still, what was said meanwhile lies in the pipe."""
LAST_WORDS = 300  # characters

Words = dict[str, Any]


class Silent(Exception):
    """Nothing was said before the deadline."""


class Ended(Exception):
    """It ended; the message is the last that it said in words."""


class GpuProcess:
    """One life of the child. Made by `start_child`."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, pipe: asyncio.BaseTransport):
        self._process = process
        self._reader = reader
        self._pipe = pipe
        self._rest = b""
        self._complaint = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_gone(self) -> bool:
        """Whether it has ended; takes its exit status with it, so that no zombie stays. Does not wait."""
        return self._process.poll() is not None

    async def hear(self, within: float) -> list[Words]:
        """What it says next, one or more lines. Raises Silent after `within` seconds, and Ended."""
        said: list[Words] = []
        while not said:
            chunk = await self._read(within)
            if not chunk:
                raise Ended(self._complaint or "it said nothing")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > LINE_LIMIT:
                raise Ended("it said a line without an end")
            said = [words for line in lines if (words := self._understand(line)) is not None]
        return said

    def leave(self) -> None:
        """Kills it, if it can be killed, and has nothing more to do with it."""
        self._pipe.close()
        if not self.is_gone():
            self._process.kill()

    async def _read(self, within: float) -> bytes:
        for deadline in (within, LATE):
            try:
                async with asyncio.timeout(deadline):
                    return await self._reader.read(AT_ONCE)
            except TimeoutError:
                continue
        raise Silent

    def _understand(self, line: bytes) -> Words | None:
        """Its words; None for what is no statement: a warning or a traceback, kept as its complaint."""
        text = line.decode(errors="replace").strip()
        if text.startswith("{"):
            try:
                words: Words = json.loads(text)
                return words
            except ValueError:
                pass
        if text:
            self._complaint = text[-LAST_WORDS:]
        return None


async def start_child(
    pace: Sequence[float], skip: frozenset[int], environment: Mapping[str, str] | None = None
) -> GpuProcess:
    """Starts a child: `pace` is its period and that of process lists, in seconds; `skip` the indices it leaves alone.

    `environment` is added to ours. Raises OSError when no process can be started.
    """
    process = _popen(pace, skip, environment or {})
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    return GpuProcess(process, reader, pipe)


def _popen(pace: Sequence[float], skip: frozenset[int], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """It takes milliseconds: until the program is there, not until it runs."""
    command = [
        sys.executable,
        "-I",
        str(CHILD),
        *(f"{seconds:g}" for seconds in pace),
        ",".join(map(str, sorted(skip))),
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        close_fds=True,
        start_new_session=True,  # Ctrl-C at the daemon's terminal is the daemon's
    )
