"""A simulated nginx: workers with lists, a file on disk, reloads that overlap, and two ways in which they fail."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from hasupervisor.model import Address, GatewayView, Routing, TrafficView
from tests.sim.engine import Engine

RETIRES = 0.1
"""Seconds for which old and new workers take requests beside each other after a reload (facts/nginx.md)."""

ENOUGH = 20
"""Answers within a minute from which a 99th percentile means something; here it is their maximum."""

OLD_WORKER = "a worker of an earlier generation hangs"

Servers = frozenset[Address]


class Nginx:
    """The truth: which lists answer new requests now, and what is on disk."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.disk: Servers = frozenset()
        self.disk_generation = 0
        self.lists: list[tuple[int, Servers]] = [(0, frozenset())]
        self.broken_until = 0.0  # a syntax error in a file that it includes
        self.deaf_until = 0.0  # reloads have no effect
        self.hung: Servers | None = None  # the list of a worker that hangs: it takes nothing and never leaves
        self.off = False  # nginx.mode = "off": the lists are those of a balancer that asks the daemon who serves

    @property
    def live(self) -> Servers:
        """Every address that may get a new request now."""
        if len(self.lists) == 1:
            return self.lists[0][1]
        return frozenset().union(*(servers for _, servers in self.lists))

    def hang(self) -> None:
        """One of the workers hangs: a disk, a debugger. It keeps the list that it has."""
        self.hung = self.lists[-1][1]

    def hangup(self) -> None:
        """SIGHUP: new workers with what is on disk, a moment later the old ones are gone."""
        if self.engine.now < self.deaf_until or self.engine.now < self.broken_until:
            return
        new = (self.disk_generation, self.disk)
        self.engine.after(0.012, lambda: self._answer(new))

    def _answer(self, new: tuple[int, Servers]) -> None:
        self.lists = [*self.lists, new]
        self.engine.after(RETIRES, lambda: self._retire(new))

    def _retire(self, new: tuple[int, Servers]) -> None:
        if new in self.lists:
            self.lists = self.lists[self.lists.index(new) :]

    def restore(self) -> None:
        self.broken_until = min(self.broken_until, self.engine.now)
        self.deaf_until = min(self.deaf_until, self.engine.now)

    def mend(self) -> None:
        """A person has killed the worker that hung."""
        self.hung = None


@dataclass(slots=True)
class _Log:
    """What the access log has told of one address."""

    completed_at: float | None = None
    recent: deque[tuple[float, float]] = field(default_factory=deque)  # when, milliseconds
    errors_in_row: int = 0
    errored_at: float | None = None


class AccessLog:
    """The daemon's reader of nginx's access log, with the kernel's tables of connections and CPU use beside it."""

    def __init__(
        self,
        engine: Engine,
        in_flight: Callable[[Address], int],
        idle_since: Callable[[Address], float | None],
    ) -> None:
        self._engine = engine
        self._in_flight = in_flight
        self._idle_since = idle_since
        self._logs: dict[Address, _Log] = defaultdict(_Log)
        self.blind_until = 0.0
        self.off = False  # there is no such log, and what is in flight cannot be seen from here

    def line(self, address: Address, took: float, *, ok: bool) -> None:
        """A request of a user has been answered."""
        if self.off:
            return
        log = self._logs[address]
        log.errors_in_row = 0 if ok else log.errors_in_row + 1
        if not ok:
            log.errored_at = self._engine.now
        if ok:
            log.completed_at = self._engine.now
            log.recent.append((self._engine.now, took * 1000.0))

    def view(self, addresses: list[Address]) -> dict[Address, TrafficView]:
        return {address: self._of(address) for address in addresses}

    def _of(self, address: Address) -> TrafficView:
        known = self._engine.now >= self.blind_until and not self.off
        in_flight = self._in_flight(address) if known else 0
        log, idle_since = self._logs.get(address), self._idle_since(address) if known or self.off else None
        if log is None:
            return TrafficView(in_flight=in_flight, in_flight_known=known, idle_since=idle_since)
        while log.recent and log.recent[0][0] < self._engine.now - 60.0:
            log.recent.popleft()
        mean = sum(ms for _, ms in log.recent) / len(log.recent) if log.recent else None
        return TrafficView(
            in_flight=in_flight,
            in_flight_known=known,
            completed_at=log.completed_at,
            mean_ms=mean,
            p99_ms=max(ms for _, ms in log.recent) if len(log.recent) >= ENOUGH else None,
            errors_in_row=log.errors_in_row,
            errored_at=log.errored_at,
            idle_since=idle_since,
        )


