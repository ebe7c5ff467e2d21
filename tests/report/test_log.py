"""The log: JSON or words, priorities for the journal, rotation, and nobody who waits for a reader or a disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAY = """
import asyncio, logging, sys, threading, time
import structlog
from hasupervisor.report.log import CannotLog, configure, loop_failure
log = structlog.get_logger("hasupervisor.loop")
foreign = logging.getLogger("docker.api")
"""


def child(code: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SAY + textwrap.dedent(code)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **{"stderr": subprocess.PIPE, **options})


def stderr_of(code: str, **options: Any) -> list[str]:
    """What a daemon that does this writes to standard error, when that is a pipe."""
    _, errors = child(code, **options).communicate(timeout=30)
    return errors.splitlines()


def objects(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"not within 20 s: {what}"
        time.sleep(0.01)


def test_json_has_time_level_and_event_first_and_then_what_belongs_to_it() -> None:
    (line,) = stderr_of("""
        configure()
        log.warning("chatglm-02 backs off 退避", instance="chatglm-02", seconds=1.5, path=threading)
    """)
    found = json.loads(line)
    assert list(found)[:3] == ["ts", "level", "event"]
    assert found["level"] == "warning"
    assert found["event"] == "chatglm-02 backs off 退避"
    assert found["instance"] == "chatglm-02"
    assert found["seconds"] == 1.5
    assert found["path"].startswith("<module 'threading'")
    assert "退避" in line, "people read it, too"
    assert len(found["ts"]) == len("2026-11-24T03:02:11.123Z")
    assert found["ts"].endswith("Z")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_holds_for_our_own_lines(level: str, expected: list[str]) -> None:
    lines = stderr_of(f"""
        configure(level={level!r})
        log.debug("debug"); log.info("info"); log.warning("warning"); log.error("error")
    """)
    assert [found["event"] for found in objects(lines)] == expected


def test_libraries_speak_up_from_warning_on_and_are_named() -> None:
    lines = stderr_of("""
        configure(level="debug")
        foreign.info("GET /containers"); foreign.warning("retrying %s", "dockerd")
        logging.getLogger("httpx").info("HTTP Request"); logging.getLogger("uvicorn.error").warning("Invalid request")
        logging.getLogger("uvicorn.error").error("broken")
    """)
    found = objects(lines)
    assert [(one["logger"], one["event"]) for one in found] == [
        ("docker.api", "retrying dockerd"),
        ("uvicorn.error", "broken"),
    ]


def test_a_traceback_is_one_line_of_json() -> None:
    lines = stderr_of("""
        configure()
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("BUG: a cycle failed")
            foreign.error("it broke", exc_info=True)
    """)
    ours, theirs = objects(lines)
    assert ours["event"] == "BUG: a cycle failed"
    assert ours["exception"].endswith("ZeroDivisionError: division by zero")
    assert ours["exception"].startswith("Traceback (most recent call last):")
    assert theirs["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("raise ZeroDivisionError('oh')", "BUG: the daemon ends"),
        (
            "t = threading.Thread(target=lambda: 1 / 0, name='worker'); t.start(); t.join()",
            "BUG: the thread 'worker' ends",
        ),
        (
            """
