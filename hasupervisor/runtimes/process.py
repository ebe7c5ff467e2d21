"""Instances as plain processes, each with a keeper (keeper.py) that outlives the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hasupervisor.config.values import PLACEHOLDERS
from hasupervisor.model import Address, Fact, Phase
from hasupervisor.runtimes import keeper, process_records
from hasupervisor.runtimes.base import Launch, LaunchFailed, RuntimeTrouble, Stuck
from hasupervisor.runtimes.lanes import Lanes, Overdue
from hasupervisor.runtimes.ports import is_free
from hasupervisor.runtimes.process_records import Record
from hasupervisor.runtimes.process_watch import Deaths, ends_within

T = TypeVar("T")

LOG_MAX_BYTES, LOG_FILES = 10_000_000, 5  # the 10 MB x 5 of CONTRACT 2
RECORDS = ""
"""The lane of looking at all records; every other lane is an instance's name."""
FILES_DEADLINE = 5.0
LAUNCH_DEADLINE = 15.0  # a keeper answers in 0.1 s; the rest is for a machine that is busy loading models
KILL_DEADLINE = 10.0  # from SIGKILL to the end: a process that takes longer is in the kernel, in D state
KEEPER_DEADLINE = 1.0  # from the end of an instance to its keeper having written it down: milliseconds
FOLLOW_EVERY = 0.25

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What an instance gets of the daemon's own environment, and all that begins with LC_; the rest is [process].env."""


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How instances are run as processes. `command` may hold PLACEHOLDERS."""

    command: tuple[str, ...]
    run_dir: Path  # of this daemon alone: it holds a lock on its state
    log_dir: Path
    bind: str = "127.0.0.1"
    env: Mapping[str, str] = field(default_factory=dict)


class ProcessRuntime:
    """The Runtime (base.py) over the records that keepers leave in `run_dir`, one file for each instance."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._lanes = Lanes()
        self._deaths = Deaths()
        self._started_at: dict[str, float | None] = {}  # by runtime_id, so that a fact does not change by microseconds

    def reconfigure(self, settings: ProcessSettings) -> None:
        """What instances started from now on are made of. The folders stay as they were."""
        self._settings = settings

    # --- seeing -------------------------------------------------------------------------------------------------------

    async def list(self) -> list[Fact]:
        pairs = await self._on_files(RECORDS, self._look)
        self._deaths.watch({r.runtime_id: (r.name, r.process) for r, alive in pairs if alive})
        self._started_at = {
            r.runtime_id: self._started_at.get(r.runtime_id) or process_records.started_at(r.process) for r, _ in pairs
        }
        return [self._fact(record, alive) for record, alive in pairs]

    async def ping(self) -> None:
        """There is nobody who could fall silent: the kernel tells of deaths itself."""

    async def strangers(self) -> frozenset[str]:
        """None: a name is a file of our own folder, which nobody else writes."""
        return frozenset()

    async def changes(self) -> AsyncIterator[str]:
        async for name in self._deaths.names():
            yield name

    def _look(self) -> tuple[tuple[Record, bool], ...]:
        """Every record with whether its process is alive. It blocks."""
        deadline = time.monotonic() + KEEPER_DEADLINE
        pairs = []
        for found in process_records.read_all(self._settings.run_dir):
            record, alive = found, process_records.is_alive(found.process)
            if not alive and found.exit_code is None:
                record = self._written_down(found, deadline) or found
            if alive and not process_records.is_alive(record.keeper):
                # Its keeper was killed. It costs the instance its exit code; its log is looked after from here.
                keeper.rotate(str(self._log_file(record.name)), LOG_MAX_BYTES, LOG_FILES)
            pairs.append((record, alive))
        return tuple(pairs)

    def _written_down(self, record: Record, deadline: float) -> Record | None:
        """The record of an ended process once its keeper, if it lives, has written the end down. It blocks, briefly."""
        path = self._run_file(record.name)
        latest: Record | None = record
        while latest is not None and latest.runtime_id == record.runtime_id and latest.exit_code is None:
            is_late = time.monotonic() > deadline
            has_keeper = process_records.is_alive(record.keeper)
            latest = process_records.read(path)  # after asking for the keeper: what it wrote last is seen
            if is_late or not has_keeper:
                break
            time.sleep(0.005)
        return latest

    def _fact(self, record: Record, alive: bool) -> Fact:
        endpoint = Address(self._settings.bind, record.port)
        return Fact(
            name=record.name,
            runtime_id=record.runtime_id,
            phase=Phase.RUNNING if alive else Phase.EXITED,
            endpoint=endpoint,
            address=Address("127.0.0.1", record.port) if self._settings.bind == "0.0.0.0" else endpoint,
            started_at=self._started_at.get(record.runtime_id),
            pid=record.process.pid if alive else None,
            exit_code=None if alive else record.exit_code,
            oom_killed=record.oom_killed,
            image=record.command_line,
            gpus=record.gpus,
        )

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start(self, launch: Launch) -> str:
        settings = self._settings
        if not is_free(settings.bind, launch.port):
            # Asked first: an instance that finds its port taken ends, but whoever has it might answer our probes.
            raise LaunchFailed(
                f"port {launch.port} on {settings.bind} is taken by something else: ss -ltnp 'sport = :{launch.port}'"
            )
        try:
            spec = await self._on_files(launch.name, lambda: self._specification(settings, launch))
        except RuntimeTrouble as e:
            raise LaunchFailed(str(e)) from e
        answer = await _ask_keeper(launch.name, spec)
        if "error" in answer:
            raise LaunchFailed(_why_not(settings, launch, str(answer["error"])))
        self._deaths.tell(launch.name)
        return f"{answer['pid']}@{answer['start']}"

    def _specification(self, settings: ProcessSettings, launch: Launch) -> dict[str, object]:
        """What the keeper is told. It blocks. Raises LaunchFailed when the name is in use."""
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        settings.log_dir.mkdir(parents=True, exist_ok=True)
        run_file = self._run_file(launch.name)
        if process_records.read(run_file) is not None:
            raise LaunchFailed(f"there is an instance {launch.name} already: {run_file}")
        command = [_filled_in(word, launch) for word in settings.command]
        env = environment(settings, launch)
        return {
            "name": launch.name,
            "port": launch.port,
            "gpus": launch.gpus,
            "command": command,
            "env": env,
            "run_file": str(run_file),
            "log_file": str(self._log_file(launch.name)),
            "log_max_bytes": LOG_MAX_BYTES,
            "log_files": LOG_FILES,
            "digest": hashlib.sha256(json.dumps([command, env]).encode()).hexdigest()[:12],
        }

    # --- ending -------------------------------------------------------------------------------------------------------

    async def stop(self, name: str, runtime_id: str, grace: float) -> str:
        record = await self._record(name, runtime_id)
        if record is None:
            return ""
        # To the server alone: what it has forked is its own to end. What it leaves is killed below.
        _signal(record, signal.SIGTERM)
        await ends_within(record.process, grace)
        return await self._put_an_end(record)

    async def kill(self, name: str, runtime_id: str) -> str:
        record = await self._record(name, runtime_id)
        return "" if record is None else await self._put_an_end(record)

    async def clear(self, name: str, runtime_id: str) -> str:
        record = await self._record(name, runtime_id)
        if record is None:
            return ""
        if await self._on_files(name, lambda: process_records.is_alive(record.process)):
            raise Stuck(f"it runs, with pid {record.process.pid}; chatglm-hactl restart {name}")
        return await self._put_an_end(record)

    async def _put_an_end(self, record: Record) -> str:
        """SIGKILL to all of it, until nothing is left; then its last output, and its record is removed."""
        deadline = time.monotonic() + KILL_DEADLINE
        _signal(record, signal.SIGKILL)
        if not await ends_within(record.process, KILL_DEADLINE):
            pid = record.process.pid
            raise Stuck(f"pid {pid} lives {KILL_DEADLINE:g} s after SIGKILL; ps -o pid,stat,wchan:30,cmd -p {pid}")
        while left := await self._on_files(record.name, lambda: process_records.session_of(record)):
            if time.monotonic() > deadline:
                pids = ",".join(str(pid) for pid in left)
                raise Stuck(f"what it has forked lives on after SIGKILL; ps -o pid,stat,wchan:30,cmd -p {pids}")
            await self._on_files(record.name, lambda: process_records.kill_session(record))
            await asyncio.sleep(0.02)
        return await self._on_files(record.name, lambda: self._remove(record))

    def _remove(self, record: Record) -> str:
        """Waits for the keeper's last word, removes the record, returns the last output. It blocks, briefly."""
        latest = self._written_down(record, time.monotonic() + KEEPER_DEADLINE) or record
        # A keeper that is frozen or hangs on its disk must not write the record again after it was removed.
        with contextlib.suppress(PermissionError):  # another user's ends by itself
            process_records.signal_process(record.keeper, signal.SIGKILL)
        self._run_file(record.name).unlink(missing_ok=True)
        return "\n".join(latest.tail or keeper.tail(str(self._log_file(record.name)), latest.log_from))

    # --- output -------------------------------------------------------------------------------------------------------

    async def logs(self, name: str, lines: int, follow: bool) -> AsyncIterator[str]:
        if await self._on_files(name, lambda: process_records.read(self._run_file(name))) is None:
            raise KeyError(name)
        path = self._log_file(name)
        position, rest = 0, b""
        is_first = True
        while True:
            # Asked before the reading: what it writes last is read after it is seen to have ended.
            goes_on = follow and await self._on_files(name, lambda: self._is_alive(name))
            new, position = await self._on_files(name, lambda at=position: _read_from(path, at))  # type: ignore[misc]
            *whole, rest = (rest + new).split(b"\n")
            if not goes_on and rest:
                whole, rest = [*whole, rest], b""
            for line in whole[max(0, len(whole) - lines) :] if is_first else whole:
                yield line.removesuffix(b"\r").decode(errors="replace")
            is_first = False
            if not goes_on:
                return
            await asyncio.sleep(FOLLOW_EVERY)

    async def close(self) -> None:
        self._deaths.close()

    # --- files --------------------------------------------------------------------------------------------------------

    def _run_file(self, name: str) -> Path:
        return self._settings.run_dir / f"{name}.json"

    def _log_file(self, name: str) -> Path:
        return self._settings.log_dir / f"{name}.log"

    def _is_alive(self, name: str) -> bool:
        record = process_records.read(self._run_file(name))
        return record is not None and process_records.is_alive(record.process)

    async def _record(self, name: str, runtime_id: str) -> Record | None:
        """The record of this very life; None when it is gone or the name has another life now."""
        record = await self._on_files(name, lambda: process_records.read(self._run_file(name)))
        return record if record is not None and record.runtime_id == runtime_id else None

    async def _on_files(self, lane: str, question: Callable[[], T]) -> T:
        """Reads and writes in a thread with a deadline: a disk that hangs must not hold up the loop."""
        folder = self._settings.run_dir
        try:
            return await self._lanes.call(lane, question, FILES_DEADLINE)
        except Overdue as e:
            raise RuntimeTrouble(f"cannot read the records in {folder}: {e}; ls {folder}, dmesg") from e
        except OSError as e:
            raise RuntimeTrouble(
                f"cannot read the records in {folder}: {e.strerror}: {e.filename}; ls -l {folder}"
            ) from e
        except ValueError as e:
            raise RuntimeTrouble(f"cannot understand the record {e}; look at it, end its process, remove it") from e


