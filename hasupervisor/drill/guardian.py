"""A child of the drill that stops an instance, and lets it go on whatever happens to the drill.

It is told by a pipe what to do. The end of that pipe is the end of the drill, however it came: what is stopped goes on.
So it does when the time is over that was named with the command, for a drill that hangs itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import time
import traceback
from dataclasses import asdict, dataclass, field

from hasupervisor.drill import processes
from hasupervisor.runtimes.process_records import Identity

HOLD, SLOW, RELEASE = "hold", "slow", "release"

STOPPED_S, RUNNING_S = 0.4, 0.1
"""A slow instance is stopped for 0.4 of each 0.5 s: alive for a probe that waits so long, and five times slower."""

ANSWER_S = 5.0
"""Seconds for a command; stopping takes a look at /proc, milliseconds."""

DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What ends a drill must not end its guardian first."""


class GuardianLost(Exception):
    """The guardian has ended or does not answer; whoever was stopped has been let go on by the drill itself."""


class Guardian:
    """The drill's side of it. Made by `start`, before the drill has threads or an event loop."""

    def __init__(self, process: Identity, commands: int, answers: int) -> None:
        self.process = process
        self._commands, self._answers = commands, answers
        self._held: set[Identity] = set()

    async def hold(self, root: Identity, for_s: float) -> None:
        """Stops all of the instance until `release`, for `for_s` seconds at most. Raises GuardianLost."""
        await self._do(HOLD, root, for_s)

    async def slow(self, root: Identity, for_s: float) -> None:
        """Lets it run for RUNNING_S of every STOPPED_S + RUNNING_S only. Raises GuardianLost."""
        await self._do(SLOW, root, for_s)

    async def release(self) -> None:
        """Lets it go on; nothing where nothing is held. Raises GuardianLost, when it goes on all the same."""
        if self._held:
            await self._tell({"do": RELEASE})
            self._held = set()

    async def ended(self) -> None:
        """Waits until the guardian has ended, which it never does by itself while there is a drill."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            await _readable(descriptor)
        finally:
            os.close(descriptor)
        self._let_go()

    def close(self) -> None:
        """Ends it: by the end of its pipe, as the end of the drill would."""
        for descriptor in (self._commands, self._answers):
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process.pid, 0)

    async def _do(self, what: str, root: Identity, for_s: float) -> None:
        self._held = {root}
        await self._tell({"do": what, "root": asdict(root), "for_s": for_s})

    async def _tell(self, command: dict[str, object]) -> None:
        try:
            os.write(self._commands, json.dumps(command).encode() + b"\n")
            async with asyncio.timeout(ANSWER_S):
                await _readable(self._answers)
            answered = os.read(self._answers, 64)
        except (OSError, TimeoutError) as error:
            self._let_go()
            raise GuardianLost(f"the drill's guardian (pid {self.process.pid}) does not answer: {error!r}") from error
        if not answered:
            self._let_go()
            raise GuardianLost(f"the drill's guardian (pid {self.process.pid}) has ended")

    def _let_go(self) -> None:
        for root in self._held:
            processes.go_on(processes.tree(root))
        self._held = set()


async def _readable(descriptor: int) -> None:
    """Waits until there is something to read, the end included; of a pidfd: until its process has ended."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def start() -> Guardian:
    """Forks the guardian, in a session of its own: what is sent to the drill's group does not reach it."""
    hearing, telling = os.pipe()
    listening, answering = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            os.close(telling)
            os.close(listening)
            for number in DEAF_TO:
                signal.signal(number, signal.SIG_IGN)
            _guard(hearing, answering)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(hearing)
    os.close(answering)
    return Guardian(processes.identify(pid), telling, listening)


# --- in the child -----------------------------------------------------------------------------------------------------


@dataclass
class _Hand:
    """Whom it has stopped, and what comes next."""

    root: Identity | None = None
    until: float = 0.0  # monotonic; then all goes on, whatever the drill says
    pulses: bool = False  # slow: stop and go on in turns
    running: bool = True
    turn_at: float = 0.0
    stopped: set[Identity] = field(default_factory=set)

    def take(self, root: Identity, for_s: float, *, pulses: bool) -> None:
        now = time.monotonic()
        self.root, self.until, self.pulses = root, now + for_s, pulses
        self._stop(now)

    def turn(self) -> None:
        """Does what is due now."""
        now = time.monotonic()
        if self.root is None:
            return
        if now >= self.until:
            self.release()
        elif self.pulses and now >= self.turn_at:
            self._stop(now) if self.running else self._go_on(now)

    def release(self) -> None:
        self._go_on(time.monotonic())
        self.root = None

    def wait(self) -> float | None:
        """Seconds until something is due; None: nothing."""
        if self.root is None:
            return None
        due = min(self.until, self.turn_at) if self.pulses else self.until
        return max(0.0, due - time.monotonic())

    def _stop(self, now: float) -> None:
        assert self.root is not None
        self.stopped |= processes.stop(self.root)
        self.running, self.turn_at = False, now + STOPPED_S

    def _go_on(self, now: float) -> None:
        processes.go_on(self.stopped)
        self.stopped = set()
        self.running, self.turn_at = True, now + RUNNING_S


def _guard(commands: int, answers: int) -> None:
    """Obeys until the pipe ends; then, and whatever goes wrong, lets everybody go on."""
    hand, heard = _Hand(), b""
    try:
        while True:
            if select.select([commands], [], [], hand.wait())[0]:
                piece = os.read(commands, 4096)
                if not piece:
                    return
                *lines, heard = (heard + piece).split(b"\n")
                for line in lines:
                    _obey(hand, json.loads(line))
                    os.write(answers, b"done\n")
            hand.turn()
    finally:
        hand.release()


def _obey(hand: _Hand, command: dict[str, object]) -> None:
    if command["do"] == RELEASE:
        hand.release()
        return
    root, for_s = command["root"], command["for_s"]
    assert isinstance(root, dict)
    assert isinstance(for_s, float | int)
    hand.take(Identity(**root), float(for_s), pulses=command["do"] == SLOW)
