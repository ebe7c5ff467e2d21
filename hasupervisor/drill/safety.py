"""Pure: why a drill could hurt now, and what it will do, in sentences for the person who wants it."""

from __future__ import annotations

from dataclasses import dataclass

from hasupervisor.drill.order import OF_AN_INSTANCE, SPIKE_TIMES, Fault
from hasupervisor.model import Judged, OperationState, State
from hasupervisor.report.snapshot import Snapshot

SERVING_NEEDED = 2
"""So many have to serve before anything is broken on purpose: with one alone, its users are the ones who pay."""

USERS_QPS = 0.05
"""Requests a second from which on there are users: three in the last minute."""

SUBJECT = "drill"
"""Of the problem that the status names while a drill is under way."""

SECONDS = {
    Fault.KILL: 60.0,
    Fault.SICK: 90.0,
    Fault.SLOW: 30.0,
    Fault.SPIKE: 30.0,
    Fault.DAEMON: 60.0,
    Fault.GATEWAY: 60.0,
}
AFTER_HANG = 30.0
"""How long the load lasts at most where nobody says so; for a hang it is hang_after and this."""


@dataclass(frozen=True, slots=True)
class Around:
    """What decides about a drill beside the picture of the daemon."""

    nginx_mode: str  # system | own
    supervised: bool  # somebody starts the daemon again when it ends
    users_qps: float  # requests a second, without those of drills


def seconds(fault: Fault, hang_after: float) -> float:
    """How long the load lasts at most, where nobody says."""
    return hang_after + AFTER_HANG if fault is Fault.HANG else SECONDS[fault]


def choose(snapshot: Snapshot) -> Judged | None:
    """Whom a drill hits where nobody names one: of those that serve, who is known to have the least in flight."""
    serving = [judged for judged in snapshot.instances if judged.state is State.SERVING]
    return min(reversed(serving), key=_work, default=None)


def _work(judged: Judged) -> tuple[bool, int]:
    """What it has in flight; one of which that cannot be seen may be busy, and comes after all the others."""
    return not judged.traffic.in_flight_known, judged.traffic.in_flight


def objections(fault: Fault, target: Judged | None, snapshot: Snapshot, around: Around) -> tuple[str, ...]:
    """Why it could hurt, a sentence each; none: it is safe."""
    found = [*_of_the_host(snapshot)]
    if fault in OF_AN_INSTANCE and target is not None:
        found += _of_the_instance(target, snapshot)
    if fault is Fault.DAEMON and not around.supervised:
        found.append("nobody is seen who would start the daemon again: no systemd, as it was started by hand")
    if fault is Fault.GATEWAY and around.nginx_mode == "system":
        found.append("nginx is the system's: its master is started again by whoever runs it, or by nobody")
    if fault is Fault.SPIKE and around.users_qps >= USERS_QPS:
        found.append(f"users send {around.users_qps:.1f} requests a second, and would wait behind the spike")
    return tuple(found)


def what(fault: Fault, name: str, pid: int | None, spike_rate: float) -> str:
    """What will be done, and what it may cost."""
    cut = "a stream that it is sending is cut, whatever else it has is answered by another"
    match fault:
        case Fault.KILL:
            return f"SIGKILL to {name} (pid {pid}): {cut}"
        case Fault.HANG:
            return f"SIGSTOP to {name} (pid {pid}) until it is fenced: what it has waits until then; {cut}"
        case Fault.SLOW:
            return f"{name} (pid {pid}) is stopped four fifths of the time: what it has is answered later"
        case Fault.SICK:
            return f"{name} answers every prompt with an error until it is restarted: others answer"
        case Fault.SPIKE:
            return f"{spike_rate:g} prompts a second, {SPIKE_TIMES:g} times the load: users wait behind them"
        case Fault.DAEMON:
            return f"SIGKILL to the daemon (pid {pid}): instances and the gateway go on, nothing is healed meanwhile"
        case Fault.GATEWAY:
            return f"SIGKILL to nginx's master (pid {pid}): its workers go on until another one is started"


def _of_the_host(snapshot: Snapshot) -> list[str]:
    found = []
    if not snapshot.settled:
        found.append("the daemon has just started, and still asks around")
    if snapshot.runtime.trouble is not None:
        found.append(f"{snapshot.runtime_name}: {snapshot.runtime.trouble}")
    pause = snapshot.wants.pause
    if pause is not None:
        found.append(f"healing is paused by {pause.by}: nothing would be repaired")
    for operation in snapshot.operations:
        if operation.state is OperationState.RUNNING:
            found.append(f"{operation.id} is at work: {operation.kind} by {operation.by}")
    found += _of_the_gateway(snapshot)
    serving = [judged for judged in snapshot.instances if judged.state is State.SERVING]
    if len(serving) < SERVING_NEEDED:
        found.append(f"{len(serving)} of {snapshot.wants.desired} serve; at least {SERVING_NEEDED} have to")
    found += [
        f"{judged.record.name} is {judged.state}: {judged.reason}"
        for judged in snapshot.instances
        if judged.state is not State.SERVING
    ]
    told = {"nginx", SUBJECT, *(judged.record.name for judged in snapshot.instances)}
    found += [f"{p.subject}: {p.sentence}" for p in snapshot.problems if p.subject not in told]
    return found


def _of_the_gateway(snapshot: Snapshot) -> list[str]:
    gateway = snapshot.gateway
    if not gateway.ok:
        return [f"nginx: {gateway.reason}"]
    if gateway.live_generation != gateway.generation or gateway.joining:
        return ["nginx is just being reloaded"]
    return []


def _of_the_instance(target: Judged, snapshot: Snapshot) -> list[str]:
    failed, limit = len(target.record.failures), snapshot.policy.attempts
    if failed and failed + 1 >= limit:
        return [f"{target.record.name} has failed {failed} times lately: once more, and it is parked"]
    return []
