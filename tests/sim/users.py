"""Simulated users behind nginx: requests that are tried on another instance as nginx does, and their fates."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hasupervisor.model import Address
from tests.sim.dockerd import Dockerd
from tests.sim.engine import Engine, Timer
from tests.sim.lives import Job, Life
from tests.sim.nginx import Nginx, Servers
from tests.sim.room import Room

TRIES = 3
"""How many instances one request may be sent to (nginx.tries)."""

PATIENCE = 120.0
"""Seconds after which a user goes away."""


@dataclass(slots=True)
class Request:
    """One request of a user on its way through nginx."""

    came: float
    work: float
    servers: Servers  # the list of the worker that has it, for all its tries
    tried: list[Address] = field(default_factory=list)
    at: Address | None = None
    job: Job | None = None
    life: Life | None = None
    timer: Timer | None = None
    rounds: int = 0  # how often the waiting room has let it go
    held: bool = False  # it has waited there


@dataclass(slots=True)
class Fate:
    """Counts of how requests ended."""

    answered: int = 0
    failed: int = 0
    unserved: int = 0  # nobody was routed
    left: int = 0  # the user's patience ended
    refused: int = 0  # waited in vain, and was told to come back later
    slowest: float = 0.0


class Users:
    """A stream of requests of a given rate, through nginx's lists, to the instances."""

    def __init__(
        self,
        engine: Engine,
        rng: random.Random,
        nginx: Nginx,
        dockerd: Dockerd,
        logged: Callable[[Address, float, bool], None],
        failed: Callable[[Request, str], None],
        let_go: Callable[[Request, Address], None],
    ) -> None:
        self.fate = Fate()
        self.active: dict[int, Request] = {}
        self.rate = 0.0  # requests per second
        self.service = dockerd.traits.service
        self._engine = engine
        self._rng = rng
        self._nginx = nginx
        self._dockerd = dockerd
        self._logged = logged
        self._failed = failed
        self._let_go = let_go
        self._stream = 0
        self.room = Room(engine, rng, self._released, self._refused)

    def send(self, life: Life, work: float) -> None:
        """One request with so many seconds of work, to that instance alone."""
        self._begin(Request(self._engine.now, work, frozenset({life.address})))

    def come(self, rate: float, seconds: float) -> None:
        """From now on users come at `rate` per second, for so long."""
        self._stream += 1
        stream, self.rate = self._stream, rate
        self._engine.after(seconds, lambda: self._leave(stream))
        self._next(stream)

    def in_flight(self, address: Address) -> int:
        """Connections of nginx to that address: what the kernel's table shows."""
        return sum(1 for request in self.active.values() if request.at == address)

    def _leave(self, stream: int) -> None:
        if stream == self._stream:
            self._stream += 1
            self.rate = 0.0

    def _next(self, stream: int) -> None:
        if stream != self._stream:
            return
        self._engine.after(self._rng.expovariate(self.rate), lambda: self._arrive(stream))

    def _arrive(self, stream: int) -> None:
        if stream != self._stream:
            return
        self._next(stream)
        _, servers = self._rng.choice(self._nginx.lists)
        work = self._rng.choice((0.5, 0.8, 1.0, 1.0, 1.5, 2.0)) * self.service
        self._begin(Request(self._engine.now, work, servers))

    def _begin(self, request: Request) -> None:
        self.active[id(request)] = request
        request.timer = self._engine.after(PATIENCE, lambda: self._give_up(request))
        self._try(request)

    def _released(self, request: Request, address: Address) -> None:
        """The waiting room has let it go to somebody who is proven to serve."""
        if id(request) in self.active:
            self._let_go(request, address)
            self._send(request, address)

    def _refused(self, request: Request) -> None:
        if id(request) in self.active:
            self._end(request, "refused")

    def _try(self, request: Request) -> None:
        left = [address for address in request.servers if address not in request.tried]
        nobody = not left or len(request.tried) >= TRIES
        if nobody and not self._nginx.off and (not request.tried or request.held):
            request.held = True
            self.room.take(request, request.rounds)
            return
        if nobody:
            self._end(request, "failed" if request.tried else "unserved")
            return
        load = {address: self.in_flight(address) for address in left}
        fewest = min(load.values())
        self._send(request, self._rng.choice(sorted(a for a in left if load[a] == fewest)))

    def _send(self, request: Request, address: Address) -> None:
        request.tried.append(address)
        request.life = self._dockerd.at(address)
        if request.life is None:
            self._engine.after(0.001, lambda: self._ended(request, request.job, "refused"))
            return
        request.at = address
        job = Job(request.work, lambda how: self._ended(request, job, how))
        request.job = job
        request.life.take(job)

    def _ended(self, request: Request, job: Job | None, how: str) -> None:
        if id(request) not in self.active or request.job is not job:
            return
        request.job = None
        at, request.at = request.at, None
        if how == "ok":
            assert at is not None
            self._logged(at, self._engine.now - request.came, True)
            self._end(request, "answered")
        elif how == "error":
            assert at is not None
            self._logged(at, self._engine.now - request.came, False)
            self._end(request, "failed")
        else:
            if how == "reset" and at is not None:
                self._logged(at, self._engine.now - request.came, False)
            self._engine.after(0.001, lambda: self._try(request) if id(request) in self.active else None)

    def _give_up(self, request: Request) -> None:
        if id(request) in self.active:
            if request.job is not None and request.life is not None:
                request.life.abandon(request.job)
            self.room.drop(request)
            self._end(request, "left")

    def _end(self, request: Request, how: str) -> None:
        del self.active[id(request)]
        if request.timer is not None:
            request.timer.cancel()
        setattr(self.fate, how, getattr(self.fate, how) + 1)
        if how == "answered":
            self.fate.slowest = max(self.fate.slowest, self._engine.now - request.came)
        else:
            self._failed(request, how)
