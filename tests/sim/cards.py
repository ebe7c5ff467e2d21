"""The cards of a simulated host: memory, faults, and what NVML and the kernel log tell of them, with their delays."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from hasupervisor.model import Fact, GpuPolicy
from hasupervisor.model.gpu import (
    GB,
    CardRecord,
    CardView,
    DriverState,
    DriverView,
    GpuFact,
    GpuProcess,
    Gpus,
    Incident,
    KernelLogView,
    Refusal,
    Source,
    Xid,
)
from tests.sim.dockerd import Dockerd
from tests.sim.engine import Engine
from tests.sim.lives import Life, Mode

LOADING = GB
"""Bytes that an instance has on its card while the model is read from disk."""

LISTS = 5.0  # seconds from one look at the processes to the next
FIRST_PID = 100_000


@dataclass(slots=True, eq=False)
class SimCard:
    """The truth about one card."""

    index: int
    total: int
    lost: bool = False  # off the bus: whoever is on it can do nothing any more
    worn: bool = False  # no spare row of memory is left; what runs on it works
    silent_since: float | None = None  # NVML's calls about it do not return
    foreign: int = 0  # bytes of somebody else's process
    fact: GpuFact | None = None  # as of the last round
    processes: tuple[GpuProcess, ...] = ()  # as of the last look at them
    listed_at: float = float("-inf")

    @property
    def uuid(self) -> str:
        return f"GPU-{self.index}"

    @property
    def bus(self) -> str:
        return f"0000:{self.index + 1:02x}:00"


@dataclass(slots=True)
class Board:
    """All cards of the host. `changed` wakes the daemon, as a line in the kernel log does."""

    engine: Engine
    rng: random.Random
    dockerd: Dockerd
    policy: GpuPolicy
    cards: tuple[SimCard, ...]
    changed: Callable[[], None] = lambda: None
    down: bool = False  # NVML does not start
    readable: bool = True  # the kernel log
    incidents: list[Incident] = field(default_factory=list)
    _pids: dict[str, int] = field(default_factory=dict)

    # --- what the daemon sees ----------------------------------------------------------------------------------------

    def look(self, facts: Sequence[Fact], records: Mapping[str, CardRecord]) -> Gpus:
        """As the watch gives it: figures up to a second old, processes up to five, faults once."""
        told, self.incidents = tuple(self.incidents), []
        for card in self.cards:
            self._round(card)
        state, words = (DriverState.FAILED, "NVML does not start") if self.down else (DriverState.OK, "driver 1")
        if not self.down and all(card.silent_since is not None for card in self.cards):
            state, words = DriverState.WEDGED, "no call returns"
        living = {self.pid(life): life.name for life in self.dockerd.lives.values() if life.alive}
        listed = {process.pid for card in self.cards if card.fact is not None for process in card.fact.processes}
        return Gpus(
            DriverView(state, words, cards=tuple(self._view(card) for card in self.cards)),
            KernelLogView(readable=self.readable),
            boot="boot-1",
            records=records,
            incidents=told,
            users={pid: living[pid] for pid in listed & living.keys()},
            dead=frozenset(listed - living.keys() - {card.index + 1 for card in self.cards}),
        )

    def _view(self, card: SimCard) -> CardView:
        refusal = Refusal(15, "GPU is lost", self.engine.now) if card.lost else None
        return CardView(card.uuid, card.index, card.fact, refusal, card.silent_since)

    def _round(self, card: SimCard) -> None:
        now = self.engine.now
        if self.down or card.lost or card.silent_since is not None:
            return
        if card.fact is not None and now - card.fact.seen_at < 1.0:
            return
        if now - card.listed_at >= LISTS:
            card.listed_at = now
            ours = [GpuProcess(self.pid(life), self._used(life)) for life in self.on(card)]
            others = [GpuProcess(card.index + 1, card.foreign)] if card.foreign else []
            card.processes = (*ours, *others)
        card.fact = GpuFact(
            card.uuid,
            card.index,
            "SIM",
            f"00000000:{card.index + 1:02X}:00.0",
            now,
            memory_total_bytes=card.total,
            memory_free_bytes=max(0, card.total - self.used(card)),
            memory_reserved_bytes=0,
            remap_failed=card.worn,
            processes=card.processes,
            processes_at=card.listed_at,
        )

    # --- the truth ---------------------------------------------------------------------------------------------------

    def pid(self, life: Life) -> int:
        return self._pids.setdefault(life.runtime_id, FIRST_PID + len(self._pids))

    def on(self, card: SimCard) -> list[Life]:
        """Whose processes are on it."""
        return [life for life in self.dockerd.lives.values() if life.alive and card.uuid in life.gpus]

    def used(self, card: SimCard) -> int:
        return card.foreign + sum(self._used(life) for life in self.on(card))

    def _used(self, life: Life) -> int:
        return self.policy.need_bytes if life.loaded else min(LOADING, self.policy.need_bytes)

    # --- faults ------------------------------------------------------------------------------------------------------

    def lose(self, card: SimCard) -> None:
        """Off the bus: its processes answer errors, or nothing at all."""
        card.lost = True
        for life in self.on(card):
            life.become(self.rng.choice((Mode.ERRING, Mode.FROZEN)))
        self._report(Xid(79, self.engine.now, Source.KERNEL, bus=card.bus))

    def fault(self, life: Life) -> None:
        """Its CUDA context is lost; now and then nobody knows whose it was."""
        life.become(Mode.ERRING)
        card = next(card for card in self.cards if card.uuid in life.gpus)
        known = self.rng.random() < 0.8
        xid = Xid(31, self.engine.now, Source.KERNEL, bus=card.bus, pid=self.pid(life) if known else None)
        self._report(xid, life.name if known else None)

    def _report(self, xid: Xid, instance: str | None = None) -> None:
        if self.readable:
            self.incidents.append(Incident(xid, instance))
            self.changed()

    def restore(self, but: Set[str] = frozenset()) -> None:
        """The person has rebooted, or put another card in: nothing is the matter any more, `but` with those cards."""
        self.down, self.readable = False, True
        for card in [card for card in self.cards if card.uuid not in but]:
            card.lost = card.worn = False
            card.silent_since, card.foreign = None, 0