def _signal(record: Record, number: signal.Signals) -> None:
    """Raises Stuck when the instance is another user's: a daemon that ran as root has started it."""
    try:
        process_records.signal_process(record.process, number)
    except PermissionError:
        pid = record.process.pid
        raise Stuck(
            f"pid {pid} is another user's, whom this daemon may not signal (ps -o user,cmd -p {pid}); sudo kill {pid}"
        ) from None


def environment(settings: ProcessSettings, launch: Launch) -> dict[str, str]:
    """The whole environment of an instance."""
    inherited = {key: value for key, value in os.environ.items() if key in INHERITED or key.startswith("LC_")}
    # Its output is a file, which Python would write to by the block: the last lines before a crash would be lost.
    own = {"PYTHONUNBUFFERED": "1", **settings.env, "HOST": settings.bind, "PORT": str(launch.port)}
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)} if launch.gpus else {}
    return {**inherited, **own, **gpus}


def _why_not(settings: ProcessSettings, launch: Launch, error: str) -> str:
    """Why a keeper could not start it, from its "reason: what": the program, or a file of ours."""
    program = _filled_in(settings.command[0], launch)
    if error.endswith(f": {program}"):
        return f"cannot run {program}: {error}; chatglm-hactl config show"
    return f"cannot write down its start: {error}; df -h {settings.run_dir} {settings.log_dir}"


