"""Instances as plain processes, each with a keeper (keeper.py) that outlives the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hasupervisor.model import Address, Fact, Phase, Problem
from hasupervisor.runtimes import keeper, process_launch, process_records, process_salvage
from hasupervisor.runtimes.base import Launch, LaunchFailed, PortTaken, RuntimeTrouble, Stuck
from hasupervisor.runtimes.lanes import Lanes, Overdue
from hasupervisor.runtimes.ports import is_free
from hasupervisor.runtimes.process_launch import ProcessSettings
from hasupervisor.runtimes.process_records import Record
from hasupervisor.runtimes.process_watch import Deaths, ends_within

T = TypeVar("T")

LOG_MAX_BYTES, LOG_FILES = 10_000_000, 5  # the 10 MB x 5 of CONTRACT 2
RECORDS = ""
"""The lane of looking at all records; every other lane is an instance's name."""
FILES_DEADLINE = 5.0
KILL_DEADLINE = 10.0  # from SIGKILL to the end: a process that takes longer is in the kernel, in D state
KEEPER_DEADLINE = 1.0  # from the end of an instance to its keeper having written it down: milliseconds
FOLLOW_EVERY = 0.25


@dataclass
class _Looked:
    """What a look at the folder of records has found."""

    pairs: tuple[tuple[Record, bool], ...] = ()  # each record with whether its process is alive
    problems: tuple[Problem, ...] = ()
    told: tuple[tuple[str, str], ...] = ()  # of which instance, what

    def add(self, name: str, done: process_salvage.Salvage) -> None:
        if done.problem is not None:
            self.problems += (done.problem,)
        if done.told:
            self.told += ((name, done.told),)


