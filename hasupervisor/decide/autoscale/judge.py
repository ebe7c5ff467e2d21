"""Remembers what was sampled, in fixed memory, and asks the policies when they are due. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hasupervisor.decide.autoscale import capacity, concurrency, guards, lessons, thresholds
from hasupervisor.decide.autoscale.capacity import Slots
from hasupervisor.decide.autoscale.facts import Lesson, Load, Opinion, Rules, Sample, Situation

KEEP_LOADS = 4000  # looks: over an hour at one a second
KEEP_SAMPLES = 1080  # three hours at the usual period


class Judge:
    """Both policies are always asked; `rules.policy` names the one that counts."""

    def __init__(self, rules: Rules, now: float) -> None:
        self.rules = rules
        self.lessons: tuple[Lesson, ...] = ()
        self.told: int | None = None  # how many an instance worked on while others queued in it
        self._loads: deque[Load] = deque(maxlen=KEEP_LOADS)
        self._samples: deque[Sample] = deque(maxlen=KEEP_SAMPLES)
        self._evaluated_at = now

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(self._samples)

    def remember(self, samples: Iterable[Sample], now: float, taught: Iterable[Lesson] = ()) -> None:
        """What was kept from before a restart; what seems to come from the future is left out."""
        self.lessons = tuple(sorted((lesson for lesson in taught if lesson.at <= now), key=lambda lesson: lesson.at))
        for sample in sorted((s for s in samples if s.at <= now), key=lambda s: s.at):
            self._samples.append(sample)
            self._loads.append(Load(sample.at, sample.in_flight, sample.serving))

    def looked(self, load: Load) -> None:
        self._loads.append(load)

    def sampled(self, sample: Sample) -> None:
        self._samples.append(sample)

    def slots(self) -> Slots:
        return capacity.slots(self.rules.slots, self.told, self._samples)

    def opinions(self, situation: Situation, now: float) -> Mapping[str, Opinion]:
        """What each policy wants now."""
        situation = replace(situation, lessons=self.lessons)
        found = {
            "thresholds": thresholds.opinion(self._samples, situation, self.rules, now),
            "concurrency": self._by_concurrency(situation, now),
        }
        return {policy: self._by_lessons(opinion, situation, now) for policy, opinion in found.items()}

    def opinion(self, situation: Situation, now: float) -> Opinion:
        """What the policy that counts wants now."""
        situation = replace(situation, lessons=self.lessons)
        if self.rules.policy == "concurrency":
            found = self._by_concurrency(situation, now)
        else:
            found = thresholds.opinion(self._samples, situation, self.rules, now)
        return self._by_lessons(found, situation, now)

    def _by_concurrency(self, situation: Situation, now: float) -> Opinion:
        away = thresholds.of_the_present(self._samples, situation, self.rules, now)
        return concurrency.opinion(self._loads, situation, self.rules, self.slots(), now, away)

    def decide(self, situation: Situation, now: float) -> Opinion | None:
        """The opinion to act upon, every `rules.evaluate` seconds; in a burst at once. None: it is not time."""
        self.lessons = lessons.refined(self.lessons, situation, self._lowest, now)
        if self.lessons:
            recent = list(self._samples)[-lessons.CALM :]
            self.lessons = lessons.hindsight(self.lessons, recent, situation, self.rules.sample, now)
        due = now - self._evaluated_at >= self.rules.evaluate
        if not due and not self._may_be_urgent(situation, now):
            return None
        opinion = self.opinion(situation, now)
        if not due and not opinion.urgent:
            return None
        self._evaluated_at = now
        if opinion.desired > situation.desired and opinion.reason != "bounds":
            self._learn(situation, now)
        return opinion

    def _may_be_urgent(self, situation: Situation, now: float) -> bool:
        """Cheap, to be asked at every look: whether a burst may ask for a start, and a start may be made."""
        if self.rules.policy != "concurrency" or situation.starting or situation.desired >= self.rules.max:
            return False
        return concurrency.may_be_burst(self._loads, self.slots(), now)

    def _learn(self, situation: Situation, now: float) -> None:
        lowest = self._lowest()
        if lowest is not None and situation.serving:
            self.lessons = lessons.with_one_more(self.lessons, Lesson(situation.serving, lowest, now))

    def _by_lessons(self, opinion: Opinion, situation: Situation, now: float) -> Opinion:
        if opinion.desired >= situation.desired or opinion.reason == "bounds":
            return opinion
        highest = lessons.highest_rate(list(self._samples)[-lessons.CALM :], self.rules.sample, now)
        held = lessons.against(situation, highest, now)
        if held is None:
            return opinion
        return guards.stay(situation, f"one less would do, but {held}", opinion.inputs, held)

    def _lowest(self) -> float | None:
        return lessons.lowest_rate(list(self._samples)[-lessons.CALM :], self.rules.sample)
