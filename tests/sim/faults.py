"""The faults of a random schedule that end by themselves: each a function that does it to the host and says so."""

from __future__ import annotations

from collections.abc import Callable

from hasupervisor.model import Miss, Phase
from tests.sim.cards import SimCard
from tests.sim.host import Host
from tests.sim.lives import Life, Mode

Fault = Callable[[Host], None]

LIES = (Miss.SILENT, Miss.CONNECT_TIMEOUT, Miss.BROKEN, Miss.ERROR_STATUS, Miss.REFUSED)


def _one(host: Host) -> Life | None:
    """Somebody who runs, or nobody."""
    running = [life for life in host.lives() if life.phase is Phase.RUNNING and not life.stuck]
    return host.rng.choice(running) if running else None


def _later(host: Host, low: float, high: float, undo: Callable[[], None]) -> float:
    seconds = host.rng.uniform(low, high)
    host.engine.after(seconds, undo)
    return seconds


def crash(host: Host) -> None:
    if (life := _one(host)) is not None:
        code, oom = host.rng.choice(((1, False), (-9, False), (-9, True), (-11, False), (139, False)))
        host.tell(f"FAULT {life.name} crashes")
        life.exit(code, oom=oom)


def crash_all(host: Host) -> None:
    host.tell("FAULT everybody is killed at once")
    for life in host.lives():
        host.engine.after(host.rng.uniform(0.0, 0.05), lambda life=life: life.exit(-9))  # type: ignore[misc]


def crash_loop(host: Host) -> None:
    if (life := _one(host)) is not None:
        loading, seconds = host.rng.random() < 0.5, host.rng.uniform(20.0, 900.0)
        host.tell(f"FAULT {life.name} crashes for {seconds:.0f} s, {'while it loads' if loading else 'after a while'}")
        host.dockerd.crashes[life.name] = (host.engine.now + seconds, loading)
        life.exit(1)


def bad_image(host: Host) -> None:
    """Every new life crashes: of one name, or of all."""
    seconds = host.rng.uniform(20.0, 300.0)
    host.tell(f"FAULT new lives crash while they load, for {seconds:.0f} s")
    for number in range(1, 9):
        host.dockerd.crashes[f"sim-{number:02d}"] = (host.engine.now + seconds, True)


def _fall_ill(host: Host, mode: Mode, low: float, high: float, forever: float) -> None:
    life = _one(host)
    if life is None:
        return
    if host.off and mode in (Mode.WEDGED, Mode.ERRING):
        mode = Mode.FROZEN  # without nginx nobody sees users' answers
    life.become(mode)
    if host.rng.random() < forever:
        host.tell(f"FAULT {life.name} is {mode} for good")
        return
    seconds = _later(host, low, high, lambda: life.become(Mode.FINE) if life.mode is mode else None)
    host.tell(f"FAULT {life.name} is {mode} for {seconds:.1f} s")


def freeze(host: Host) -> None:
    _fall_ill(host, Mode.FROZEN, 0.5, 90.0, forever=0.5)


def freeze_two(host: Host) -> None:
    freeze(host)
    freeze(host)


def wedge(host: Host) -> None:
    _fall_ill(host, Mode.WEDGED, 5.0, 120.0, forever=0.6)


def sicken(host: Host) -> None:
    _fall_ill(host, Mode.SICK, 0.5, 60.0, forever=0.5)


def poison(host: Host) -> None:
    _fall_ill(host, Mode.ERRING, 5.0, 120.0, forever=0.7)


def slow_down(host: Host) -> None:
    """One of them, or all, take longer for everything; never so long that it could be called a hang."""
    factor = host.rng.uniform(1.5, 4.0)
    lives = host.lives() if host.rng.random() < 0.4 else [life for life in [_one(host)] if life is not None]
    for life in lives:
        life.slow = factor

    def recover() -> None:
        for life in lives:
            life.slow = 1.0

    seconds = _later(host, 10.0, 120.0, recover)
    host.tell(f"FAULT {', '.join(life.name for life in lives)} {factor:.1f} times slower for {seconds:.0f} s")


def lie_about_one(host: Host) -> None:
    if host.engine.now < host.dockerd.lies_until:
        return  # all are lied about: this would make one of them better off
    if (life := _one(host)) is not None:
        life.lie, life.bad_at, life.lied_at = host.rng.choice(LIES), host.engine.now, host.engine.now
        life.lie_share = host.rng.choice((1.0, 1.0, 0.3))

        def stop() -> None:
            life.lie = host.dockerd.lies if host.engine.now < host.dockerd.lies_until else None
            life.lie_share = 1.0
            life.bad_at = host.engine.now

        seconds = _later(host, 1.0, 60.0, stop)
        how = "fail" if life.lie_share >= 1.0 else "fail now and then"
        host.tell(f"FAULT health questions to {life.name} {how} ({life.lie}) for {seconds:.1f} s")


