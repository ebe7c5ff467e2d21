"""The waiting room: while nobody serves, requests wait here, in nginx, for the first instance that is proven again.

nginx keeps the request with its body and only asks where to send it. The answer is a proven instance's own address, so
that a request in an old worker, whose list may be empty by now, gets there too. Released is only to an instance that
answered a probe which began after the request came in: an older proof says nothing about now.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum

from hasupervisor.model import Address

PACE = 0.02
"""Seconds between two requests that are released to one instance: what has waited comes as a stream, not as a wave."""

FRESH_FOR = 5.0
"""Seconds for which a proof is good enough to release to; who has not answered since is not sent anybody."""

EXCUSED = 600.0
"""Seconds after a common cause in which a request that was in an instance then may still come back from its fall."""

RETRY_AFTER = 5

_SEPARATOR = re.compile(r",\s*|\s+:\s+")
_FELL = frozenset({"500", "502", "504", "-"})


class Verdict(StrEnum):
    """What becomes of a request that nobody has answered."""

    GO = "go"
    NOBODY = "nobody"  # none was proven in time
    FULL = "full"  # too many wait already
    DEADLY = "deadly"  # as many instances as are allowed have fallen over it


@dataclass(frozen=True, slots=True)
class Asked:
    """What nginx tells of a request: the lists of its tries so far, as nginx's variables write them."""

    tried: str = ""  # $upstream_addr
    connected: str = ""  # $upstream_connect_time
    status: str = ""  # $upstream_status
    waited: float = 0.0  # seconds that it has been held here before, as we told nginx then


@dataclass(frozen=True, slots=True)
class Told:
    """Our answer: with GO where to, and how many seconds it has been held in all."""

    verdict: Verdict
    waited: float
    target: Address | None = None


@dataclass(slots=True)
class Counts:
    """What has happened here since the daemon started."""

    held: int = 0
    released: int = 0
    expired: int = 0
    refused_full: int = 0
    refused_deadly: int = 0
    left: int = 0  # the client went away while it waited


@dataclass(slots=True)
class _Held:
    came: float
    first: float  # when it would have come, had it waited here without a break: the order in which they go
    answer: asyncio.Future[Address] = field(repr=False)


class WaitingRoom:
    """Holds requests. `prove` is told of every cycle's proofs, `ask` of each request that nobody has answered."""

    def __init__(
        self,
        *,
        hold: float,
        hold_max: int,
        tries: int,
        own: str,
        on_wait: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hold` seconds at most, `hold_max` requests at once; `own` is our own socket's name in nginx's lists.

        `on_wait` is called while requests wait for a newer proof than there is.
        """
        self.counts = Counts()
        self._hold, self._hold_max, self._tries, self._own = hold, hold_max, tries, own
        self._on_wait = on_wait
        self._clock = clock
        self._waiting: deque[_Held] = deque()
        self._proofs: Mapping[Address, float] = {}
        self._excused: dict[Address, float] = {}  # when each was last known to be ill of a common cause
        self._next_at: dict[Address, float] = {}
        self._turn = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def hold_max(self) -> int:
        """How many requests may wait at once."""
        return self._hold_max

    @property
    def waiting(self) -> int:
        """How many requests wait now."""
        return len(self._waiting)

    def reconfigure(self, *, hold: float, hold_max: int, tries: int) -> None:
        """Other limits for the requests that come from now on."""
        self._hold, self._hold_max, self._tries = hold, hold_max, tries

    def prove(self, proofs: Mapping[Address, float], blameless: Set[Address] = frozenset()) -> None:
        """Who serves now, each with the time at which the last probe that it answered began (monotonic).

        `blameless`: who turned bad together with others. For EXCUSED seconds no request is blamed for its fall.
        """
        now = self._clock()
        self._excused = {a: at for a, at in self._excused.items() if now - at <= EXCUSED} | dict.fromkeys(
            blameless, now
        )
        self._proofs = proofs
        self._next_at = {address: at for address, at in self._next_at.items() if address in proofs}
        self._release()

    async def ask(self, asked: Asked) -> Told:
        """Waits for somebody to send this request to. Cancelling it says that the client has gone.

        `hold` is for the time here alone: an instance that hung before it fell has taken some of the client's patience,
        and none of ours.
        """
        waited = asked.waited
        if fallen(asked, self._own, {str(address) for address in self._excused}) >= self._tries:
            self.counts.refused_deadly += 1
            return Told(Verdict.DEADLY, waited)
        left = self._hold - waited
        if left <= 0:
            self.counts.expired += 1
            return Told(Verdict.NOBODY, waited)
        if len(self._waiting) >= self._hold_max:
            self.counts.refused_full += 1
            return Told(Verdict.FULL, waited)
        return await self._wait(waited, left)

    def close(self) -> None:
        """Stops releasing; whoever waits is told that there is nobody."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for held in self._waiting:
            held.answer.cancel()
        self._waiting.clear()

    async def _wait(self, waited: float, left: float) -> Told:
        now = self._clock()
        held = _Held(now, now - waited, asyncio.get_running_loop().create_future())
        bisect.insort(self._waiting, held, key=lambda one: one.first)
        self.counts.held += 1
        self._release()
        try:
            async with asyncio.timeout(left):
                target = await held.answer
        except TimeoutError:
            self.counts.expired += 1
            return Told(Verdict.NOBODY, self._hold)
        except asyncio.CancelledError:
            self.counts.left += 1
            raise
        finally:
            if not held.answer.done() or held.answer.cancelled():
                self._forget(held)
        self.counts.released += 1
        return Told(Verdict.GO, waited + self._clock() - held.came, target)

    def _forget(self, held: _Held) -> None:
        if held in self._waiting:
            self._waiting.remove(held)

    def _release(self) -> None:
        """Sends whoever came first, one after another, to those that are proven since; comes back for the others."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            held = self._waiting[0]
            if held.answer.done():
                self._waiting.popleft()
                continue
            target, wait = self._target(held.came)
            if target is None:
                if wait is None:
                    self._on_wait()
                else:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._release)
                return
            self._waiting.popleft()
            self._next_at[target] = self._clock() + PACE
            held.answer.set_result(target)

    def _target(self, came: float) -> tuple[Address | None, float | None]:
        """Who takes the request that came then, or in how many seconds to look again (None: with the next proof)."""
        now = self._clock()
        proven = sorted(a for a, at in self._proofs.items() if at > came and now - at <= FRESH_FOR)
        if not proven:
            return None, None
        free = [address for address in proven if self._next_at.get(address, 0.0) <= now]
        if not free:
            return None, min(self._next_at[address] for address in proven) - now
        return free[next(self._turn) % len(free)], None


def fallen(asked: Asked, own: str, excused: Set[str] = frozenset()) -> int:
    """How many instances took this request and fell over it; those in `excused` once for a reason of their own.

    A number in $upstream_connect_time says that the connection was made, so the request was sent; the status says that
    no answer came. An instance that answered 503 is full, not fallen; one that refused the connection never saw it.
    """
    tries = zip(
        _SEPARATOR.split(asked.tried), _SEPARATOR.split(asked.connected), _SEPARATOR.split(asked.status), strict=False
    )
    fell = [who for who, connect, status in tries if who != own and _is_number(connect) and status in _FELL]
    return len(fell) - len(set(fell) & excused)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
