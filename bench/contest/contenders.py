"""What every contender can do, and what all of them are given: the same instances, on ports of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]


class Missing(Exception):
    """A program that this contender is made of is not on this machine; the words say how to get it."""


@dataclass(frozen=True, slots=True)
class Stand:
    """One run's instances, and where they stand. Seconds, unless a name says otherwise."""

    folder: Path
    ports: range  # the first is the gateway's, the last four are for instances, the others are the contender's own
    ledger: Path
    service_s: float = 0.3
    slots: int = 8
    warm_s: float = 1.5  # until a new instance listens, as of a model that is loaded
    health: str = "progress"  # progress | opaque | plain | inference
    at_once: int = 0  # requests that the gateway gives one instance at a time; 0: no limit

    @property
    def gateway(self) -> int:
        return self.ports[0]

    @property
    def instances(self) -> tuple[int, int]:
        return self.ports[-4], self.ports[-3]

    @property
    def capacity(self) -> float:
        """Requests a second that the instances can carry together."""
        return len(self.instances) * self.slots / self.service_s

    @property
    def command(self) -> list[str]:
        """What starts one instance, with HOST, PORT and `environment` in its environment."""
        return [sys.executable, "-S", "-m", "bench.contest.instance"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LEDGER": str(self.ledger),
            "SERVICE_S": str(self.service_s),
            "SLOTS": str(self.slots),
            "WARM_S": str(self.warm_s),
            "HEALTH": self.health,
        }


class Contender(Protocol):
    """A way to keep two instances serving. Every method ends within its own deadlines or raises."""

    async def start(self) -> None:
        """Returns once both instances get requests."""

    async def stop(self) -> None:
        """Ends everything that was started."""

    async def drain(self, port: int) -> None:
        """As an operator would: no new requests for that instance."""

    async def undrain(self, port: int) -> None:
        """Gives it requests again."""

    async def reload(self) -> None:
        """As an operator would after a change of the configuration."""

    async def routed(self, port: int) -> bool | None:
        """Whether that instance gets new requests now, as the contender says itself; None: it cannot tell."""

    async def versions(self) -> Mapping[str, str]:
        """The programs that it is made of."""

    def words(self) -> str:
        """The end of what its programs have logged, for whoever asks why it failed."""


def environment(stand: Stand) -> dict[str, str]:
    """This process's environment with the instances' own."""
    return {**os.environ, **stand.environment}
