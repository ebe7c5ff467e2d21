"""What is proven of nginx's workers: who may get requests from any of them, and who gets them from all."""

from __future__ import annotations

from dataclasses import dataclass

from hasupervisor.act.nginx.render import Written
from hasupervisor.model import Address


@dataclass(slots=True)
class Proof:
    """Only a confirmation makes `live` smaller: whoever may still be sent a request is in it."""

    live: frozenset[Address] = frozenset()  # whom any worker may send requests to
    by_all: frozenset[Address] = frozenset()  # whom every worker that takes requests sends them to
    generation: int | None = None  # that the workers answer; None: not seen, or nginx does not run
    servers: int = 0  # routed in it
    complete: bool = False  # what is on disk is all that takes requests

    @property
    def joining(self) -> frozenset[Address]:
        return self.live - self.by_all

    def begin(self, disk: Written) -> None:
        """Before anything has been asked: the files of an earlier daemon, whichever of their servers nginx knows."""
        self.live = disk.routed | disk.everyone

    def widen(self, coming: frozenset[Address]) -> None:
        """A table is about to be put in place: from now on any worker may run the old one or the new one."""
        self.live |= coming
        self.by_all &= coming
        self.complete = False

    def confirm(self, disk: Written) -> None:
        """Every worker that takes requests runs what is on disk."""
        self.live = self.by_all = disk.routed
        self.generation, self.servers, self.complete = disk.generation, len(disk.routed), True

    def doubt(self, generation: int | None, disk: Written) -> None:
        """A master that was not known before runs something else than the disk: its workers may know anybody."""
        self.generation, self.complete = generation, False
        self.live |= disk.routed | disk.everyone

    def lose_master(self) -> None:
        """Nobody leads the workers, if there are any left: they may go on with what they know."""
        self.by_all = frozenset()
        self.generation, self.servers, self.complete = None, 0, False
