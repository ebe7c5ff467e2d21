"""What a drill is told to do: the fault, whom it hits, the load, and how to reach the daemon and the gateway."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from hasupervisor.model import Address
from hasupervisor.runtimes.process_records import Identity


class Fault(StrEnum):
    KILL = "kill"  # SIGKILL to an instance's main process
    HANG = "hang"  # SIGSTOP to an instance, until it is fenced
    SICK = "sick"  # an instance answers every prompt with 500
    SLOW = "slow"  # an instance is stopped four fifths of the time
    SPIKE = "spike"  # three times the load
    DAEMON = "daemon"  # SIGKILL to the daemon
    GATEWAY = "gateway"  # SIGKILL to nginx's master


OF_AN_INSTANCE = frozenset({Fault.KILL, Fault.HANG, Fault.SICK, Fault.SLOW})
LASTING = frozenset({Fault.SLOW, Fault.SPIKE})
"""Faults that last as long as the load; the others are over when the service has dealt with them."""

SPIKE_TIMES = 3.0


@dataclass(frozen=True, slots=True)
class Order:
    """One drill, as the daemon hands it to the process that carries it out. Times are seconds."""

    id: str
    fault: Fault
    name: str | None  # of the instance; None for what concerns the host
    by: str  # who asked
    rate: float  # prompts a second
    spike_rate: float  # during a spike
    seconds: float  # the load lasts at most so long after the fault
    patience: float  # of each request: what the service may need to prove the fault, and to answer then
    limit: float  # from the end of the load until all has to serve again
    prompt: str
    dialect: str  # health.dialect
    gateway: str  # http://127.0.0.1:8080
    host: str  # the Host header that the gateway's server block knows, whatever server_name is
    socket: str  # the daemon's
    path: str  # the drill's sheet
    target: Identity | None = None  # the process that the signals go to
    address: Address | None = None  # of an instance that makes itself sick
    engine: str | None = (
        None  # docker.host, where dockerd has to send the signal: the daemon may not; "" is its default
    )
    container: str = ""  # of that engine

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for what is no order."""
        found: dict[str, Any] = json.loads(text)
        try:
            target, address = found.pop("target"), found.pop("address")
            fault = Fault(found.pop("fault"))
            return cls(
                fault=fault,
                target=Identity(**target) if target is not None else None,
                address=Address(**address) if address is not None else None,
                **found,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an order: {error!r}") from error