async def main():
    asyncio.get_running_loop().set_exception_handler(loop_failure)
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)
asyncio.run(main())
""",
            "BUG: Exception in callback main.<locals>.<lambda>()",
        ),
    ],
)
def test_what_nobody_catches_is_a_line_with_the_word_bug(code: str, event: str) -> None:
    (found,) = objects(stderr_of("configure()\n" + textwrap.dedent(code)))
    assert found["event"].startswith(event)
    assert "ZeroDivisionError" in found["exception"]


def test_running_out_of_descriptors_is_no_defect_and_is_said_with_where_to_look() -> None:
    lines = stderr_of("""
        import resource, socket
        configure()
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(loop_failure)
            server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
            client = socket.socket()
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            client.connect(server.sockets[0].getsockname())
            for _ in range(10):
                await asyncio.sleep(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        asyncio.run(main())
    """)
    (words,) = {found["event"] for found in objects(lines)}
    assert words.startswith("cannot take a connection: Too many open files; ls /proc/")


def test_ctrl_c_is_no_defect() -> None:
    assert stderr_of("configure()\nraise KeyboardInterrupt") == []


def test_on_a_terminal_there_are_words_in_colour_and_elsewhere_json_unless_words_are_asked_for() -> None:
    code = 'configure(format=sys.argv[1])\nlog.info("it serves", instance="chatglm-01")'

    def on_terminal(how: str, **environment: str) -> str:
        above, below = pty.openpty()
        command = [sys.executable, "-c", SAY + code, how]
        env = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **environment}
        subprocess.run(command, stderr=below, check=True, timeout=30, env=env)
        os.close(below)
        output = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while piece := os.read(above, 4096):
                output += piece
        os.close(above)
        return output.decode()

    def elsewhere(how: str) -> str:
        command = [sys.executable, "-c", SAY + code, how]
        return subprocess.run(command, stderr=subprocess.PIPE, check=True, timeout=30, text=True).stderr

    assert "\x1b[" in on_terminal("auto")
    assert "it serves" in on_terminal("auto")
    assert "\x1b[" not in on_terminal("auto", NO_COLOR="1")
    assert json.loads(on_terminal("json"))["event"] == "it serves"
    assert json.loads(elsewhere("auto"))["event"] == "it serves"
    words = elsewhere("console")
    assert "it serves" in words
    assert "instance=chatglm-01" in words
    assert "\x1b" not in words


def test_in_the_journal_each_line_has_its_priority(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with journal.open("wb") as stream:
        found = os.fstat(stream.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        code = """
            configure(level="debug")
            log.debug("d"); log.info("i"); log.warning("w"); log.error("e"); log.critical("c")
        """
        child(code, stderr=stream, env=environment).communicate(timeout=30)
    lines = journal.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert [json.loads(line[3:])["event"] for line in lines] == ["d", "i", "w", "e", "c"]
    environment["JOURNAL_STREAM"] = "1:2"
    assert stderr_of("configure()\nlog.info('i')", env=environment)[0][0] == "{", "that journal is another stream"


# --- the file ---------------------------------------------------------------------------------------------------------

LINES = """
    configure(file=sys.argv[1] if len(sys.argv) > 1 else FILE)
    for line in sys.stdin:
        log.info(line.strip())
        for handler in logging.getLogger().handlers:
            handler.flush()
        print(line.strip(), flush=True)
"""


class Daemon:
    """A process that logs each line it is given to a file, and then says that it has."""

    def __init__(self, path: Path) -> None:
        self.process = child(f"FILE = {str(path)!r}\n" + textwrap.dedent(LINES), stdout=subprocess.PIPE)

    def log(self, words: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == words + "\n"

    def end(self) -> list[str]:
        _, errors = self.process.communicate(timeout=30)
        return errors.splitlines()


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_a_log_file_is_written_beside_standard_error_and_survives_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "ha.log"
    daemon = Daemon(path)
    for number in range(5):
        daemon.log(f"line {number}")
    path.rename(tmp_path / "ha.log.1")
    path.touch()  # logrotate's `create`
    for number in range(5, 10):
        daemon.log(f"line {number}")
    lines = daemon.end()
    assert events(tmp_path / "ha.log.1") + events(path) == [f"line {n}" for n in range(10)]
    assert [found["event"] for found in objects(lines)] == [f"line {n}" for n in range(10)]


def test_a_log_file_that_was_moved_away_with_its_folder_takes_the_lines_until_there_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    daemon = Daemon(folder / "ha.log")
    daemon.log("before")
    folder.rename(tmp_path / "away")
    daemon.log("meanwhile")
    folder.mkdir()
    daemon.log("after")
    daemon.end()
    assert events(tmp_path / "away" / "ha.log") == ["before", "meanwhile"]
    assert events(folder / "ha.log") == ["after"]


def test_a_log_file_that_is_removed_with_its_folder_harms_nobody_and_the_loss_is_said_later(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    daemon = Daemon(folder / "ha.log")
    daemon.log("before")
    (folder / "ha.log").unlink()
    folder.rmdir()
    daemon.log("lost")
    daemon.log("lost too")
    folder.mkdir()
    daemon.log("after")
    lines = daemon.end()
    found = events(folder / "ha.log")
    assert found[0] == "after"
    assert found[1].startswith("2 log lines are lost: [Errno 2] No such file or directory")
    assert [line["event"] for line in objects(lines)] == ["before", "lost", "lost too", "after"]


def test_a_full_disk_harms_nobody_and_the_loss_is_said() -> None:
    assert Path("/dev/full").is_char_device()
    daemon = Daemon(Path("/dev/full"))
    daemon.log("one")
    daemon.log("two")
    assert [line["event"] for line in objects(daemon.end())] == ["one", "two"]


def test_a_log_file_that_cannot_be_opened_is_an_error_in_words_and_changes_nothing(tmp_path: Path) -> None:
    lines = stderr_of(f"""
        configure()
        try:
            configure(level="error", file={str(tmp_path / "no" / "ha.log")!r})
        except CannotLog as error:
            log.info(str(error))
    """)
    folder = tmp_path / "no"
    expected = f"log.file: cannot open {folder}/ha.log: No such file or directory; ls -ld {folder} {folder}/ha.log"
    assert [found["event"] for found in objects(lines)] == [expected]


def test_it_can_be_set_up_again_for_a_reload(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    lines = stderr_of(f"""
        configure(level="warning", file={str(first)!r})
        log.info("too quiet"); log.warning("one")
        configure(level="info", file={str(second)!r})
        log.info("two")
    """)
    assert [found["event"] for found in objects(lines)] == ["one", "two"]
    assert (events(first), events(second)) == (["one"], ["two"])


def test_a_reader_that_stops_does_not_stop_the_daemon_and_the_loss_is_said() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    code = """
        configure()
        began = time.monotonic()
        for number in range(30_000):
            log.info(f"line {number}")
        print(time.monotonic() - began, flush=True)
        sys.stdin.readline()
        log.info("last")
    """
    daemon = child(code, stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert daemon.stdout is not None
    took = daemon.stdout.readline()
    assert float(took) < 30, "it waited for its reader"
    collected = bytearray()

    def collect() -> None:
        while piece := os.read(reading, 65536):
            collected.extend(piece)

    reader = threading.Thread(target=collect)
    reader.start()
    until(lambda: b"are lost" in collected, "the loss is said")
    daemon.communicate("\n", timeout=30)
    reader.join()
    os.close(reading)
    found = [json.loads(line)["event"] for line in collected.decode().splitlines()]
    lines = [event for event in found if event.startswith("line ")]
    assert lines == [f"line {n}" for n in range(len(lines))]
    assert 9_000 < len(lines) < 30_000
    (said,) = [event for event in found if "are lost" in event]
    assert said == f"{30_000 - len(lines)} log lines are lost: they were not taken fast enough"
    assert found[-1] == "last"


def test_a_reader_that_is_gone_does_not_end_the_daemon() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    daemon = child("configure()\nlog.info('into nothing')\nprint('goes on', flush=True)", stdout=-1, stderr=writing)
    os.close(writing)
    out, _ = daemon.communicate(timeout=30)
    assert out == "goes on\n"
    assert daemon.returncode == 0


def test_a_reader_that_has_stopped_does_not_hold_up_the_end_for_long() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    began = time.monotonic()
    daemon = child("configure()\n[log.info('x' * 100) for _ in range(500)]", stderr=writing)
    os.close(writing)
    daemon.wait(timeout=30)
    assert time.monotonic() - began < 15
    os.close(reading)


def test_a_line_that_cannot_be_written_is_a_defect_in_the_log_and_no_failure() -> None:
    lines = stderr_of("""
        class Odd:
            def __str__(self): raise ZeroDivisionError
            __repr__ = __str__
        configure()
        log.info("with something odd", odd=Odd())
        log.info("next")
    """)
    assert lines[0].startswith("BUG: a log line cannot be written: ZeroDivisionError in 'with something odd'")
    assert json.loads(lines[1])["event"] == "next"
