"""One fault's stage: the instances, the load that runs, and what is done to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from dataclasses import dataclass, field
from typing import Any

from bench.contest.contenders import Contender, Stand
from bench.contest.ledger import Ledger, Life, is_alive
from bench.contest.load import Load, Stream
from bench.contest.programs import ask

BEFORE_S = 4.0  # of undisturbed load


@dataclass(slots=True)
class Scene:
    """One fault's stage: who stands there, and what came to pass beside the requests."""

    stand: Stand
    contender: Contender
    ledger: Ledger
    load: Load
    chance: random.Random
    seconds: float
    said: dict[str, Any] = field(default_factory=dict)  # what this fault alone has to tell
    streams: list[Stream] = field(default_factory=list)

    def victim(self) -> Life:
        """The instance that a fault of one is made in: the second."""
        return self.ledger.living()[self.stand.instances[1]]

    def kill(self, life: Life) -> None:
        self.signal(life, signal.SIGKILL)

    def stop(self, life: Life) -> None:
        """SIGSTOP: everything stands still, and the kernel goes on accepting connections."""
        self.signal(life, signal.SIGSTOP)

    def go_on(self, life: Life) -> None:
        """SIGCONT; a healthy instance again, if it is still there."""
        if is_alive(life.pid):
            self.ledger.heal(life.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(life.pid, signal.SIGCONT)

    def signal(self, life: Life, number: signal.Signals) -> None:
        self.ledger.harm(life.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(life.pid, number)

    async def tell(self, port: int, **mode: object) -> None:
        """Tells a stand-in how to be (tests/real/standin/server.py)."""
        said = await ask(port, "POST", "/standin", json.dumps(mode).encode())
        if not said.startswith("200"):
            raise RuntimeError(f"the instance on {port} does not hear what it is told: {said or 'no answer'}")

    async def calm(self) -> None:
        """The time of undisturbed load before the fault."""
        await asyncio.sleep(BEFORE_S)

    async def rest(self) -> None:
        """The remaining time of undisturbed load after the fault."""
        await asyncio.sleep(max(0.0, BEFORE_S + self.seconds - self.load.now()))
