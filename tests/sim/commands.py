"""The commands of a random schedule: what an operator types, as far as the daemon would take it."""

from __future__ import annotations

from tests.sim.faults import Fault
from tests.sim.host import Host


def _names(host: Host) -> tuple[str, ...]:
    return tuple(sorted(host.daemon.loop.records())) if host.daemon is not None else ()


def scale(host: Host) -> None:
    if host.daemon is not None:
        count = host.rng.randint(1, 5)
        host.tell(f"COMMAND scale {count}")
        host.desk.scale(host.daemon.loop, count, host.engine.now, host.wall())


def restart(host: Host) -> None:
    names = _names(host)
    if host.daemon is None or not names:
        return
    loop, everybody = host.daemon.loop, host.rng.random() < 0.4
    chosen = names if everybody else (host.rng.choice(names),)
    if everybody:
        records = loop.records()
        chosen = tuple(n for n in names if records[n].leaving is None and n in host.dockerd.lives)
    chosen = tuple(n for n in chosen if loop.records()[n].stuck is None)
    refused = not chosen or host.desk.busy(loop, chosen) or (_careful(host) and host.desk.last(loop, chosen[0]))
    if not refused:
        host.tell(f"COMMAND restart {' '.join(chosen)}")
        host.desk.restart(loop, chosen, host.engine.now, host.wall())


def _careful(host: Host) -> bool:
    """Without --force."""
    return host.rng.random() < 0.7


def drain(host: Host) -> None:
    names = _names(host)
    if host.daemon is None or not names:
        return
    loop, name = host.daemon.loop, host.rng.choice(names)
    refused = host.desk.busy(loop, (name,)) or loop.records()[name].stuck is not None
    if not refused and not (_careful(host) and host.desk.last(loop, name)):
        host.tell(f"COMMAND drain {name}")
        host.desk.drain(loop, name, host.engine.now, host.wall())


def undrain(host: Host) -> None:
    if host.daemon is not None and host.desk.wants.drained:
        name = host.rng.choice(sorted(host.desk.wants.drained))
        host.tell(f"COMMAND undrain {name}")
        host.desk.undrain(host.daemon.loop, name, host.engine.now, host.wall())


def pause(host: Host) -> None:
    if host.daemon is not None:
        seconds = host.rng.choice((None, host.rng.uniform(5.0, 120.0)))
        host.tell("COMMAND pause" + (f" --for {seconds:.0f}" if seconds is not None else ""))
        host.desk.pause(host.daemon.loop, seconds, host.wall())


def resume(host: Host) -> None:
    if host.daemon is not None and host.desk.wants.pause is not None:
        host.tell("COMMAND resume")
        host.desk.resume(host.daemon.loop)


def cancel(host: Host) -> None:
    if host.daemon is not None:
        host.tell("COMMAND cancel")
        host.desk.cancel(host.daemon.loop, host.wall())


COMMANDS: tuple[tuple[Fault, float], ...] = (
    (scale, 2.0),
    (restart, 2.0),
    (drain, 1.0),
    (undrain, 1.0),
    (pause, 0.7),
    (resume, 0.7),
    (cancel, 0.5),
)
