"""A simulated model server: it loads, works on requests in its slots, and can be made to fail in many ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from hasupervisor.model import Address, Fact, Miss, Phase, Progress
from tests.sim.engine import Engine, Timer


class Mode(StrEnum):
    """What is truly the matter with a process that lives."""

    FINE = "fine"
    FROZEN = "frozen"  # SIGSTOP, a driver that never returns: takes connections, answers nothing
    WEDGED = "wedged"  # answers GET, its work stands still
    SICK = "sick"  # says that it is unhealthy, answers users 503
    ERRING = "erring"  # says that it is healthy, answers users 500: a poisoned CUDA context


STANDING = (Mode.FROZEN, Mode.WEDGED)


@dataclass(frozen=True, slots=True)
class Traits:
    """What all instances of one simulated service have in common. Times in seconds."""

    reports: bool = True  # tells its progress
    listens_early: bool = True  # answers "loading" while it loads; else it refuses connections until then
    behind_queue: bool = False  # its health answer waits behind users' work, as the original api.py's does
    slots: int = 2
    queue: int = 32
    service: float = 1.0  # a usual answer takes this long
    prompt: float = 0.3  # the synthetic one
    load: float = 10.0
    watched: bool = True  # its process can be seen: its death at once (a pidfd), and the CPU that it uses


@dataclass(slots=True, eq=False)
class Job:
    """One request as one instance sees it. `ended` is called once: "ok", "error", "full", "refused" or "reset"."""

    work: float
    ended: Callable[[str], None]
    ours: bool = False  # a synthetic prompt
    left: float = 0.0
    timer: Timer | None = None
    began: float = 0.0  # when it was taken into a slot


@dataclass(slots=True, eq=False)
class Life:
    """One incarnation of an instance, and the truth about it."""

    engine: Engine
    traits: Traits
    name: str
    runtime_id: str
    address: Address
    on_exit: Callable[[Life], None]
    gpus: tuple[str, ...] = ()
    phase: Phase = Phase.CREATED
    mode: Mode = Mode.FINE
    slow: float = 1.0  # answers take this many times longer
    lie: Miss | None = None  # health questions fail although it is fine
    lie_share: float = 1.0  # of them
    lied_at: float = 0.0  # since when they do
    loaded: bool = False
    leaves: bool = False  # has got SIGTERM
    stuck: bool = False  # in D state: no signal ends it
    started_at: float | None = None
    exit_code: int | None = None
    died_at: float | None = None
    oom_killed: bool = False
    proven: bool = False  # has answered somebody well
    late: bool = False  # dockerd made it when nobody waited for it any more
    slow_start: bool = False  # loads much longer than usual
    grinds: bool = False  # computes in its event loop: uses the CPU, and answers nobody until that is done
    completed_at: float | None = None  # last good answer to a user
    bad_at: float = float("-inf")  # when something was last the matter with it, or was said to be
    running: list[Job] = field(default_factory=list)
    waiting: deque[Job] = field(default_factory=deque)
    idle_since: float | None = None  # has used no CPU since then, as far as the kernel tells
    _worked: float = 0.0
    _since: float | None = None  # works, since then

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.phase in (Phase.RUNNING, Phase.PAUSED)

    @property
    def listening(self) -> bool:
        return self.alive and not self.leaves and (self.loaded or self.traits.listens_early)

    @property
    def standing(self) -> bool:
        return self.mode in STANDING or self.phase is Phase.PAUSED

    @property
    def halted(self) -> bool:
        """Whether no answer comes out of it now, for whatever reason."""
        return self.standing or self.grinds

    @property
    def able(self) -> bool:
        """Truly able to serve users."""
        return self.phase is Phase.RUNNING and self.loaded and not self.leaves and self.mode is Mode.FINE

    @property
    def users(self) -> int:
        """Requests of users in it."""
        return sum(not job.ours for job in self.running) + sum(not job.ours for job in self.waiting)

    def fact(self) -> Fact:
        """As a runtime lists it."""
        return Fact(
            self.name,
            self.runtime_id,
            self.phase,
            endpoint=self.address,
            address=self.address,
            started_at=self.started_at,
            exit_code=self.exit_code,
            oom_killed=self.oom_killed,
            image="sim:1",
            gpus=self.gpus,
        )

    def progress(self) -> Progress | None:
        if not self.traits.reports:
            return None
        worked = self._worked + (self.engine.now - self._since if self._since is not None else 0.0)
        return Progress(len(self.running), len(self.waiting), steps=int(worked * 20.0), tokens=int(worked * 20.0))

    # --- what happens to it ------------------------------------------------------------------------------------------

    def start(self, load: float, crash_after: float | None) -> None:
        """Begins to load; `crash_after` seconds later it exits by itself, where that is given."""
        self.phase, self.started_at = Phase.RUNNING, self.engine.now
        if load < float("inf"):
            self.engine.after(load, self._finish_loading)
        if crash_after is not None:
            self.engine.after(crash_after, lambda: self.exit(1))

    def _finish_loading(self) -> None:
        if not self.alive:
            return
        if self.standing:
            self.engine.after(1.0, self._finish_loading)
            return
        self.loaded, self.idle_since = True, self.engine.now

    def exit(self, code: int, *, oom: bool = False) -> None:
        """Its process ends; every connection to it is reset."""
        if not self.alive or self.stuck:
            return
        self.phase, self.exit_code, self.oom_killed, self.died_at = Phase.EXITED, code, oom, self.engine.now
        self._drop_all("reset")
        self.on_exit(self)

    def terminate(self) -> None:
        """SIGTERM: takes nothing new, finishes what runs, exits."""
        if not self.alive or self.stuck or self.leaves:
            return
        self.leaves = True
        if not self.halted and not self.running and not self.waiting:
            self.exit(0)

    def become(self, mode: Mode) -> None:
        """Falls ill, or gets well."""
        if self.stuck or not self.alive:
            return
        self._change(lambda: setattr(self, "mode", mode))
        if mode in (Mode.SICK, Mode.ERRING):
            self._drop_all("error")

    def freeze(self, *, frozen: bool) -> None:
        """`docker pause` and `unpause`."""
        if self.alive:
            self._change(lambda: setattr(self, "phase", Phase.PAUSED if frozen else Phase.RUNNING))

    def grind(self, *, begins: bool) -> None:
        """One question keeps its event loop busy, or no longer does: healthy all the while, and the work goes on."""
        if not self.alive or self.grinds is begins:
            return
        if begins and not self.standing:
            self._halt()
        self.grinds, self.idle_since = begins, None
        if not begins:
            self.bad_at = self.engine.now  # what was missed meanwhile is still counted
            if not self.standing:
                self._go_on()

    def stick_in_removal(self) -> None:
        """`docker rm -f` that never comes to an end: the process is gone, the container is not."""
        self.exit(-9)
        if self.phase is Phase.EXITED:
            self.phase = Phase.REMOVING

    def _change(self, change: Callable[[], None]) -> None:
        stood = self.standing
        self.bad_at = self.engine.now
        change()
        if self.standing and not stood and not self.grinds:
            self._halt()
        elif stood and not self.halted:
            self._go_on()

    # --- its work ----------------------------------------------------------------------------------------------------

    def take(self, job: Job) -> None:
        """A request comes in."""
        if not self.listening:
            job.ended("refused")
        elif self.halted or self.stuck:
            self.waiting.append(job)
        elif not self.loaded:
            job.ended("full")
        elif self.mode in (Mode.SICK, Mode.ERRING):
            job.ended("error" if self.mode is Mode.ERRING else "full")
        elif len(self.waiting) >= self.traits.queue:
            job.ended("full")
        else:
            self.waiting.append(job)
            self._fill()

    def abandon(self, job: Job) -> None:
        """Whoever asked has hung up."""
        if job.timer is not None:
            job.timer.cancel()
        if job in self.running:
            self._rest()
            self.running.remove(job)
            self._work()
            self._fill()
        elif job in self.waiting:
            self.waiting.remove(job)

    def _fill(self) -> None:
        if self.halted:
            return
        while self.waiting and len(self.running) < self.traits.slots:
            job = self.waiting.popleft()
            job.left, job.began = job.work * self.slow, self.engine.now
            self._rest()
            self.running.append(job)
            self._work()
            self._time(job)
        if self.leaves and not self.running and not self.waiting:
            self.exit(0)

    def _time(self, job: Job) -> None:
        job.timer = self.engine.after(job.left, lambda: self._finish(job))

    def _finish(self, job: Job) -> None:
        if job not in self.running:
            return
        self._rest()
        self.running.remove(job)
        self._work()
        self.proven = True
        if not job.ours:
            self.completed_at = self.engine.now
        job.ended("ok")
        self._fill()

    def _halt(self) -> None:
        self._rest()
        for job in self.running:
            if job.timer is not None:
                job.left = max(0.0, job.timer.at - self.engine.now)
                job.timer.cancel()

    def _go_on(self) -> None:
        self._work()
        for job in list(self.running):
            self._time(job)
        self._fill()

    def _drop_all(self, how: str) -> None:
        self._rest()
        dropped = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        for job in dropped:
            if job.timer is not None:
                job.timer.cancel()
            job.ended(how)

    def _work(self) -> None:
        if self.running and not self.halted:
            self._since, self.idle_since = self.engine.now, None

    def _rest(self) -> None:
        if self._since is not None:
            self._worked += self.engine.now - self._since
            self._since = None
            self.idle_since = None if self.grinds else self.engine.now
