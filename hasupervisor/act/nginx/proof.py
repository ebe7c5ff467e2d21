"""What is proven of nginx's workers: who may get requests from any of them, and who gets them from all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from hasupervisor.act.nginx.render import Written
from hasupervisor.model import Address

Table = frozenset[Address]


@dataclass(slots=True)
class Proof:
    """Only a confirmation, or the end of the workers that knew it, takes an address out of `live`."""

    live: Table = frozenset()  # whom any worker may send requests to
    by_all: Table = frozenset()  # whom every worker that takes requests sends them to
    generation: int | None = None  # that the workers answer; None: not seen, or nginx does not run
    servers: int = 0  # routed in it
    complete: bool = False  # what is on disk is all that takes requests
    # Workers that were told to retire and still take requests, with whom they send them to (None: not known).
    late: dict[int, Table | None] = field(default_factory=dict)
    _table: Table | None = None  # that of the newest workers that have answered; None: not known

    @property
    def joining(self) -> Table:
        return self.live - self.by_all

    def begin(self, disk: Written) -> None:
        """Before anything has been asked: the files of an earlier daemon, whichever of their servers nginx knows."""
        self.live = disk.routed | disk.everyone

    def widen(self, coming: Table) -> None:
        """A table is about to be put in place: from now on any worker may run the old one or the new one."""
        self.live |= coming
        self.by_all &= coming
        self.complete = False

    def confirm(self, disk: Written) -> None:
        """Every worker that takes requests runs what is on disk."""
        self.live = self.by_all = self._table = disk.routed
        self.generation, self.servers, self.complete = disk.generation, len(disk.routed), True
        self.late.clear()

    def answered(self, disk: Written, late: Collection[int]) -> None:
        """New workers run what is on disk, but `late` ones of earlier tables still take requests."""
        self.late = {pid: self.late.get(pid, self._table) for pid in late}
        if None in self.late.values():
            self.live |= disk.routed
            self.by_all &= disk.routed
        else:
            known = [table for table in self.late.values() if table is not None]
            self.live = disk.routed.union(*known)
            self.by_all = disk.routed.intersection(*known)
        self._table = disk.routed
        self.generation, self.servers, self.complete = disk.generation, len(disk.routed), False

    def doubt(self, generation: int | None, disk: Written) -> None:
        """A master that was not known before runs something else than the disk: its workers may know anybody."""
        self.generation, self.complete, self._table = generation, False, None
        self.live |= disk.routed | disk.everyone
        self.late.clear()

    def lose_master(self) -> None:
        """Nobody leads the workers, if there are any left: they may go on with what they know."""
        self.by_all, self._table = frozenset(), None
        self.generation, self.servers, self.complete = None, 0, False
        self.late.clear()
