"""What has gone wrong and never ends by itself: until a person mends it, the rest of the host has to do without."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from hasupervisor.model import Phase
from tests.sim.cards import Board, SimCard
from tests.sim.dockerd import ENDLESS, Dockerd
from tests.sim.nginx import Nginx


@dataclass(slots=True)
class Endless:
    """Which names and cards will never be well again, by the truth."""

    dockerd: Dockerd
    nginx: Nginx
    board: Board | None
    cards: set[str] = field(default_factory=set)  # UUIDs that are lost, or full with somebody else's, for good

    @property
    def any(self) -> bool:
        """Whether something of the kind is the matter now."""
        return bool(self.cards or self._names() or self.nginx.hung is not None or self._removing())

    def _names(self) -> frozenset[str]:
        """Those of which no life will ever serve, or of which nobody can know."""
        dockerd = self.dockerd
        starts = {name for name, until in dockerd.launch_fails.items() if until == ENDLESS}
        crashes = {name for name, (until, _) in dockerd.crashes.items() if until == ENDLESS}
        return frozenset(starts | crashes | dockerd.never_loads | dockerd.unaskable)

    def hopeless(self, name: str, refused: Set[str] = frozenset()) -> bool:
        """Whether nothing that the daemon may do brings it back. `refused`: UUIDs of cards that are given up."""
        dockerd = self.dockerd
        if name in dockerd.never_loads or name in dockerd.unaskable or dockerd.launch_fails.get(name) == ENDLESS:
            return True
        if dockerd.crashes.get(name, (0.0, False))[0] == ENDLESS:
            return True
        life = self.dockerd.lives.get(name)
        if life is not None and (life.stuck or life.phase is Phase.REMOVING):
            return True
        return self.board is not None and not any(
            self._takes(card, name) for card in self.board.cards if card.uuid not in refused
        )

    def mend(self) -> None:
        """A person has seen to all of it."""
        self.cards.clear()
        self.dockerd.mend()
        self.nginx.mend()

    def _removing(self) -> bool:
        return any(life.phase is Phase.REMOVING for life in self.dockerd.lives.values())

    def _takes(self, card: SimCard, name: str) -> bool:
        """Whether the card has room for this instance beside the others that are on it."""
        board = self.board
        assert board is not None
        if card.lost or card.worn or card.silent_since is not None:
            return False
        removed = [
            life for life in self.dockerd.lives.values() if life.phase is Phase.REMOVING and card.uuid in life.gpus
        ]
        others = [life for life in (*board.on(card), *removed) if life.name != name]  # whoever stays keeps its place
        full = card.foreign + (len(others) + 1) * board.policy.need_bytes + board.policy.reserve_bytes
        return full <= card.total
