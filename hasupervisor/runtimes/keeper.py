"""Keeps one instance of the process runtime: starts it, rotates its log, writes down how it ended; outlives the daemon.

Run by path, with the standard library alone, so that it stays small: `python -I -S keeper.py NAME RUN_FILE <SPEC`.
The words are for `ps`, and for who looks for a keeper. SPEC is JSON:

    name, bind, port, gpus, command (argv), env, run_file, log_file, log_max_bytes, log_files, digest,
    open_files (the soft limit that the instance gets; null: as it is)

It answers one JSON line on its stdout, {"pid", "start"} or {"error"}, and the process that was asked ends then. What
goes on is its child in a session of its own, the keeper proper, whose only child is the instance, in a session of *its*
own. The keeper's record, `run_file`, is replaced atomically and holds

    name, bind, port, gpus, command, log_file, digest, pid, start (clock ticks since boot, /proc/PID/stat), boot (id),
    started_wall, keeper ({"pid", "start"}), log_from (bytes of the log file that are not of this life)

and from the end of the instance on

    exit_code (negative: killed by that signal), oom_killed, ended_wall, tail (last lines)

The instance's output goes straight into the log file, not through a pipe: a keeper that is killed costs the instance
nothing but its exit code. Rotation therefore copies and truncates, as logrotate's copytruncate does; what is written
between the last read and the truncation, microseconds, is lost.
"""

# Paths are text here: importing pathlib would add to the memory of every keeper.
# ruff: noqa: PTH104, PTH108, PTH110, PTH116, PTH120, PTH123
from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False  # as typing's own, without importing it
if TYPE_CHECKING:
    from typing import Any

LOOK_EVERY = 5.0
"""Seconds between looks at the size of the log. A flood may write more than its limit in between."""

TAIL_LINES = 50
TAIL_BYTES = 64 * 1024
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    spec = json.load(sys.stdin)
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        answer = _read_all(reading)
        os.write(1, answer or b'{"error": "its keeper died at the start"}\n')
        # Not sys.exit: nothing of the interpreter's is to be put away twice.
        os._exit(0)
    os.close(reading)
    os.setsid()
    for number in HANDLED:  # only SIGKILL ends a keeper before its instance
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        child, record = begin(spec)
    except OSError as error:
        _report(writing, {"error": f"{error.strerror}: {error.filename or spec['run_file']}"})
        return
    _report(writing, {"pid": record["pid"], "start": record["start"]})
    keep(child, spec, record)


# --- the instance's life ----------------------------------------------------------------------------------------------


