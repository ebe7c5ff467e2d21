"""The daemon's senses and hands on the simulated host: its picture of dockerd, its probes, and its steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hasupervisor.model import Address, Fact, Miss, Outcome, Phase, ProbeView, RuntimeView, Said, Step
from hasupervisor.observe import evidence
from hasupervisor.observe.answers import Health
from tests.sim.dockerd import Answer, Dockerd
from tests.sim.engine import Engine, Timer
from tests.sim.lives import Job, Life, Mode

Tell = Callable[[], None]
Alive = Callable[[], bool]

LIST_EVERY = 5.0
LIST_AGAIN = 1.0  # after trouble

FAST = 0.5  # seconds between questions to an instance that is coming up, or down for longer
QUICK = 0.2  # after a quick failure, three times
PROMPT_GAP = 1.0
PROMPT_EVERY = 30.0

WORDS = {
    Miss.REFUSED: "connection refused",
    Miss.CONNECT_TIMEOUT: "no connection in 2 s",
    Miss.SILENT: "no answer in 2 s",
    Miss.BROKEN: "closed the connection without an answer",
    Miss.ERROR_STATUS: "answered 500",
}


PROMPT_FAULTS = {
    "ok": "",
    "error": "answered 500",
    "full": "answered 503",
    "refused": "connection refused",
    "reset": "closed the connection without an answer",
}


class Picture:
    """InstanceSense: dockerd's list as the daemon has it, asked for at events, after steps, and every few seconds."""

    def __init__(self, engine: Engine, dockerd: Dockerd, changed: Tell, alive: Alive) -> None:
        self._engine = engine
        self._dockerd = dockerd
        self._changed = changed
        self._alive = alive
        self._view = RuntimeView()
        self._asking = False
        self._again = False
        self._tick: Timer | None = None
        dockerd.listeners.append(self._event)
        dockerd.mourners.append(self._died)
        self.refresh()

    def view(self) -> RuntimeView:
        """The list, corrected by the deaths that have been seen since."""
        facts = tuple(self._corrected(fact) for fact in self._view.facts)
        return replace(self._view, facts=facts) if facts != self._view.facts else self._view

    def refresh(self) -> None:
        if self._asking:
            self._again = True
            return
        self._asking = True
        self._engine.after(0.0, lambda: self._dockerd.list(self._take) if self._alive() else None)

    def resume(self, skipped: float) -> None:
        """After a jump over idle time: the lists of that time were asked for too, and the next one is due."""
        asked = self._engine.now - 0.02
        before = self._view
        if before.trouble is None and before.listed_at is not None and not self._dockerd.down and skipped > LIST_EVERY:
            self._view = RuntimeView(self._dockerd.facts(), max(before.listed_at, asked))
        self.refresh()

    def close(self) -> None:
        self._dockerd.listeners.remove(self._event)
        self._dockerd.mourners.remove(self._died)

    def _event(self, name: str) -> None:
        self.refresh()

    def _died(self) -> None:
        self.refresh()
        self._changed()

    def _corrected(self, fact: Fact) -> Fact:
        life = self._dockerd.buried[fact.runtime_id]
        unsaid = fact.phase in (Phase.RUNNING, Phase.PAUSED) and life.died_at is not None and life.traits.watched
        return replace(fact, phase=Phase.EXITED, died_at=life.died_at) if unsaid else fact

    def _take(self, facts: tuple[Fact, ...] | None, asked: float) -> None:
        self._asking = False
        if not self._alive():
            return
        before, now = self._view, self._engine.now
        if facts is None:
            since = before.trouble_since if before.trouble_since is not None else now
            self._view = RuntimeView(before.facts, before.listed_at, "cannot reach dockerd: no answer in 5 s", since)
        else:
            self._view = RuntimeView(facts, asked)
        self._plan(LIST_AGAIN if facts is None else LIST_EVERY)
        if self._again:
            self._again = False
            self.refresh()
        if facts is not None or before.trouble is None:
            self._changed()

    def _plan(self, delay: float) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._engine.after(delay, lambda: self.refresh() if self._alive() else None, soft=True)


class _Watch:
    """The probes of one incarnation."""

    def __init__(self, prober: Prober, life: Life, view: ProbeView) -> None:
        self.prober = prober
        self.life = life
        self.view = view
        self.asked = False
        self.job: Job | None = None  # the prompt that is out
        self.prompt_over: float | None = None
        self.prompt_tick: Timer | None = None
        self.over = False