class ProcessRuntime:
    """The Runtime (base.py) over the records that keepers leave in `run_dir`, one file for each instance."""

    def __init__(self, settings: ProcessSettings, told: Callable[[str, str], None] = lambda name, words: None) -> None:
        """`told(name, words)`: what was done about an instance's files, for the history."""
        self._settings = settings
        self._told = told
        self._lanes = Lanes()
        self._deaths = Deaths()
        self._problems: tuple[Problem, ...] = ()
        self._lived: frozenset[str] | None = None  # names of those that lived at the last look; None: none yet
        self._old_binds: dict[str, str] = {}  # by runtime_id, of records that a release before has written
        self._started_at: dict[str, float | None] = {}  # by runtime_id, so that a fact does not change by microseconds

    def reconfigure(self, settings: ProcessSettings) -> None:
        """What instances started from now on are made of. The folders stay as they were."""
        self._settings = settings

    # --- seeing -------------------------------------------------------------------------------------------------------

    async def list(self) -> list[Fact]:
        seen = await self._on_files(RECORDS, self._look)
        pairs, self._problems = seen.pairs, seen.problems
        for name, words in seen.told:
            self._told(name, words)
        try:
            self._deaths.watch({r.runtime_id: (r.name, r.process) for r, alive in pairs if alive})
        except OSError as e:  # no descriptors: a death is then seen by the next list alone
            raise RuntimeTrouble(f"cannot watch the processes: {e.strerror}; chatglm-hactl doctor") from e
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

    def problems(self) -> Sequence[Problem]:
        """Records that cannot be read: each is the problem of its instance alone."""
        return self._problems

    def _read(self, path: Path, seen: _Looked) -> Record | None:
        """A record; of one that cannot be read, what was made of it. It blocks."""
        try:
            try:
                record = process_records.read(path)
            except ValueError as error:
                done = process_salvage.salvage(path, self._settings.log_dir / f"{path.stem}.log", str(error))
                seen.add(path.stem, done)
                record = process_records.read(path) if done.problem is None else None
        except (OSError, ValueError) as error:
            words = f"its record {path} cannot be read: {error}"
            seen.add(path.stem, process_salvage.Salvage(problem=Problem(path.stem, words, f"ls -l {path}; dmesg")))
            return None
        if record is not None and record.name != path.stem:
            seen.add(path.stem, process_salvage.Salvage(problem=process_salvage.misnamed(path, record.name)))
            return None
        return record

    def _look(self) -> _Looked:
        """Every record with whether its process is alive. It blocks."""
        seen = _Looked()
        names = {path.stem for path in self._settings.run_dir.glob("*.json")}
        if self._lived is None or self._lived - names:  # the first look, or one that lived has no record any more
            seen.told += tuple(process_salvage.recover(self._settings.run_dir, self._settings.log_dir))
        self._look_at_records(seen)
        self._lived = frozenset(record.name for record, alive in seen.pairs if alive)
        return seen

    def _look_at_records(self, seen: _Looked) -> None:
        deadline = time.monotonic() + KEEPER_DEADLINE
        for path in sorted(self._settings.run_dir.glob("*.json")):
            found = self._read(path, seen)
            if found is None:
                continue
            record, alive = found, process_records.is_alive(found.process)
            if not alive and found.exit_code is None:
                record = self._written_down(found, deadline) or found
            if alive and not process_records.is_alive(record.keeper):
                # Its keeper was killed. It costs the instance its exit code; its log is looked after from here.
                keeper.rotate(str(self._log_of(record)), LOG_MAX_BYTES, LOG_FILES)
            seen.pairs += ((record, alive),)

    def _written_down(self, record: Record, deadline: float) -> Record | None:
        """The record of an ended process once its keeper, if it lives, has written the end down. It blocks, briefly."""
        path = self._run_file(record.name)
        latest: Record | None = record
        while latest is not None and latest.runtime_id == record.runtime_id and latest.exit_code is None:
            is_late = time.monotonic() > deadline
            has_keeper = process_records.is_alive(record.keeper)
            try:
                latest = process_records.read(path)  # after asking for the keeper: what it wrote last is seen
            except ValueError:  # damaged in this moment: the next look puts it right
                return record
            if is_late or not has_keeper:
                break
            time.sleep(0.005)
        return latest

    def _fact(self, record: Record, alive: bool) -> Fact:
        bind = self._bind_of(record)
        endpoint = Address(bind, record.port)
        return Fact(
            name=record.name,
            runtime_id=record.runtime_id,
            phase=Phase.RUNNING if alive else Phase.EXITED,
            endpoint=endpoint,
            address=Address("127.0.0.1", record.port) if bind == "0.0.0.0" else endpoint,
            started_at=self._started_at.get(record.runtime_id),
            pid=record.process.pid if alive else None,
            exit_code=None if alive else record.exit_code,
            oom_killed=record.oom_killed,
            image=record.command_line,
            gpus=record.gpus,
        )

    def _bind_of(self, record: Record) -> str:
        """Where it listens: by its own record, for the setting may have changed since it was started."""
        if record.bind is not None:
            return record.bind
        if record.runtime_id not in self._old_binds:
            told = process_records.environment(record.process.pid) if process_records.is_alive(record.process) else {}
            self._old_binds[record.runtime_id] = told.get("HOST") or self._settings.bind
        return self._old_binds[record.runtime_id]

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start(self, launch: Launch) -> str:
        settings = self._settings
        try:  # whether the name is free, before the port: one that lives has both
            spec = await self._on_files(launch.name, lambda: self._specification(settings, launch))
        except RuntimeTrouble as e:
            raise LaunchFailed(str(e)) from e
        if not is_free(settings.bind, launch.port):
            # Asked first: an instance that finds its port taken ends, but whoever has it might answer our probes.
            raise PortTaken(
                f"port {launch.port} on {settings.bind} is taken by something else: ss -ltnp 'sport = :{launch.port}'"
            )
        answer = await process_launch.ask_keeper(launch.name, spec)
        if "error" in answer:
            raise LaunchFailed(process_launch.why_not(settings, launch, str(answer["error"])))
        self._deaths.tell(launch.name)
        return f"{answer['pid']}@{answer['start']}"

    def _specification(self, settings: ProcessSettings, launch: Launch) -> dict[str, object]:
        """What the keeper is told. It blocks. Raises LaunchFailed when the name is in use."""
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        settings.log_dir.mkdir(parents=True, exist_ok=True)
        run_file = self._run_file(launch.name)
        if process_records.read(run_file) is not None:
            raise LaunchFailed(f"there is an instance {launch.name} already: {run_file}")
        command = [process_launch.filled_in(word, launch) for word in settings.command]
        env = process_launch.environment(settings, launch)
        return {
            "name": launch.name,
            "port": launch.port,
            "gpus": launch.gpus,
            "command": command,
            "env": env,
            "bind": settings.bind,
            "open_files": settings.open_files,
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
        return "\n".join(latest.tail or keeper.tail(str(self._log_of(record)), latest.log_from))

    # --- output -------------------------------------------------------------------------------------------------------

    async def logs(self, name: str, lines: int, follow: bool) -> AsyncIterator[str]:
        record = await self._on_files(name, lambda: process_records.read(self._run_file(name)))
        if record is None:
            raise KeyError(name)
        path = self._log_of(record)
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

    def _log_of(self, record: Record) -> Path:
        """Where its output goes: by its own record, for the setting may have changed since it was started."""
        return record.log_file or self._log_file(record.name)

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
