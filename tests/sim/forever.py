"""Faults that do not end by themselves, whatever the daemon does: a person has to see to each of them."""

from __future__ import annotations

from tests.sim.cards import SimCard
from tests.sim.dockerd import ENDLESS
from tests.sim.faults import Fault
from tests.sim.host import Host
from tests.sim.lives import Life, Mode


def _somebody(host: Host) -> Life | None:
    """One that is well, so that its end is the fault's doing."""
    well = [life for life in host.lives() if life.able]
    return host.rng.choice(well) if well else None


def _end(host: Host, life: Life) -> None:
    """It dies, hangs, or ails: its next life is the one that the fault is about."""
    how = host.rng.choice(("exit", Mode.FROZEN, Mode.SICK))
    if how == "exit":
        life.exit(1)
    else:
        life.become(Mode(how))


def never_start(host: Host) -> None:
    if (life := _somebody(host)) is not None:
        host.tell(f"ENDLESS {life.name} can never be started again")
        host.dockerd.launch_fails[life.name] = ENDLESS
        _end(host, life)


def never_live_long(host: Host) -> None:
    if (life := _somebody(host)) is not None:
        host.tell(f"ENDLESS {life.name} crashes whenever it is started")
        host.dockerd.crashes[life.name] = (ENDLESS, True)
        _end(host, life)


def never_load(host: Host) -> None:
    """Its next life never finishes loading; then another one falls ill, or dies."""
    life = _somebody(host)
    if life is None:
        return
    host.tell(f"ENDLESS the next lives of {life.name} never finish loading")
    host.dockerd.never_loads.add(life.name)
    _end(host, life)
    _later_another(host)


def freeze_all(host: Host) -> None:
    """A driver, a disk, a swap storm: all hang together, and the first of them cannot be started again."""
    lives = sorted((life for life in host.lives() if life.able), key=lambda life: life.name)
    if not lives:
        return
    host.tell(f"ENDLESS all hang at once, and {lives[0].name} can never be started again")
    for life in lives:
        life.become(Mode.FROZEN)
    if len(lives) > 1:
        host.dockerd.launch_fails[lives[0].name] = ENDLESS


def never_removed(host: Host) -> None:
    if (life := _somebody(host)) is not None:
        host.tell(f"ENDLESS somebody types docker rm -f {life.name}, which never comes to an end")
        life.stick_in_removal()
        host.dockerd.notify(life.name)


def never_asked(host: Host) -> None:
    """Probes of one cannot be put, or of all; a moment later it hangs, or does not."""
    life = _somebody(host)
    if life is None:
        return
    names = [other.name for other in host.lives()] if host.rng.random() < 0.4 else [life.name]
    host.tell(f"ENDLESS no probe can be put to {', '.join(names)}")
    host.dockerd.unaskable.update(names)
    if host.rng.random() < 0.7:

        def hang() -> None:
            host.tell(f"ENDLESS {life.name} hangs, and nobody can ask it")
            life.become(Mode.FROZEN)

        host.engine.after(host.rng.uniform(0.0, 20.0), hang)


def hang_worker(host: Host) -> None:
    if not host.off:
        host.tell("ENDLESS a worker of nginx hangs and never leaves")
        host.nginx.hang()


ENDLESS_FAULTS: tuple[tuple[Fault, float], ...] = (
    (never_start, 1.0),
    (never_live_long, 1.0),
    (never_load, 1.5),
    (freeze_all, 1.5),
    (never_removed, 1.0),
    (never_asked, 1.0),
    (hang_worker, 1.0),
)


def _later_another(host: Host) -> None:
    """A while later another one falls ill, hangs, or dies."""

    def ail() -> None:
        if (life := _somebody(host)) is not None:
            unseen = Mode.FROZEN if host.off else Mode.ERRING  # without nginx nobody sees users' answers
            how = host.rng.choice(("exit", Mode.FROZEN, Mode.SICK, unseen))
            host.tell(f"FAULT {life.name}: {how}, for good")
            if how == "exit":
                life.exit(-9)
            else:
                life.become(Mode(how))

    host.engine.after(host.rng.uniform(0.0, 60.0), ail)


def never_return(host: Host) -> None:
    """A card falls off the bus for good, all others are full with somebody else's; then another instance falls ill."""
    board = host.board
    assert board is not None
    card = _used(host)
    if card is None:
        return
    host.tell(f"ENDLESS GPU {card.index} falls off the bus for good, and the others have no room")
    for other in board.cards:
        free = max(0, other.total - board.used(other) - board.policy.reserve_bytes)
        other.foreign += free if other is not card else 0
        host.endless.cards.add(other.uuid)
    board.lose(card)
    _later_another(host)


def lose_for_good(host: Host) -> None:
    board = host.board
    assert board is not None
    if (card := _used(host)) is not None:
        host.tell(f"ENDLESS GPU {card.index} falls off the bus for good")
        host.endless.cards.add(card.uuid)
        board.lose(card)


def _used(host: Host) -> SimCard | None:
    assert host.board is not None
    used = [card for card in host.board.cards if not card.lost and host.board.on(card)]
    return host.rng.choice(used) if used else None


ENDLESS_CARD_FAULTS: tuple[tuple[Fault, float], ...] = (
    (never_return, 3.0),
    (lose_for_good, 1.0),
)