class Prober:
    """ProbeSense: health questions and synthetic prompts with the timing and the arithmetic of the real ones."""

    def __init__(
        self,
        engine: Engine,
        rng: random.Random,
        timing: tuple[float, float, float],
        find: Callable[[str], Life | None],
        in_flight: Callable[[Address], int | None],
        unaskable: Callable[[str], bool],
        changed: Tell,
        alive: Alive,
    ) -> None:
        """`in_flight`: None where it cannot be seen. `unaskable`: whether no question can be put to that name."""
        self._engine = engine
        self._rng = rng
        self._interval, self._timeout, self._prompt_timeout = timing
        self._find = find
        self._in_flight = in_flight
        self._unaskable = unaskable
        self._changed = changed
        self._alive = alive
        self._watches: dict[str, _Watch] = {}

    def follow(self, facts: Sequence[Fact]) -> None:
        running = {fact.name: fact for fact in facts}
        for name in [name for name in self._watches if name not in running]:
            self._watches.pop(name).over = True
        for name, fact in running.items():
            watch = self._watches.get(name)
            if watch is not None and watch.view.runtime_id == fact.runtime_id:
                continue
            if watch is not None:
                watch.over = True
            life = self._find(fact.runtime_id)
            assert life is not None, f"{fact.runtime_id} was listed but never lived"
            self._watches[name] = _Watch(self, life, ProbeView(fact.runtime_id))
            self._question(self._watches[name])

    def views(self) -> Mapping[str, ProbeView]:
        return {name: watch.view for name, watch in self._watches.items()}

    def ask(self, name: str) -> None:
        watch = self._watches.get(name)
        if watch is not None and not watch.asked:
            watch.asked = True
            self._think(watch)

    @property
    def at_rest(self) -> bool:
        """No prompt is out or wanted."""
        return not any(watch.job is not None or watch.asked for watch in self._watches.values())

    def resume(self, skipped: float) -> None:
        """After a jump over idle time: what was answered, or missed, before has gone on being so."""
        now = self._engine.now
        for watch in self._watches.values():
            watch.view = self._went_on(watch, min(3, int(skipped / self._interval)))
            if watch.prompt_over is not None and watch.view.prompt_ok:
                watch.prompt_over = max(watch.prompt_over, now - self._rng.uniform(0.0, PROMPT_EVERY))
            self._plan_question(watch, self._rng.uniform(0.0, self._interval))
            self._think(watch)

    def _went_on(self, watch: _Watch, rounds: int) -> ProbeView:
        view, now = watch.view, self._engine.now
        if self._unaskable(watch.life.name):
            return view
        if view.failures and view.miss is not None:
            for _ in range(rounds):
                view = evidence.missed(view, view.miss, view.error, now - 0.01)
        elif view.said is not None:
            health = Health(view.said, view.reason, watch.life.progress())
            for _ in range(rounds):
                view = evidence.answered(view, health, now - 0.01, now - 0.02)
        return view

    # --- health questions --------------------------------------------------------------------------------------------

    def _question(self, watch: _Watch) -> None:
        if watch.over or not self._alive():
            return
        if self._unaskable(watch.life.name):
            self._plan_question(watch, self._interval)
            return
        miss, said, takes = self._truth(watch.life)
        if miss in (Miss.SILENT, Miss.CONNECT_TIMEOUT):
            beside = watch.view.failures == 0  # a second question beside the first one that is late
            self._engine.after(self._timeout, lambda: self._missed(watch, miss, last=not beside), soft=True)
            if beside:
                late = self._timeout * 1.25
                self._engine.after(late, lambda: self._missed(watch, miss, last=True), soft=True)
        elif miss is not None:
            self._engine.after(takes, lambda: self._missed(watch, miss, last=True), soft=True)
        else:
            asked = self._engine.now
            self._engine.after(takes, lambda: self._answered(watch, said, asked), soft=True)

    def _truth(self, life: Life) -> tuple[Miss | None, Said, float]:
        """How a question put now will end: missed or answered, what is said, and after how long."""
        quick = 0.004
        if not life.listening:
            return Miss.REFUSED, Said.HEALTHY, 0.001
        if life.grinds or (life.standing and life.mode is not Mode.WEDGED):
            return Miss.SILENT, Said.HEALTHY, self._timeout
        if life.lie is not None and (life.lie_share >= 1.0 or self._rng.random() < life.lie_share):
            return life.lie, Said.HEALTHY, 0.002
        if not life.loaded:
            return None, Said.LOADING, quick
        if life.mode is Mode.SICK:
            return None, Said.UNHEALTHY, quick
        if life.traits.behind_queue and len(life.running) >= life.traits.slots:
            ends = [job.timer.at - self._engine.now for job in life.running if job.timer is not None]
            wait = min(ends, default=self._timeout) if not life.waiting else self._timeout
            if life.standing or wait >= self._timeout:
                return Miss.SILENT, Said.HEALTHY, self._timeout
            return None, Said.HEALTHY, max(0.0, wait) + quick
        return None, Said.HEALTHY, quick

    def _missed(self, watch: _Watch, miss: Miss, *, last: bool) -> None:
        if watch.over or not self._alive():
            return
        self._now(watch, evidence.missed(watch.view, miss, WORDS[miss], self._engine.now))
        if last:
            slow = miss in (Miss.SILENT, Miss.CONNECT_TIMEOUT)
            quick = not slow and watch.view.failures <= 3
            pause = min(self._interval, QUICK if quick else FAST)
            self._plan_question(watch, max(0.0, pause - (self._timeout if slow else 0.0)))

    def _answered(self, watch: _Watch, said: Said, asked: float) -> None:
        if watch.over or not self._alive():
            return
        reason = "CUDA error: an illegal memory access was encountered" if said is Said.UNHEALTHY else ""
        health = Health(said, reason, watch.life.progress())
        self._now(watch, evidence.answered(watch.view, health, self._engine.now, asked))
        self._think(watch)
        self._plan_question(watch, min(self._interval, FAST) if said is Said.LOADING else self._interval)

    def _plan_question(self, watch: _Watch, delay: float) -> None:
        self._engine.after(delay, lambda: self._question(watch), soft=True)

    def _now(self, watch: _Watch, view: ProbeView) -> None:
        before, watch.view = watch.view, view
        if evidence.news(before, view):
            self._changed()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _think(self, watch: _Watch) -> None:
        """Whether a prompt is due."""
        if watch.over or watch.job is not None or not self._alive():
            return
        view = watch.view
        if view.said is not Said.HEALTHY or view.failures or self._unaskable(watch.life.name):
            return
        due = self._due_in(watch)
        if due <= 0:
            self._prompt(watch)
            return
        if watch.prompt_tick is not None:
            watch.prompt_tick.cancel()
        watch.prompt_tick = self._engine.after(due, lambda: self._think(watch), soft=True)

    def _due_in(self, watch: _Watch) -> float:
        since = None if watch.prompt_over is None else self._engine.now - watch.prompt_over
        rested = 0.0 if since is None else max(0.0, PROMPT_GAP - since)
        if watch.asked:
            return rested
        in_flight = self._in_flight(watch.life.address)
        idle = in_flight == 0
        if watch.view.prompted_at is None:
            return PROMPT_GAP if in_flight else rested
        due = PROMPT_EVERY - since if since is not None else 0.0
        if due > 0:
            return due
        works = watch.view.progress is not None and watch.view.progress.in_flight + watch.view.progress.queued > 0
        return 0.0 if idle and not works else PROMPT_GAP

    def _prompt(self, watch: _Watch) -> None:
        crowded = bool(self._in_flight(watch.life.address))

        def over(fault: str, *, overloaded: bool) -> None:
            if watch.job is not job:
                return
            late.cancel()
            watch.job, watch.asked, watch.prompt_over = None, False, self._engine.now
            if watch.over or not self._alive():
                return
            excused = overloaded and (crowded or bool(self._in_flight(watch.life.address)))
            if not (fault and excused):
                self._now(watch, evidence.prompted(watch.view, fault, self._engine.now))
            self._think(watch)

        def too_late() -> None:
            watch.life.abandon(job)
            over(f"no answer to it in {self._prompt_timeout:g} s", overloaded=True)

        job = Job(watch.life.traits.prompt, lambda how: over(PROMPT_FAULTS[how], overloaded=how == "full"), ours=True)
        late = self._engine.after(self._prompt_timeout, too_late)
        watch.job = job
        watch.life.take(job)


class Hands:
    """Hands: carries out one step at a time for a name, as the real runner does."""

    def __init__(
        self,
        engine: Engine,
        dockerd: Dockerd,
        took: Callable[[Outcome], None],
        began: Callable[[Step], None],
        alive: Alive,
    ) -> None:
        self._engine = engine
        self._dockerd = dockerd
        self._took = took
        self._began = began
        self._alive = alive
        self._acting: dict[str, Step] = {}

    def acting(self) -> Mapping[str, str]:
        return {name: step.kind.value for name, step in self._acting.items()}

    def submit(self, step: Step) -> None:
        self._began(step)
        if step.name in self._acting:
            return
        self._acting[step.name] = step
        self._dockerd.carry_out(step, self._alive, lambda answer: self._ended(step, answer))

    def _ended(self, step: Step, answer: Answer) -> None:
        if not self._alive():
            return
        del self._acting[step.name]
        self._took(
            Outcome(
                name=step.name,
                step=step.kind.value,
                ok=not answer.error,
                at=self._engine.now,
                error=answer.error,
                tail=answer.tail,
                stuck=answer.stuck,
                trouble=answer.trouble,
            )
        )