def sicken_and_lie(host: Host) -> None:
    """Says that it is unhealthy, and a part of its answers is lost."""
    if (life := _one(host)) is not None:
        life.become(Mode.SICK)
        life.lie, life.lie_share, life.lied_at = Miss.BROKEN, 0.3, host.engine.now
        host.tell(f"FAULT {life.name} is sick for good, and answers now and then only")


def lie_about_all(host: Host) -> None:
    miss, seconds = host.rng.choice(LIES), host.rng.uniform(3.0, 300.0)
    host.tell(f"FAULT all health questions fail ({miss}) for {seconds:.0f} s")
    host.dockerd.lie(miss, seconds)


def dockerd_down(host: Host) -> None:
    seconds = host.rng.choice((host.rng.uniform(0.5, 8.0), host.rng.uniform(8.0, 120.0)))
    host.tell(f"FAULT dockerd does not answer for {seconds:.1f} s")
    host.dockerd.down_until = max(host.dockerd.down_until, host.engine.now + seconds)


def lose_events(host: Host) -> None:
    seconds = host.rng.uniform(10.0, 120.0)
    host.tell(f"FAULT dockerd's events are lost for {seconds:.0f} s")
    host.dockerd.late_until = host.engine.now + seconds


def stick(host: Host) -> None:
    """A process in D state: frozen, and no signal ends it."""
    if (life := _one(host)) is not None:
        life.become(Mode.FROZEN)
        life.stuck = True
        if host.rng.random() < 0.6:
            seconds = _later(host, 20.0, 400.0, lambda: host.dockerd.let_go(life))
            host.tell(f"FAULT {life.name} is stuck in the kernel for {seconds:.0f} s")
        else:
            host.tell(f"FAULT {life.name} is stuck in the kernel")


def refuse_starts(host: Host) -> None:
    name, seconds = f"sim-{host.rng.randint(1, 4):02d}", host.rng.uniform(10.0, 400.0)
    host.tell(f"FAULT {name} cannot be started for {seconds:.0f} s")
    host.dockerd.launch_fails[name] = host.engine.now + seconds
    if name in host.dockerd.lives:
        host.dockerd.lives[name].exit(1)


def slow_loads(host: Host) -> None:
    seconds, factor = host.rng.uniform(20.0, 200.0), host.rng.uniform(2.0, 30.0)
    host.tell(f"FAULT models load {factor:.0f} times slower for {seconds:.0f} s")
    host.dockerd.slow_load, host.dockerd.slow_load_until = factor, host.engine.now + seconds


def break_nginx(host: Host) -> None:
    seconds = host.rng.uniform(1.0, 90.0)
    host.tell(f"FAULT nginx's configuration is broken for {seconds:.0f} s")
    host.nginx.broken_until = host.engine.now + seconds


def deafen_nginx(host: Host) -> None:
    seconds = host.rng.uniform(1.0, 60.0)
    host.tell(f"FAULT reloads of nginx have no effect for {seconds:.0f} s")
    host.nginx.deaf_until = host.engine.now + seconds


def grind(host: Host) -> None:
    """One question keeps the event loop of an instance busy for longer than several probes: it is well, and silent."""
    if (life := _one(host)) is not None and life.able:
        seconds = host.rng.uniform(3.0, 0.7 * host.policy.hang_after)
        host.tell(f"FAULT {life.name} computes for {seconds:.0f} s and answers no probe")
        host.users.send(life, host.traits.service)
        life.grind(begins=True)
        host.engine.after(seconds, lambda: life.grind(begins=False))


def long_work(host: Host) -> None:
    """Long answers fill its slots: where its health waits behind them, it is silent all the while."""
    if (life := _one(host)) is not None and life.able:
        seconds = host.rng.uniform(5.0, 0.7 * host.policy.hang_after)
        host.tell(f"FAULT {life.name} is given answers that take {seconds:.0f} s")
        for _ in range(host.traits.slots):
            host.users.send(life, seconds)


def spike(host: Host) -> None:
    rate, seconds = 3.0 * host.users_rate, host.rng.uniform(5.0, 30.0)
    host.tell(f"FAULT {rate:.1f} requests per second for {seconds:.0f} s")
    host.users.come(rate, seconds)


def blind(host: Host) -> None:
    """The kernel's table of connections cannot be read."""
    seconds = host.rng.uniform(2.0, 60.0)
    host.tell(f"FAULT what is in flight cannot be counted for {seconds:.0f} s")
    host.blind_until = host.engine.now + seconds
    if host.daemon is not None:
        host.daemon.log.blind_until = host.blind_until