def _filled_in(word: str, launch: Launch) -> str:
    # Not str.format: a command may hold JSON.
    for placeholder, value in zip(PLACEHOLDERS, (sys.executable, str(launch.port), launch.name), strict=True):
        word = word.replace(placeholder, value)
    return word


async def _ask_keeper(name: str, spec: Mapping[str, object]) -> dict[str, object]:
    """Starts a keeper and returns its answer, {"pid", "start"} or {"error"}. Raises LaunchFailed when there is none."""
    env = {"PATH": os.environ.get("PATH", os.defpath)}
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", keeper.__file__, name, stdin=-1, stdout=-1, stderr=-1, env=env
    )
    try:
        async with asyncio.timeout(LAUNCH_DEADLINE):
            said, complaint = await starter.communicate(json.dumps(spec).encode())
    except TimeoutError:
        starter.kill()
        await starter.wait()
        raise LaunchFailed(f"its keeper has not started it in {LAUNCH_DEADLINE:g} s; ps -ef | grep keeper.py") from None
    try:
        answer: dict[str, object] = json.loads(said)
    except ValueError:
        words = " ".join((complaint or said).decode(errors="replace").split()[-30:])
        raise LaunchFailed(f"its keeper failed: {words}; {sys.executable} -I -S {keeper.__file__}") from None
    return answer


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    """What was written after byte `position`, and where it ends; from the start when the file was rotated meanwhile."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(position if position <= size else 0)
            new = file.read()
            return new, file.tell()
    except FileNotFoundError:
        return b"", 0