class Gateway:
    """The daemon's hand on nginx: stage, test, rename, reload, confirm; removals at once, additions batched."""

    BATCH = 0.2
    RETRY = 2.0

    def __init__(
        self,
        engine: Engine,
        nginx: Nginx,
        rng: random.Random,
        prove: Callable[[Mapping[Address, float]], None],
        changed: Callable[[], None],
        alive: Callable[[], bool],
    ) -> None:
        """`prove` tells the waiting room who serves."""
        self._engine = engine
        self._nginx = nginx
        self._rng = rng
        self._changed = changed
        self._alive = alive
        self._wanted: Servers | None = None
        self._live = self._proven = nginx.disk
        self._live_generation: int | None = None
        self._reason: str | None = None
        self._works = False
        self._retries = False
        self._planned = False
        self._prove = prove
        engine.after(0.05, self._first_look)

    @property
    def at_rest(self) -> bool:
        """What is wanted is proven to answer."""
        return not (self._works or self._planned or self._retries) and self._reason in (None, OLD_WORKER)

    def on_disk(self) -> Servers:
        return frozenset() if self._nginx.off else self._nginx.disk

    def prove(self, proofs: Mapping[Address, float], blameless: Set[Address] = frozenset()) -> None:
        self._prove(proofs)

    def view(self) -> GatewayView:
        if self._nginx.off:
            return GatewayView(off=True)
        if self._reason == OLD_WORKER:
            self._see_hung()
        return GatewayView(
            ok=self._reason is None,
            reason=self._reason,
            generation=self._nginx.disk_generation,
            live_generation=self._live_generation,
            live=self._live,
            joining=self._live - self._proven,
            servers=len(self._live),
        )

    def want(self, routing: Routing) -> None:
        servers = frozenset(route.address for route in routing.routes)
        if servers == self._wanted:
            return
        self._wanted = servers
        if self._nginx.off:
            self._nginx.disk, self._nginx.lists = servers, [(0, servers)]
            return
        if self._works or self._retries:
            return
        removes = bool(self._nginx.disk - servers)
        if removes or not self._planned:
            self._planned = True
            self._engine.after(0.0 if removes else self.BATCH, self._begin)

    def _first_look(self) -> None:
        if self._alive() and self._live_generation is None:
            self._live_generation = self._nginx.lists[-1][0]
            self._live |= self._nginx.hung or frozenset()
            if self._live_generation != self._nginx.disk_generation:
                self._live |= self._nginx.live
            self._changed()

    def _begin(self) -> None:
        self._planned = False
        if not self._alive() or self._works or self._wanted is None:
            return
        if self._wanted == self._nginx.disk and self._live_generation == self._nginx.disk_generation:
            return
        self._works = True
        self._engine.after(self._rng.uniform(0.005, 0.02), self._tested)

    def _tested(self) -> None:
        if not self._alive():
            return
        if self._engine.now < self._nginx.broken_until:
            self._fail('nginx: [emerg] unknown directive "lisen" in /etc/nginx/conf.d/site.conf:3')
            return
        assert self._wanted is not None
        if self._wanted != self._nginx.disk:
            self._nginx.disk, self._nginx.disk_generation = self._wanted, self._nginx.disk_generation + 1
        self._live |= self._nginx.disk
        self._engine.after(0.002, self._hangup)

    def _hangup(self) -> None:
        if not self._alive():
            return  # died between the rename and the signal: the next daemon finds the generations apart
        self._nginx.hangup()
        self._look(self._engine.now + 5.0)

    def _look(self, until: float) -> None:
        """Confirms: the new generation answers, and no older worker takes requests any more."""
        if not self._alive():
            return
        if [generation for generation, _ in self._nginx.lists] == [self._nginx.disk_generation]:
            self._proven = self._nginx.disk
            self._live_generation = self._nginx.disk_generation
            self._works, self._reason = False, None
            self._see_hung()
            if self._wanted != self._nginx.disk:
                self._begin()
            self._changed()
        elif self._engine.now >= until:
            self._fail("nginx did not answer with the new generation within 5 s")
        else:
            self._engine.after(0.025, lambda: self._look(until))

    def _see_hung(self) -> None:
        """A worker that hangs may send requests by its old list, should it ever go on: nobody reloads for that."""
        hung = self._nginx.hung
        if self._reason in (None, OLD_WORKER):
            self._reason = OLD_WORKER if hung is not None else None
            self._live = self._proven | (hung or frozenset())

    def _fail(self, reason: str) -> None:
        self._works, self._reason, self._retries = False, reason, True
        self._engine.after(self.RETRY, self._again)
        self._changed()

    def _again(self) -> None:
        self._retries = False
        if not self._alive():
            return
        if self._wanted == self._nginx.disk and self._live_generation == self._nginx.disk_generation:
            self._reason = None
            self._changed()
        else:
            self._begin()