def remove_by_hand(host: Host) -> None:
    if (life := _one(host)) is not None:
        host.tell(f"FAULT somebody types docker rm -f {life.name}")
        host.dockerd.remove(life)


def pause_by_hand(host: Host) -> None:
    if (life := _one(host)) is not None:
        life.freeze(frozen=True)
        seconds = _later(host, 1.0, 60.0, lambda: life.freeze(frozen=False))
        host.tell(f"FAULT somebody types docker pause {life.name}, for {seconds:.0f} s")


def take_ports(host: Host) -> None:
    ports = frozenset(host.rng.sample(range(8000, 8006), 3))
    host.tell(f"FAULT somebody listens on ports {sorted(ports)}")
    host.dockerd.taken_ports = ports - {life.address.port for life in host.lives()}


def kill_daemon(host: Host) -> None:
    host.kill_daemon()
    host.engine.after(host.rng.choice((0.3, 1.0, 5.0, host.rng.uniform(1.0, 60.0))), host.start_daemon)


def kill_daemon_often(host: Host) -> None:
    for _ in range(host.rng.randint(2, 5)):
        host.engine.after(host.rng.uniform(0.0, 30.0), lambda: kill_daemon(host))


FAULTS: tuple[tuple[Fault, float], ...] = (
    (crash, 3.0),
    (crash_all, 0.7),
    (crash_loop, 1.0),
    (bad_image, 0.4),
    (freeze, 2.0),
    (freeze_two, 0.7),
    (wedge, 1.2),
    (sicken, 1.2),
    (sicken_and_lie, 0.5),
    (poison, 1.0),
    (slow_down, 1.0),
    (lie_about_one, 1.5),
    (lie_about_all, 1.5),
    (dockerd_down, 2.0),
    (lose_events, 0.7),
    (stick, 0.6),
    (refuse_starts, 0.8),
    (slow_loads, 0.7),
    (break_nginx, 1.0),
    (deafen_nginx, 0.7),
    (grind, 1.5),
    (long_work, 1.5),
    (spike, 1.5),
    (blind, 0.7),
    (remove_by_hand, 0.7),
    (pause_by_hand, 0.7),
    (take_ports, 0.4),
    (kill_daemon, 2.0),
    (kill_daemon_often, 0.4),
)


# --- GPUs ---------------------------------------------------------------------------------------------------------


def _card(host: Host) -> SimCard | None:
    """A card that somebody is on, rather than any."""
    assert host.board is not None
    used = [card for card in host.board.cards if host.board.on(card)]
    return host.rng.choice(used or list(host.board.cards))


def lose_card(host: Host) -> None:
    assert host.board is not None
    if (card := _card(host)) is not None:
        host.tell(f"FAULT GPU {card.index} falls off the bus")
        host.board.lose(card)


def wear_card(host: Host) -> None:
    if (card := _card(host)) is not None:
        host.tell(f"FAULT GPU {card.index} has no spare row left")
        card.worn = True


def gpu_fault(host: Host) -> None:
    life = _one(host)
    if host.board is not None and life is not None and life.gpus:
        host.tell(f"FAULT {life.name} loses its CUDA context")
        host.board.fault(life)


def silence_card(host: Host) -> None:
    if (card := _card(host)) is not None:
        card.silent_since = host.engine.now
        seconds = _later(host, 5.0, 90.0, lambda: setattr(card, "silent_since", None))
        host.tell(f"FAULT NVML hangs about GPU {card.index} for {seconds:.0f} s")


def break_driver(host: Host) -> None:
    board = host.board
    assert board is not None
    board.down = True
    seconds = _later(host, 5.0, 90.0, lambda: setattr(board, "down", False))
    host.tell(f"FAULT NVML does not start for {seconds:.0f} s")


def deafen_kernel_log(host: Host) -> None:
    board = host.board
    assert board is not None
    board.readable = False
    host.tell("FAULT the kernel log cannot be read")


def crowd_card(host: Host) -> None:
    """Somebody else's program takes what is free on it."""
    board = host.board
    assert board is not None
    if (card := _card(host)) is not None and not card.foreign:
        card.foreign = max(0, card.total - board.used(card) - board.policy.reserve_bytes)
        seconds = _later(host, 10.0, 200.0, lambda: setattr(card, "foreign", 0))
        host.tell(f"FAULT somebody else takes {card.foreign >> 30} GB of GPU {card.index} for {seconds:.0f} s")


CARD_FAULTS: tuple[tuple[Fault, float], ...] = (
    (lose_card, 2.0),
    (wear_card, 1.0),
    (gpu_fault, 2.0),
    (silence_card, 1.0),
    (break_driver, 1.0),
    (deafen_kernel_log, 0.5),
    (crowd_card, 1.0),
)
