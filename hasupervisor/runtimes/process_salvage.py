"""Records that cannot be read: the instance of each is looked for among the processes, and its record written anew.

A record that is damaged (a disk that was full, an editor) is that instance's problem alone. Its process, if it lives,
goes on serving: it must be neither started a second time nor left to itself. What a record holds, the kernel knows as
well: the process writes to the log of that instance, leads a session, and has its port in its environment.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasupervisor.model import Problem
from hasupervisor.runtimes import keeper, process_records
from hasupervisor.runtimes.process_records import GONE_STATES, Identity

ASIDE = ".damaged"
"""The ending of the file that what could not be read is kept in."""

INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]*-\d{2,}")


@dataclass(frozen=True, slots=True)
class Salvage:
    """What became of a file that cannot be read as a record; one of the two is set."""

    told: str = ""  # done, and worth a line of the history
    problem: Problem | None = None  # a person has to look


@dataclass(frozen=True, slots=True)
class _Found:
    alive: list[int]  # processes that are the instance, as far as the kernel can tell
    suspects: list[int]  # keepers of an instance of that name that may be this daemon's


def salvage(path: Path, log_file: Path, why: str) -> Salvage:
    """Puts a file right that cannot be read as a record. It blocks: it looks at every process. Raises OSError.

    One process that is the instance: the record is written anew. None, and no keeper of that name: what it was has
    ended, and the file is set aside. Else nothing is touched.
    """
    name = path.stem
    if not INSTANCE.fullmatch(name):
        words = f"{path} is no record of an instance, and is left alone: {why}"
        return Salvage(problem=Problem("records", words, f"mv {path} /tmp/"))
    found = _look_for(path, log_file)
    if len(found.alive) == 1:
        record = _from_process(path, found.alive[0], log_file)
        if record is not None:
            aside = _set_aside(path)
            keeper.write_record(str(path), record)
            return Salvage(
                told=f"its record could not be read ({why}); it was written anew from its process, "
                f"pid {record['pid']}, and the old one is kept: {aside}"
            )
    if not found.alive and not found.suspects:
        aside = _set_aside(path)
        return Salvage(told=f"its record could not be read ({why}), and no process of it lives; it is kept: {aside}")
    pids = ",".join(str(pid) for pid in (*found.alive, *found.suspects))
    words = f"its record {path} cannot be read ({why}), and which process is its own is not certain"
    return Salvage(problem=Problem(name, words, f"ps -o pid,ppid,user,args -p {pids}; end what is its own, rm {path}"))


def recover(run_dir: Path, log_dir: Path) -> list[tuple[str, str]]:
    """Writes the records anew that are gone while their instances live, and says of which name what was done.

    A state directory that was lost is its memory, not the service: each keeper knows where its record was. It blocks.
    Raises OSError.
    """
    told = []
    found = {pid: words for pid in _pids() if len(words := keeper_words(pid)) == 2 and _is_trusted(pid)}
    keepers = {pid: Path(words[1]) for pid, words in found.items() if words[0] == Path(words[1]).stem}
    lost = {pid: path for pid, path in keepers.items() if path.parent == run_dir and not path.exists()}
    for pid in _pids() if lost else ():
        fields = keeper.stat_fields(pid)
        path = lost.get(int(fields[1])) if fields is not None and fields[0] not in GONE_STATES else None
        record = _from_process(path, pid, log_dir / f"{path.stem}.log") if path is not None else None
        if path is not None and record is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            keeper.write_record(str(path), record)
            told.append((path.stem, f"its record {path} was gone; it was written anew from its process, pid {pid}"))
    return told


def _is_trusted(pid: int) -> bool:
    """Whether a keeper may be one of this daemon's: its own user has started it, or root before that."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid in (0, os.geteuid())
    except OSError:  # it has ended
        return False


def misnamed(path: Path, name: str) -> Problem:
    """A file whose record names another instance: somebody's copy."""
    return Problem("records", f"{path} is a copy of the record of {name}, and is left alone", f"mv {path} /tmp/")


def _look_for(path: Path, log_file: Path) -> _Found:
    """Its keeper names the record, its output is the log; a keeper of a release before names the instance alone."""
    leaders: dict[int, int] = {}  # of sessions: their parents
    ours: set[int] = set()
    maybe: set[int] = set()
    for pid in _pids():
        fields = keeper.stat_fields(pid)
        if fields is None or fields[0] in GONE_STATES:
            continue
        words = keeper_words(pid) if _is_trusted(pid) else []
        if words == [path.stem, str(path)]:
            ours.add(pid)
        elif words == [path.stem]:
            maybe.add(pid)
        elif int(fields[3]) == pid:
            leaders[pid] = int(fields[1])
    output = os.path.realpath(log_file)
    alive = [pid for pid, parent in leaders.items() if parent in ours]
    alive = alive or [pid for pid in leaders if output in _outputs(pid)]
    elsewhere = {parent for pid, parent in leaders.items() if any(log_file.name == Path(o).name for o in _outputs(pid))}
    left = ours if not alive else set()  # one without a child is about to write the end down
    return _Found(alive, sorted((maybe - elsewhere) | left))


def _from_process(path: Path, pid: int, log_file: Path) -> dict[str, Any] | None:
    """The record of a living instance, as its keeper has written it; None: the process does not tell its port."""
    fields, env = keeper.stat_fields(pid), process_records.environment(pid)
    port = env.get("PORT", "")
    if fields is None or not port.isdigit():
        return None
    parent, boot = int(fields[1]), keeper.boot_id()
    keeps = parent if keeper_words(parent)[:1] == [path.stem] else 0
    started = process_records.started_at(Identity(pid, int(fields[19]), boot))
    spec = {
        "name": path.stem,
        "bind": env.get("HOST"),
        "port": int(port),
        "gpus": [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu],
        "command": process_records.command_of(pid),
        "log_file": str(log_file),
        "digest": "",
    }
    record = keeper.first_record(spec, pid, 0)
    record["started_wall"] = time.time() - (time.monotonic() - started) if started is not None else 0.0
    record["keeper"] = {"pid": keeps, "start": keeper.start_ticks(keeps) if keeps else None}
    return record


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def keeper_words(pid: int) -> list[str]:
    """What a keeper was told in its command line: the name of its instance, and the record; empty: it is none."""
    words = process_records.command_of(pid)
    at = next((number for number, word in enumerate(words) if Path(word).name == Path(keeper.__file__).name), None)
    return words[at + 1 :] if at is not None else []


def _outputs(pid: int) -> set[str]:
    """Where a process writes its output and its errors; empty where that is not told."""
    found = set()
    for descriptor in (1, 2):
        with suppress(OSError):
            found.add(str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()))
    return found


def _set_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ASIDE)
    path.rename(aside)
    return aside
