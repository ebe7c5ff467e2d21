"""A simulated dockerd: it starts, ends and lists instances, has outages, late events, and containers that stick."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hasupervisor.model import Address, Fact, Miss, Phase, Step, StepKind
from tests.sim.engine import Engine
from tests.sim.lives import Life, Mode, Traits

HOST = "127.0.0.1"

ENDLESS = float("inf")
"""When a fault ends that does not end by itself."""

SILENCE = 5.0
"""Seconds after which a question to a dockerd that hangs is given up."""

STICKS = 12.0
"""Seconds after which dockerd says that it cannot end a process in D state (docker-gpu.md)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a step ended on the runtime's side."""

    error: str = ""
    tail: str = ""
    stuck: bool = False
    trouble: bool = False


Ended = Callable[[Answer], None]
Alive = Callable[[], bool]


class Dockerd:
    """The truth about containers. The daemon's hands and its watch see it through delays and outages."""

    def __init__(self, engine: Engine, rng: random.Random, traits: Traits, tell: Callable[[str], None]) -> None:
        self.engine = engine
        self.rng = rng
        self.traits = traits
        self.lives: dict[str, Life] = {}
        self.births: Counter[str] = Counter()  # lives by name, those that could not be begun as well
        self.buried: dict[str, Life] = {}  # by runtime_id: every life there was, for whoever asks about the past
        self.down_until = 0.0
        self.late_until = 0.0  # events are lost until then: only the periodic list tells
        self.launch_fails: dict[str, float] = {}
        self.crashes: dict[str, tuple[float, bool]] = {}  # until when new lives crash; True: already while they load
        self.lies_since = float("-inf")
        self.lies_until = 0.0  # every health question fails until then, also of new lives
        self.lies: Miss = Miss.SILENT
        self.slow_load_until = 0.0
        self.slow_load = 1.0
        self.listeners: list[Callable[[str], None]] = []
        self.mourners: list[Callable[[], None]] = []  # who watch the processes themselves
        self.taken_ports: frozenset[int] = frozenset()
        self.never_loads: set[str] = set()  # names whose new lives load for ever
        self.unaskable: set[str] = set()  # names that no probe can be put to: nothing comes of it, not even a miss
        self._tell = tell
        self._ids = 0

    # --- what it is asked --------------------------------------------------------------------------------------------

    @property
    def down(self) -> bool:
        return self.engine.now < self.down_until

    def list(self, take: Callable[[tuple[Fact, ...] | None, float], None]) -> None:
        """Hands over all facts and when they were asked for; None when it does not answer in time."""
        asked = self.engine.now
        if not self.down:
            facts = self.facts()
            self.engine.after(self.rng.uniform(0.005, 0.03), lambda: take(facts, asked))
        elif self.down_until - asked < SILENCE:
            self.engine.at(self.down_until + 0.01, lambda: take(self.facts(), asked))
        else:
            self.engine.after(SILENCE, lambda: take(None, asked))

    def facts(self) -> tuple[Fact, ...]:
        return tuple(life.fact() for life in self.lives.values())

    def at(self, address: Address) -> Life | None:
        """Whose process would take a connection there."""
        return next((life for life in self.lives.values() if life.address == address and life.alive), None)

    # --- steps -------------------------------------------------------------------------------------------------------

    def carry_out(self, step: Step, alive: Alive, ended: Ended) -> None:
        """Begins a step. `alive`: whether whoever asked still lives; calls not sent yet are lost with it."""
        if self.down:
            self._no_answer(step, ended)
        elif step.kind is StepKind.START:
            self._start(step, alive, ended)
        else:
            self._end(step, alive, ended)

    def _no_answer(self, step: Step, ended: Ended) -> None:
        """The call hangs; dockerd may still carry it out when it is well again."""
        if step.kind is StepKind.START and self.rng.random() < 0.3:
            self.engine.at(self.down_until + self.rng.uniform(0.05, 2.0), lambda: self._late_start(step))
        self.engine.after(SILENCE, lambda: ended(Answer(error="cannot reach dockerd: no answer in 5 s", trouble=True)))

    def _late_start(self, step: Step) -> None:
        if step.name not in self.lives:
            self._tell(f"dockerd starts {step.name} late")
            self.births[step.name] += 1
            life = self._create(step)
            life.late = True
            self._launch(life)

    def _start(self, step: Step, alive: Alive, ended: Ended) -> None:
        self.births[step.name] += 1
        if self.engine.now < self.launch_fails.get(step.name, 0.0):
            self.engine.after(0.3, lambda: ended(Answer(error="no such image: sim:1")))
            return
        if step.name in self.lives:
            self.engine.after(0.05, lambda: ended(Answer(error=f'the name "{step.name}" is in use')))
            return
        if step.port in self.taken_ports or any(life.address.port == step.port for life in self.lives.values()):
            self.engine.after(0.2, lambda: ended(Answer(error=f"port {step.port} is already allocated")))
            return
        life = self._create(step)

        def run() -> None:
            if not alive():
                return  # the daemon died between its two calls: a container that was never started stays behind
            if self.down:
                self._no_answer(step, ended)
            elif self.lives.get(step.name) is life:
                self._launch(life)
                self.engine.after(0.02, lambda: ended(Answer()))
            else:
                self.engine.after(0.02, lambda: ended(Answer(error="no such container")))

        self.engine.after(self.rng.uniform(0.05, 0.4), run)

    def _create(self, step: Step) -> Life:
        self._ids += 1
        runtime_id, address = f"{step.name}#{self._ids}", Address(HOST, step.port)
        life = Life(self.engine, self.traits, step.name, runtime_id, address, self._exited, step.gpus)
        self.lives[step.name] = life
        self.buried[life.runtime_id] = life
        return life

    def _launch(self, life: Life) -> None:
        load = self.traits.load * self.rng.uniform(0.7, 1.4)
        if self.engine.now < self.slow_load_until:
            load *= self.slow_load
            life.slow_start = True
        if life.name in self.never_loads:
            load = float("inf")
        until, loading = self.crashes.get(life.name, (0.0, False))
        crash = None
        if self.engine.now < until:
            crash = load * self.rng.random() if loading else load + self.rng.uniform(1.0, 20.0)
        if self.engine.now < self.lies_until:
            life.lie, life.lied_at = self.lies, self.engine.now
        life.start(load, crash)
        self.notify(life.name)

    def _end(self, step: Step, alive: Alive, ended: Ended) -> None:
        life = self.lives.get(step.name)
        if life is None or life.runtime_id != step.runtime_id:
            self.engine.after(0.02, lambda: ended(Answer()))
            return
        if life.phase is Phase.REMOVING:
            words = "it is being removed already, and still there; docker ps -a"
            self.engine.after(0.05, lambda: ended(Answer(error=words, stuck=True)))
            return
        if life.stuck and life.alive:
            wait = STICKS + (step.grace if step.kind is StepKind.STOP else 0.0)
            self.engine.after(wait, lambda: ended(Answer(error="dockerd could not kill it in 12 s", stuck=True)))
            return
        grace = 0.0
        if step.kind is StepKind.STOP:
            life.terminate()
            grace = step.grace
        self._until_dead(life, self.engine.now + grace, lambda: self._remove(life, step, alive, ended))

    def _until_dead(self, life: Life, kill_at: float, then: Callable[[], None]) -> None:
        if life.alive and not life.stuck and self.engine.now >= kill_at:
            life.exit(-9)
        if not life.alive or life.stuck:
            self.engine.after(0.05, then)
        else:
            look = min(0.1, max(0.001, kill_at - self.engine.now))
            self.engine.after(look, lambda: self._until_dead(life, kill_at, then))

    def _remove(self, life: Life, step: Step, alive: Alive, ended: Ended) -> None:
        if not alive():
            return  # nobody asks for the removal any more: its remains stay
        if self.down:
            self._no_answer(step, ended)
            return
        if life.alive:
            self.engine.after(STICKS, lambda: ended(Answer(error="dockerd could not kill it in 12 s", stuck=True)))
            return
        self.remove(life)
        self.engine.after(0.02, lambda: ended(Answer(tail="its last words")))

    # --- what happens to containers ----------------------------------------------------------------------------------

    def remove(self, life: Life) -> None:
        """The container is gone (also `docker rm -f` by somebody else)."""
        life.exit(-9)
        if self.lives.get(life.name) is life and not life.alive and life.phase is not Phase.REMOVING:
            del self.lives[life.name]
            self.notify(life.name)

    def let_go(self, life: Life) -> None:
        """A process that was stuck in the kernel dies at last; its container goes with it, or is left behind, ended."""
        life.stuck = False
        life.mode = Mode.FROZEN
        if self.rng.random() < 0.5:
            self.remove(life)
        else:
            life.exit(-9)

    def _exited(self, life: Life) -> None:
        self._tell(f"{life.name} exits: {life.exit_code}")
        self.notify(life.name)
        if life.traits.watched:
            self.engine.after(0.001, self._mourn)

    def _mourn(self) -> None:
        for mourn in list(self.mourners):
            mourn()

    def notify(self, name: str) -> None:
        """Tells whoever listens that something has happened to that container."""
        if self.engine.now < self.late_until or self.down:
            return
        delay = self.rng.uniform(0.005, 0.1)

        def deliver() -> None:
            for listen in list(self.listeners):
                listen(name)

        self.engine.after(delay, deliver)

    def lie(self, miss: Miss, seconds: float) -> None:
        """From now on every health question fails, for so long, although everybody serves."""
        if self.engine.now >= self.lies_until:
            self.lies_since = self.engine.now
        self.lies, self.lies_until = miss, max(self.lies_until, self.engine.now + seconds)
        for life in self.lives.values():
            life.lied_at = self.engine.now if life.lie is None else life.lied_at
            life.lie, life.lie_share, life.bad_at = miss, 1.0, self.engine.now
        self.engine.after(seconds, self._stop_lying)

    def _stop_lying(self) -> None:
        if self.engine.now >= self.lies_until:
            for life in self.lives.values():
                life.bad_at = self.engine.now if life.lie is not None else life.bad_at
                life.lie = None

    def restore(self) -> None:
        """No new trouble from here on; what is ill already stays so."""
        now = self.engine.now
        self.lies_until = min(self.lies_until, now)
        self._stop_lying()
        self.down_until = min(self.down_until, now)
        self.late_until = min(self.late_until, now)
        self.slow_load_until = min(self.slow_load_until, now)
        self.launch_fails = {name: until for name, until in self.launch_fails.items() if until == ENDLESS}
        self.crashes = {name: (until, loading) for name, (until, loading) in self.crashes.items() if until == ENDLESS}
        self.taken_ports = frozenset()

    def mend(self) -> None:
        """A person has seen to what would never have ended by itself."""
        self.launch_fails.clear()
        self.crashes.clear()
        self.unaskable.clear()
        self.never_loads.clear()
        for life in [life for life in self.lives.values() if life.phase is Phase.REMOVING]:
            self._tell(f"{life.name} is removed at last")
            life.phase = Phase.EXITED
            self.remove(life)