def begin(spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Starts the instance: (pid, its record, which is on disk before a line of the instance runs). Raises OSError."""
    log = os.open(spec["log_file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    gate, opened = os.pipe()
    failed, failing = os.pipe()
    # Blocked before the fork, so that the end of a child that ends at once is waited for too.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        try:
            os.close(opened)
            _become(spec, log, gate)
        except OSError as error:
            os.write(failing, f"{error.errno}".encode())
        finally:
            os._exit(127)
    os.close(failing)
    os.close(gate)
    try:
        record = first_record(spec, child, os.fstat(log).st_size)
        write_record(spec["run_file"], record)
        os.write(opened, b"x")
    finally:
        os.close(opened)  # without the x, the child ends and has done nothing
        os.close(log)
    number = _read_all(failed)
    os.close(failed)
    if number:
        os.waitpid(child, 0)
        os.unlink(spec["run_file"])
        raise OSError(int(number), os.strerror(int(number)), spec["command"][0])
    return child, record


def _become(spec: dict[str, Any], log: int, gate: int) -> None:
    """In the child: becomes the instance, once the keeper has written down that there is one."""
    os.setsid()
    if not _read_all(gate):
        os._exit(127)
    for number in (*HANDLED, signal.SIGPIPE):  # what is ignored here would be ignored by it as well
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    unprotect("/proc/self/oom_score_adj")
    if spec.get("open_files") is not None:
        limit_files(spec["open_files"])
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.execvpe(spec["command"][0], spec["command"], spec["env"])


def unprotect(path: str) -> None:
    """Takes back what shields the daemon when memory runs out: it is not meant for gigabytes of model."""
    with open(path) as file:
        is_shielded = int(file.read()) < 0
    if is_shielded:
        with open(path, "w") as file:
            file.write("0")


def limit_files(soft: int) -> None:
    """As many as whoever started the daemon gives: it has raised its own limit, and a server may use select(2)."""
    import resource  # in the child alone: keepers are to stay small

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def first_record(spec: dict[str, Any], pid: int, log_from: int) -> dict[str, Any]:
    return {
        **{key: spec.get(key) for key in ("name", "bind", "port", "gpus", "command", "log_file", "digest")},
        "pid": pid,
        "start": start_ticks(pid),
        "boot": boot_id(),
        "started_wall": time.time(),
        "keeper": {"pid": os.getpid(), "start": start_ticks(os.getpid())},
        "log_from": log_from,
        "exit_code": None,
        "oom_killed": False,
        "ended_wall": None,
        "tail": [],
    }


def keep(child: int, spec: dict[str, Any], record: dict[str, Any]) -> None:
    """Waits for the end of the instance, looks after its log meanwhile, and writes the end down."""
    run_file, log_file = spec["run_file"], spec["log_file"]
    ooms = oom_kills()
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, LOOK_EVERY)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        ooms = oom_kills()
        if rotate(log_file, spec["log_max_bytes"], spec["log_files"]):
            record["log_from"] = 0
            _persist(run_file, record)
    record["exit_code"] = os.waitstatus_to_exitcode(status)
    # The kernel only counts its kills for want of memory. One since the last look, and a SIGKILL: taken for this one.
    record["oom_killed"] = record["exit_code"] == -signal.SIGKILL and oom_kills() > ooms
    record["ended_wall"] = time.time()
    record["tail"] = tail(log_file, record["log_from"])
    while not _persist(run_file, record):
        time.sleep(LOOK_EVERY)


def _persist(run_file: str, record: dict[str, Any]) -> bool:
    """Whether the record could be written. A full disk must not end the keeper: it has nobody to tell but time."""
    try:
        update_record(run_file, record)
    except OSError:
        return False
    return True


# --- its record -------------------------------------------------------------------------------------------------------


def write_record(path: str, record: dict[str, Any]) -> None:
    """Replaces the file as a whole: a reader sees the old one or the new one, also after a crash of the machine."""
    staged = f"{path}.new"
    with open(staged, "w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(staged, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def update_record(path: str, record: dict[str, Any]) -> None:
    """Writes the record unless it was cleared, or is another life's: then nobody asks for this one any more.

    What is there and cannot be understood was this record, which somebody has damaged.
    """
    try:
        with open(path) as file:
            present = json.load(file)
        life = present["pid"], present["start"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        life = None
    if life in (None, (record["pid"], record["start"])):
        write_record(path, record)


# --- its log ----------------------------------------------------------------------------------------------------------


def rotate(path: str, max_bytes: int, files: int) -> bool:
    """Moves the log to PATH.1, PATH.1 to PATH.2 and so on, `files` in all, when it is longer than `max_bytes`.

    Where the disk has no room for the copy the log grows on, until it is as long as all of them together may be; then
    it is emptied without one.
    """
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return False
    if size <= max_bytes:
        return False
    try:
        if files > 1:
            _copy_and_shift(path, files)
    except OSError:
        if os.path.exists(f"{path}.new"):
            os.unlink(f"{path}.new")
        if size <= max_bytes * files:
            return False
    os.truncate(path, 0)
    return True


def _copy_and_shift(path: str, files: int) -> None:
    reading = os.open(path, os.O_RDONLY)
    writing = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        copied = _copy(reading, writing, 0)
        for number in range(files - 2, 0, -1):
            if os.path.exists(f"{path}.{number}"):
                os.rename(f"{path}.{number}", f"{path}.{number + 1}")
        os.rename(f"{path}.new", f"{path}.1")
        _copy(reading, writing, copied)  # what was written meanwhile; nothing but the truncation comes after it
    finally:
        os.close(reading)
        os.close(writing)


def _copy(reading: int, writing: int, copied: int) -> int:
    """Copies from byte `copied` to the end of the file; returns where that was."""
    while count := os.sendfile(writing, reading, copied, 1 << 20):
        copied += count
    return copied


def tail(path: str, begin_at: int, lines: int = TAIL_LINES, at_most: int = TAIL_BYTES) -> list[str]:
    """The last lines of the log from byte `begin_at` on; none when there is no log."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(begin_at if begin_at <= size else 0, size - at_most)
            file.seek(begin)
            found = file.read(size - begin).split(b"\n")
    except FileNotFoundError:
        return []
    if found[-1] == b"":
        found.pop()
    return [line.removesuffix(b"\r").decode(errors="replace") for line in found[-lines:]] if lines else []


# --- the kernel -------------------------------------------------------------------------------------------------------


def start_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot: with its pid that is its identity. None: it is gone."""
    found = stat_fields(pid)
    return int(found[19]) if found else None


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat after the name: [0] state, [3] session, [19] start in ticks. None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].decode().split()  # a name may hold anything, ") " too
    except (FileNotFoundError, ProcessLookupError):
        return None


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since boot; 0 where it does not say."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _read_all(descriptor: int) -> bytes:
    read = b""
    while piece := os.read(descriptor, 65536):
        read += piece
    return read


def _report(descriptor: int, answer: dict[str, Any]) -> None:
    try:
        os.write(descriptor, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        return  # who asked has been killed; the record says what there is to say
    os.close(descriptor)


if __name__ == "__main__":
    main()
