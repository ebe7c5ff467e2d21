"""Plays traffic through a policy and a queue model, in virtual time: to choose settings before touching production.

The model: instances with so many slots each; a request takes a slot for `work_s` seconds, waits in one common queue
while all are taken, and arrives at random (Poisson). Steps of one second: what moves within a second is not seen. A
new instance serves after `load_s` seconds, one loads at a time; one that goes takes no more work at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hasupervisor.decide.autoscale.facts import Load, Opinion, Rules, Sample, Situation
from hasupervisor.decide.autoscale.judge import Judge

MOST_AT_RANDOM = 700.0  # a second; beyond it chance evens out, and exp() would not take more
LONGEST_WORK = 3600.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """From `at` on, until the next one: so many requests a second, each with so many seconds of work."""

    at: float
    qps: float
    work_s: float


@dataclass(frozen=True, slots=True)
class Host:
    """What the instances are like."""

    start: int  # instances that serve when it begins
    slots: int = 4
    load_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One sample period."""

    at: float  # seconds since it began
    qps: float
    in_flight: float
    serving: int
    desired: int
    wait_p95_s: float  # of what arrived in it: how long it will have queued
    response_time_ms: float | None
    step: str | None = None  # the sentences of the steps that were taken in it


@dataclass(frozen=True, slots=True)
class Total:
    """What a replay came to."""

    seconds: float
    requests: int
    steps: int
    turns: int  # steps in the other direction than the one before
    most: int
    first_step_s: float | None
    wait_p95_s: float
    wait_worst_s: float
    replica_minutes: float  # of all that were wanted, loading ones included: what is paid for


@dataclass(slots=True)
class _Plant:
    """The instances and their queue."""

    host: Host
    serving: int
    loading: list[float] = field(default_factory=list)  # when each is due, the next one first
    queue: float = 0.0
    working: float = 0.0

    def advance(self, now: float, arrived: int, work_s: float) -> tuple[float, float]:
        """One second: (requests that ended, seconds that those who came now will have waited)."""
        while self.loading and self.loading[0] <= now:
            self.loading.pop(0)
            self.serving += 1
        places = float(self.serving * self.host.slots)
        ended = min(self.working, self.working / max(work_s, 1.0)) if work_s > 1.0 else self.working
        if work_s <= 1.0:  # a slot is used several times within the second
            able = places / work_s
            ended = min(self.queue + arrived, able)
            self.queue = self.queue + arrived - ended
            self.working = min(places, ended * work_s + (places if self.queue else 0.0))
        else:
            self.working -= ended
            taken = min(self.queue + arrived, max(0.0, places - self.working))
            self.working += taken
            self.queue = self.queue + arrived - taken
        speed = places / work_s
        return ended, self.queue / speed if speed else (math.inf if self.queue else 0.0)

    def resize(self, desired: int, now: float) -> None:
        while self.serving + len(self.loading) < desired:
            self.loading.append(max([now, *self.loading]) + self.host.load_s)
        while self.serving + len(self.loading) > desired:
            if self.loading:
                self.loading.pop()
            else:
                self.serving -= 1


@dataclass(slots=True)
class _Period:
    """What one sample is made of."""

    seconds: int = 0
    arrived: int = 0
    ended: float = 0.0
    in_flight: float = 0.0
    per_instance: float = 0.0
    queued: float = 0.0
    response_s: float = 0.0
    waits: list[tuple[float, int]] = field(default_factory=list)
    step: str | None = None


def replay(
    trace: Sequence[Traffic], seconds: float, rules: Rules, host: Host, chance: random.Random
) -> Iterator[Row | Total]:
    """A row for each sample period, and the total at the end. `trace` begins at 0, the oldest first."""
    return _Replay(rules, host, chance).run(trace, seconds)


