"""Sets up the log as [log] says: lines for people on a terminal, JSON elsewhere, priorities for the journal.

Lines are written by a thread for each place they go to, because whoever reads standard error, and any disk, can stop
for minutes, and the cycle must not stop with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from hasupervisor.descriptors import LogThrottle, is_exhausted

KEEP_LINES = 10_000
"""Lines that wait for a place that does not take them; then the newest are dropped, and counted."""

FLUSH_DEADLINE = 2.0
STANDARD_ERROR = 2

Write = Callable[[bytes], None]

# Libraries speak up from here on; uvicorn's warnings are about clients, who are answered, so they are not a person's.
_FOREIGN = {"": logging.WARNING, "uvicorn": logging.ERROR}

# structlog's own words -> the journal's, sd-daemon(3)
_PRIORITIES = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


_may_log = LogThrottle()


class CannotLog(Exception):
    """The log file cannot be opened; the text says why, and the next command."""


def configure(*, level: str = "info", format: str = "auto", file: str = "") -> None:
    """Sets up structlog, the standard library's logging and the hooks for what nobody catches. May be called again.

    `level`, `format` and `file` are [log]'s. Raises CannotLog, and then everything is as it was.
    """
    sinks = [_standard_error(format)]
    if file:
        sinks.append(_file(Path(file), format))
    _replace_sinks(sinks)
    for name, foreign in _FOREIGN.items():
        logging.getLogger(name).setLevel(foreign)
    set_level(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            _stamp,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a reload may change the level
    )
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def set_level(level: str) -> None:
    """Another [log].level from now on, without touching where the lines go: that cannot fail."""
    logging.getLogger("hasupervisor").setLevel(level.upper())


def loop_failure(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: what asyncio would have to print by itself is a defect, but for one thing."""
    error = context.get("exception")
    if is_exhausted(error):
        words = f"cannot take a connection: {error.strerror}; ls /proc/{os.getpid()}/fd | wc -l"
        if _may_log(words):
            structlog.get_logger(__name__).error(words)
        return
    words = f"BUG: {context.get('message', 'unhandled')}"
    if _may_log(words):
        structlog.get_logger(__name__).error(words, exc_info=error)


class Sink(logging.Handler):
    """Hands lines to a thread that writes them with `write`; never blocks, and says how many lines were lost."""

    def __init__(self, write: Write, formatter: logging.Formatter, prefix: Callable[[int], str] = lambda _: "") -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._write = write
        self._prefix = prefix
        self._lines: queue.Queue[bytes | None] = queue.Queue(KEEP_LINES)
        self._lost = 0
        self._why = ""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self._line(record))
        except queue.Full:
            self._lost += 1
            self._why = "they were not taken fast enough"

    def flush(self) -> None:
        """Waits until everything is written, FLUSH_DEADLINE seconds at most; logging does so when the process ends."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: self._lines.unfinished_tasks == 0, FLUSH_DEADLINE)

    def close(self) -> None:
        """The thread ends after the lines that it still has; one that is stuck is left behind."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            words = self.format(record)
        except Exception as error:
            event = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
            words = f"BUG: a log line cannot be written: {type(error).__name__} in {event!r}"
        return f"{self._prefix(record.levelno)}{words}\n".encode("utf-8", "backslashreplace")

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
                if self._lost:
                    lost, self._lost = self._lost, 0
                    words = f"{lost} log lines are lost: {self._why}"
                    self._write(self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, words, None, None)))
            except OSError as error:  # a disk that is full, a reader that is gone: said once it can be said
                self._lost += 1
                self._why = str(error)
            finally:
                self._lines.task_done()


class LogFile:
    """Appends to a file, and opens it anew when logrotate has moved it away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()

    def __call__(self, line: bytes) -> None:
        if not self._is_in_place():
            self._move()
        write_whole(self._descriptor, line)

    def _move(self) -> None:
        """To the file that has the name now. Where there can be none, the old one goes on, if anybody still has it."""
        try:
            descriptor = self._open()
        except OSError:
            if os.fstat(self._descriptor).st_nlink == 0:
                raise
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _is_in_place(self) -> bool:
        try:
            there, ours = self._path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def write_whole(descriptor: int, line: bytes) -> None:
    """Without Python's buffers, whose locks a stuck writer would hold when the process ends."""
    while line:
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:  # a terminal that another program has made non-blocking
            select.select([], [descriptor], [])


def on_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether it is the journal's, which takes the priority from a `<4>` before the line."""
    found = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def _standard_error(format: str) -> Sink:
    terminal = os.isatty(STANDARD_ERROR)
    if format == "console" or (format == "auto" and terminal):
        formatter = _for_people(colours=terminal and not os.environ.get("NO_COLOR"))
    else:
        formatter = _for_machines()
    prefix = _journal_prefix if on_journal(STANDARD_ERROR, os.environ) else lambda _: ""
    return Sink(partial(write_whole, STANDARD_ERROR), formatter, prefix)


def _file(path: Path, format: str) -> Sink:
    try:
        write = LogFile(path)
    except OSError as error:
        raise CannotLog(f"log.file: cannot open {path}: {error.strerror}; ls -ld {path.parent} {path}") from error
    return Sink(write, _for_people(colours=False) if format == "console" else _for_machines())


def _journal_prefix(level: int) -> str:
    return f"<{_PRIORITIES.get(level, 6)}>"


def _for_machines() -> logging.Formatter:
    return _formatter(structlog.processors.format_exc_info, _rename, structlog.processors.JSONRenderer(_json))


def _for_people(*, colours: bool) -> logging.Formatter:
    render = structlog.dev.ConsoleRenderer(
        colors=colours, timestamp_key="ts", exception_formatter=structlog.dev.plain_traceback
    )
    return _formatter(render)


def _formatter(*last: Processor) -> logging.Formatter:
    foreign: list[Processor] = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _stamp]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )


def _stamp(_: object, __: str, event: EventDict) -> EventDict:
    event["ts"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _rename(_: object, __: str, event: EventDict) -> EventDict:
    """ts, level and event first, as every reader of the file expects them."""
    first: MutableMapping[str, Any] = {key: event.pop(key, None) for key in ("ts", "level", "event")}
    return {**first, **event}


def _json(value: object, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _replace_sinks(sinks: list[Sink]) -> None:
    root = logging.getLogger()
    old = [handler for handler in root.handlers if isinstance(handler, Sink)]
    for sink in sinks:
        root.addHandler(sink)
    for sink in old:
        root.removeHandler(sink)
        sink.close()


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger(__name__).critical("BUG: the daemon ends", exc_info=(kind, error, trace))


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread is not None else "?"
    structlog.get_logger(__name__).error(
        f"BUG: the thread {name!r} ends", exc_info=arguments.exc_value or arguments.exc_type
    )
