"""Runs the tool as a person or a script would, on a terminal or on pipes, and waits for what shows there."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Self

import psutil

DEADLINE_S = 20.0
PROGRAM = [sys.executable, "-m", "hasupervisor.ctl.main"]
_MINDS_CTRL_C = ["env", "--default-signal=INT"]  # whoever runs the tests may ignore it, which is inherited


class _Running:
    """One program; whatever of it is left at the end is killed."""

    program: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.program.poll() is None:
            self.program.kill()
            self.program.wait(DEADLINE_S)


class Terminal(_Running):
    """The program on a terminal of its own: what it writes, and what the terminal echoes, is `output`."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], *, columns: int = 80, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.program = subprocess.Popen(
            ["setsid", "--ctty", *_MINDS_CTRL_C, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        self.output = ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        super().__exit__(kind, error, _)
        os.close(self._master)

    def wait_for(self, pattern: str) -> None:
        """Read until the pattern shows."""
        deadline = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, f"{pattern!r} does not show in {self.output!r}"
            assert self._read(), f"{pattern!r} did not show before the end: {self.output!r}"

    def press(self, keys: bytes) -> None:
        """As a person does, once the program waits for it.

        Between showing a prompt and reading, Python's input() hears no Ctrl-C: it would wait for one more key.
        """
        deadline = time.monotonic() + DEADLINE_S
        while psutil.Process(self.program.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, f"it does not wait for a key: {self.output!r}"
            time.sleep(0.001)
        os.write(self._master, keys)

    def terminate(self) -> None:
        self.program.terminate()

    def end(self) -> int:
        """The exit code, once the program has ended and all its output is read."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read():
            assert time.monotonic() < deadline, f"it does not end: {self.output!r}"
        return self.program.wait(DEADLINE_S)

    def _read(self) -> bool:
        """Whether the terminal is still open."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return True
        try:
            received = os.read(self._master, 65536)
        except OSError:  # EIO: nobody holds the other side any more
            return False
        self.output += received.decode()
        return bool(received)


class Pipe(_Running):
    """The program without a terminal: its data in `stdout`, its words in `stderr`."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.program = subprocess.Popen(
            [*_MINDS_CTRL_C, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        self.stdout = self.stderr = ""
        self._grown = threading.Condition()
        assert self.program.stdout is not None
        assert self.program.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=("stdout", self.program.stdout)),
            threading.Thread(target=self._read, args=("stderr", self.program.stderr)),
        ]
        for reader in self._readers:
            reader.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        super().__exit__(kind, error, _)
        for reader in self._readers:
            reader.join(DEADLINE_S)

    def wait_for(self, pattern: str) -> None:
        """Until the data has it."""
        self._until(lambda: re.search(pattern, self.stdout) is not None, pattern)

    def wait_for_words(self, pattern: str) -> None:
        """Until the words have it."""
        self._until(lambda: re.search(pattern, self.stderr) is not None, pattern)

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code that follows."""
        self.program.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        code = self.program.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        with self._grown:
            met = self._grown.wait_for(condition, timeout=DEADLINE_S)
        assert met, f"{what!r} does not show in {self.stdout!r} nor {self.stderr!r}"

    def _read(self, name: str, source: IO[bytes]) -> None:
        with source:
            while received := os.read(source.fileno(), 65536):
                with self._grown:
                    setattr(self, name, getattr(self, name) + received.decode())
                    self._grown.notify_all()


def shown(output: str) -> list[str]:
    """The lines of a terminal's output, without the escape sequences for colours."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in output.replace("\r\n", "\n").splitlines()]
