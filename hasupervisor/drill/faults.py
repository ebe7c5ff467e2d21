"""Makes each fault and undoes it."""

from __future__ import annotations

import json
import signal

from hasupervisor.drill.guardian import Guardian
from hasupervisor.drill.load import Load
from hasupervisor.drill.order import LASTING, OF_AN_INSTANCE, Fault, Order
from hasupervisor.model import Address
from hasupervisor.observe.exchange import Missed, NotAsked, Question, exchange
from hasupervisor.runtimes import process_records
from hasupervisor.runtimes.base import RuntimeTrouble
from hasupervisor.runtimes.dockerd import Deadlines, Dockerd

HOOK = "/drill"
HOOK_S = 5.0

MORE_S = 10.0
"""Seconds beyond the drill's own time after which a guardian or a hook ends the fault by itself."""


class NotMade(Exception):
    """The fault could not be made; the text says why."""


async def make(order: Order, guardian: Guardian, load: Load) -> None:
    """Begins the fault. Raises NotMade and guardian.GuardianLost."""
    longest = order.seconds + MORE_S
    if order.target is not None and not process_records.is_alive(order.target):
        raise NotMade(f"the process that was to be hit (pid {order.target.pid}) has ended before")
    match order.fault:
        case Fault.KILL | Fault.DAEMON | Fault.GATEWAY:
            assert order.target is not None
            if order.engine is None:
                process_records.signal_process(order.target, signal.SIGKILL)
            else:
                await _kill_by_engine(order.engine, order.container)
        case Fault.HANG:
            assert order.target is not None
            await guardian.hold(order.target, longest)
        case Fault.SLOW:
            assert order.target is not None
            await guardian.slow(order.target, longest)
        case Fault.SICK:
            assert order.address is not None
            await _tell(order.address, {"fault": "sick", "for_s": longest})
        case Fault.SPIKE:
            load.sheds = True
            load.rate = order.spike_rate


async def _kill_by_engine(host: str, container: str) -> None:
    """dockerd kills the main process, which for the daemon is a death like any other: it does not start it again."""
    dockerd = Dockerd(host, Deadlines())
    try:
        await dockerd.ask_engine(f"kill {container[:12]}", lambda client: client.kill(container, "KILL"))
    except RuntimeTrouble as trouble:
        raise NotMade(str(trouble)) from trouble


async def undo(order: Order, guardian: Guardian, load: Load) -> None:
    """Ends the fault, where it has to be ended. Raises GuardianLost; what was held goes on all the same."""
    await guardian.release()
    if order.fault is Fault.SPIKE:
        load.rate = order.rate
    if order.fault is Fault.SICK and order.address is not None and _lives(order):
        try:
            await _tell(order.address, {"fault": None})
        except NotMade:
            return  # it is being restarted, or ends it by itself: `for_s`


def holds(order: Order) -> bool:
    """Whether this fault stops processes, so that somebody may have to let them go on."""
    return order.fault in (Fault.HANG, Fault.SLOW)


def is_of_an_instance(order: Order) -> bool:
    return order.fault in OF_AN_INSTANCE


def lasts(order: Order) -> bool:
    """Whether it goes on for the whole time of the load."""
    return order.fault in LASTING


async def offers_sickness(address: Address) -> str:
    """Why that instance cannot be made sick by its own hook, in words; "" when it can."""
    try:
        answer = await exchange(address, Question("GET", HOOK), HOOK_S)
    except (Missed, NotAsked) as error:
        return f"GET {HOOK}: {error}"
    if answer.status != 200:
        return f"it answered {answer.status} to GET {HOOK}"
    try:
        told = json.loads(answer.body)
        known = "sick" in told["faults"]
    except (ValueError, KeyError, TypeError):
        return f"its answer to GET {HOOK} does not name the faults that it can make"
    return "" if known else f'its GET {HOOK} does not name "sick"'


async def _tell(address: Address, told: dict[str, object]) -> None:
    try:
        answer = await exchange(address, Question("POST", HOOK, json.dumps(told).encode()), HOOK_S)
    except (Missed, NotAsked) as error:
        raise NotMade(f"POST {HOOK} to {address}: {error}") from error
    if answer.status != 200:
        raise NotMade(f"POST {HOOK} to {address}: answered {answer.status}")


def _lives(order: Order) -> bool:
    return order.target is not None and process_records.is_alive(order.target)
