"""Programs that a contender is made of: found, started, asked for their version, ended by their pid."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.contest.contenders import Missing
from bench.contest.load import parse

STEP_S = 0.02
END_S = 20.0
COMMAND_S = 30.0
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # where a user's PATH on Debian does not look


def find(program: str, package: str) -> str:
    """The path of a program, or Missing in words."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if found is None:
        raise Missing(f"{program} is not installed: apt-get install {package}, or make bench")
    return found


class Program:
    """One process in the foreground, its words in a file."""

    def __init__(self, command: Sequence[str], folder: Path, log: str, env: Mapping[str, str] | None = None) -> None:
        self._command, self._folder, self._env = command, folder, env
        self.log = folder / log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self._command[0]} does not run"
        return self._process.pid

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._folder,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it: `number` first, SIGKILL after END_S."""
        process, self._process = self._process, None
        if process is None:
            return
        for step in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                process.send_signal(step)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_S)
                return

    def words(self, lines: int = 30) -> str:
        return tail(self.log, lines)


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log; empty where there is none."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


async def run(*command: str, ok: bool = True) -> str:
    """Runs a command to its end and returns what it said; with `ok`, raises if it failed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), COMMAND_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeError(f"{' '.join(command)}: not done in {COMMAND_S:.0f} s") from None
    said = out.decode(errors="replace").strip()
    if ok and process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said}")
    return said


async def until(condition: Callable[[], Awaitable[bool]], what: str, within: float = 30.0) -> None:
    """Asks until it is so; raises in words after `within` seconds."""
    deadline = time.monotonic() + within
    while not await condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {within:.0f} s: {what}")
        await asyncio.sleep(STEP_S)


async def ask(port: int, method: str = "GET", path: str = "/health", body: bytes = b"", within: float = 5.0) -> str:
    """The status that a server on loopback answers, with its body after a blank; empty: no answer."""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode() + body)
                status, _, payload = parse(await reader.read(-1))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return ""
    return f"{status} {(payload or b'').decode(errors='replace')}"


async def answers(port: int) -> bool:
    """Whether GET /health there is answered 200."""
    return (await ask(port)).startswith("200")
