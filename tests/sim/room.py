"""The waiting room of the simulated nginx: who finds nobody waits here for somebody who is proven to serve since."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasupervisor.model import Address
from tests.sim.engine import Engine, Timer

if TYPE_CHECKING:
    from tests.sim.users import Request

HOLD = 10.0
"""Seconds that a request waits in all (nginx.hold)."""

ROUNDS = 4
"""How often a request is let go at most: after as many answers "full" it is told to come back later, by us."""

PACE = 0.02
"""Seconds between two requests that are let go to one instance."""

FRESH = 5.0
"""Seconds for which a proof is good enough."""


@dataclass(slots=True)
class _Held:
    request: Request
    came: float
    over: Timer


class Room:
    """Holds requests in the order in which they came; `prove` is told of every cycle's proofs."""

    def __init__(
        self,
        engine: Engine,
        rng: random.Random,
        released: Callable[[Request, Address], None],
        refused: Callable[[Request], None],
    ) -> None:
        self._engine = engine
        self._rng = rng
        self._released = released
        self._refused = refused
        self._held: dict[int, _Held] = {}
        self._proofs: Mapping[Address, float] = {}
        self._next_at: dict[Address, float] = {}
        self._again: Timer | None = None

    def take(self, request: Request, rounds: int) -> None:
        """It waits until somebody serves, for HOLD seconds since it came first; or is refused at once."""
        now = self._engine.now
        left = request.came + HOLD - now
        if left <= 0 or rounds >= ROUNDS:
            self._refused(request)
            return
        over = self._engine.after(left, lambda: self._expire(request))
        self._held[id(request)] = _Held(request, now, over)
        self._release()

    def drop(self, request: Request) -> None:
        """Its user has gone."""
        held = self._held.pop(id(request), None)
        if held is not None:
            held.over.cancel()

    def prove(self, proofs: Mapping[Address, float]) -> None:
        """Who serves now, and since when at least that is known."""
        self._proofs = proofs
        if self._held:
            self._release()

    def _expire(self, request: Request) -> None:
        del self._held[id(request)]
        self._refused(request)

    def _release(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        now = self._engine.now
        for held in list(self._held.values()):
            proven = [a for a, at in sorted(self._proofs.items()) if at > held.came and now - at <= FRESH]
            free = [address for address in proven if self._next_at.get(address, 0.0) <= now]
            if free:
                address = self._rng.choice(free)
                self._next_at[address] = now + PACE
                self.drop(held.request)
                held.request.rounds += 1
                self._released(held.request, address)
            elif proven:
                wait = min(self._next_at[address] for address in proven) - now
                self._again = self._engine.after(wait, self._release)
                return
            else:
                return