class _Replay:
    def __init__(self, rules: Rules, host: Host, chance: random.Random) -> None:
        self._rules = rules
        self._host = host
        self._chance = chance
        self._judge = Judge(rules, 0.0)
        self._judge.told = host.slots
        self._plant = _Plant(host, host.start)
        self._desired = host.start
        self._period = _Period()
        self._waits: list[tuple[float, int]] = []
        self._steps: list[int] = []
        self._first_step: float | None = None
        self._most = host.start
        self._replica_s = 0.0

    def run(self, trace: Sequence[Traffic], seconds: float) -> Iterator[Row | Total]:
        place, every = 0, max(1, round(self._rules.sample))
        for second in range(1, int(seconds) + 1):
            now = float(second)
            while place + 1 < len(trace) and trace[place + 1].at <= now:
                place += 1
            self._second(now, trace[place] if trace and trace[place].at <= now else Traffic(0.0, 0.0, 1.0))
            if second % every == 0:
                yield self._sample(now)
            self._decide(now)
        yield self._total(seconds)

    def _second(self, now: float, traffic: Traffic) -> None:
        plant, period = self._plant, self._period
        work_s = min(max(traffic.work_s, 0.001), LONGEST_WORK)
        arrived = _arrivals(traffic.qps, self._chance)
        ended, wait = plant.advance(now, arrived, work_s)
        in_flight = plant.working + plant.queue
        serving = plant.serving
        period.seconds += 1
        period.arrived += arrived
        period.ended += ended
        period.in_flight += in_flight
        period.per_instance += in_flight / serving if serving else 0.0
        period.queued += plant.queue
        period.response_s += ended * (work_s + (wait if math.isfinite(wait) else 0.0))
        if arrived:
            period.waits.append((wait, arrived))
            self._waits.append((wait, arrived))
        self._replica_s += self._desired
        self._judge.looked(Load(now, in_flight, serving, wait if math.isfinite(wait) else None))

    def _sample(self, now: float) -> Row:
        period, self._period = self._period, _Period()
        response = 1000.0 * period.response_s / period.ended if period.ended >= 0.5 else None
        sample = Sample(
            at=now,
            serving=self._plant.serving,
            desired=self._desired,
            starting=len(self._plant.loading),
            in_flight=period.in_flight / period.seconds,
            queued=period.queued / period.seconds,
            connections=period.per_instance / period.seconds,
            response_time_ms=response,
            qps=period.ended / period.seconds,
        )
        self._judge.sampled(sample)
        return Row(
            at=now,
            qps=period.arrived / period.seconds,
            in_flight=sample.in_flight or 0.0,
            serving=sample.serving,
            desired=sample.desired,
            wait_p95_s=weighted_quantile(period.waits, 0.95),
            response_time_ms=response,
            step=period.step,
        )

    def _decide(self, now: float) -> None:
        plant = self._plant
        situation = Situation(
            desired=self._desired,
            serving=plant.serving,
            starting=tuple(f"number {plant.serving + n + 1}" for n in range(len(plant.loading))),
            load_seconds=self._host.load_s,
        )
        opinion = self._judge.decide(situation, now)
        if opinion is not None and opinion.desired != self._desired:
            self._step(opinion, now)

    def _step(self, opinion: Opinion, now: float) -> None:
        self._steps.append(1 if opinion.desired > self._desired else -1)
        self._first_step = now if self._first_step is None else self._first_step
        self._desired = opinion.desired
        self._most = max(self._most, self._desired)
        earlier = self._period.step
        self._period.step = opinion.sentence if earlier is None else f"{earlier}; then {opinion.sentence}"
        self._plant.resize(self._desired, now)

    def _total(self, seconds: float) -> Total:
        return Total(
            seconds=seconds,
            requests=sum(count for _, count in self._waits),
            steps=len(self._steps),
            turns=sum(1 for a, b in pairwise(self._steps) if a != b),
            most=self._most,
            first_step_s=self._first_step,
            wait_p95_s=weighted_quantile(self._waits, 0.95),
            wait_worst_s=max((wait for wait, _ in self._waits), default=0.0),
            replica_minutes=self._replica_s / 60.0,
        )


def recorded(samples: Sequence[Sample]) -> tuple[Traffic, ...]:
    """The traffic that samples tell of: the work of a request by Little's law, from what was worked on."""
    found: list[Traffic] = []
    work_s = 1.0
    begin = samples[0].at if samples else 0.0
    for sample in samples:
        if sample.qps is None:
            continue
        if sample.qps > 0 and sample.in_flight is not None:
            worked = max(0.0, sample.in_flight - (sample.queued or 0.0))
            work_s = max(0.001, worked / sample.qps) if worked else work_s
        found.append(Traffic(sample.at - begin, sample.qps, work_s))
    return tuple(found)


def weighted_quantile(values: Sequence[tuple[float, int]], share: float) -> float:
    """The value below which `share` of the weights are; 0 where there are none."""
    left = share * sum(weight for _, weight in values)
    for value, weight in sorted(values):
        left -= weight
        if left <= 0:
            return value
    return 0.0


def _arrivals(qps: float, chance: random.Random) -> int:
    """Poisson (Knuth); so many that chance evens out are their own mean."""
    if qps > MOST_AT_RANDOM:
        return round(qps)
    limit, count, product = math.exp(-qps), 0, chance.random()
    while product > limit:
        count += 1
        product *= chance.random()
    return count
