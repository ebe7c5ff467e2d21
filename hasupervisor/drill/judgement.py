"""Pure: whether a fault is over, and what of the promise was not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasupervisor.drill import witness
from hasupervisor.drill.load import NOT_CONNECTED
from hasupervisor.drill.order import LASTING, OF_AN_INSTANCE, Fault, Order
from hasupervisor.drill.sheet import Tally, Until
from hasupervisor.drill.witness import Document, Picture

MS = 0.001
"""Times in documents are cut to milliseconds."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known at one moment of a drill. Times are Unix seconds."""

    fault_at: float
    undone_at: float | None  # the fault was ended by the drill
    picture: Picture | None  # None: the daemon has not answered since the fault
    history: Sequence[Document]
    daemon: int | None  # pid of the daemon that answered last


def until(order: Order, evidence: Evidence) -> Until:
    """The times of the table."""
    since, name = evidence.fault_at - MS, order.name
    out = witness.out_of_rotation(evidence.history, name, since)
    picture = evidence.picture
    fenced = witness.fenced(picture, name, since) if picture is not None and order.fault is not Fault.KILL else None
    back = _back_at(order, evidence)
    return Until(
        out_of_rotation=_after(out, evidence.fault_at),
        fenced=_after(fenced, evidence.fault_at),
        serving_again=_after(back, evidence.fault_at),
    )


def is_over(order: Order, evidence: Evidence) -> bool:
    """Whether the service is again what it was before the fault."""
    picture = evidence.picture
    if picture is None or picture.asked < evidence.fault_at or not picture.all_serve():
        return False
    match order.fault:
        case Fault.DAEMON:
            return order.target is not None and evidence.daemon not in (None, order.target.pid)
        case Fault.GATEWAY:
            return witness.gateway_back(evidence.history, evidence.fault_at - MS) is not None
        case Fault.SLOW | Fault.SPIKE:
            return _undone(evidence, picture)
        case _:
            found = picture.instance(order.name or "")
            if found is None or order.target is None or found["pid"] is None:
                return False
            return found["pid"] != order.target.pid or _undone(evidence, picture)


def broken_promises(order: Order, tally: Tally, seen: Until, *, over: bool) -> tuple[str, ...]:
    """What was not as it is promised, a sentence each."""
    whom = order.name or {Fault.DAEMON: "the daemon", Fault.GATEWAY: "the gateway"}.get(order.fault, "the service")
    found: list[str] = []
    if lost := _lost(order, tally):
        found.append(f"{lost} of {tally.sent} requests failed")
    if not over:
        found.append(f"{whom} does not serve again")
    if order.fault in OF_AN_INSTANCE - {Fault.SLOW} and seen.out_of_rotation is None:
        found.append(f"{whom} was never taken out of rotation")
    if order.fault in (*LASTING, Fault.DAEMON, Fault.GATEWAY) and seen.fenced is not None:
        found.append(f"{order.name or 'an instance'} was restarted, and should not have been")
    if order.fault in (Fault.SPIKE, Fault.DAEMON) and seen.out_of_rotation is not None:
        found.append("an instance left rotation, and should not have")
    return tuple(found)


def sentence(order: Order, tally: Tally, seen: Until) -> str:
    """The table in words, for the history."""
    shed = f", {tally.shed} told to come again" if tally.shed else ""
    words = [f"{tally.sent} sent, {tally.failed} failed{shed}, slowest {tally.slowest:.2f} s"]
    times = {
        "out of rotation": seen.out_of_rotation,
        "fenced": seen.fenced,
        "serving again": seen.serving_again,
    }
    words += [f"{what} after {seconds:.2f} s" for what, seconds in times.items() if seconds is not None]
    return ", ".join(words)


def _lost(order: Order, tally: Tally) -> int:
    """Requests that should not have failed. Between two masters of nginx nobody listens, and some are turned away."""
    refused = dict(tally.failures).get(NOT_CONNECTED, 0) if order.fault is Fault.GATEWAY else 0
    return tally.failed - refused


def _back_at(order: Order, evidence: Evidence) -> float | None:
    """When it served again, by the daemon's own account; None: not yet, or it never ceased to."""
    picture = evidence.picture
    if picture is None or not is_over(order, evidence):
        return None
    match order.fault:
        case Fault.DAEMON:
            return picture.at
        case Fault.GATEWAY:
            return witness.gateway_back(evidence.history, evidence.fault_at - MS)
        case Fault.SPIKE:
            names = [one["name"] for one in picture.status["instances"]]
        case _:
            names = [order.name or ""]
    moments = [at for name in names if (at := witness.serving_since(picture, name)) is not None]
    return max((at for at in moments if at >= evidence.fault_at - MS), default=None)


def _undone(evidence: Evidence, picture: Picture) -> bool:
    return evidence.undone_at is not None and picture.asked > evidence.undone_at


def _after(moment: float | None, fault_at: float) -> float | None:
    return max(0.0, moment - fault_at) if moment is not None else None
