"""`python -m hasupervisor.drill <ORDER`: begins one drill, says {"pid"} or {"error"}, and leaves it to itself.

The drill is a process in a session of its own, so that it outlives the daemon that began it and may kill it. The order
comes as JSON on stdin; the answer is one line of JSON on stdout, after which the process that was asked ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from pathlib import Path

from hasupervisor.drill import guardian, processes, sheet
from hasupervisor.drill.order import Order
from hasupervisor.drill.sheet import FAILED, Sheet


def main() -> int:
    order = Order.from_json(sys.stdin.read())
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        answer = os.read(reading, 65536)
        os.write(1, answer or b'{"error": "it ended before it began"}\n')
        # Not sys.exit: nothing of the interpreter's is to be put away twice.
        os._exit(0)
    os.close(reading)
    status = 1
    try:
        os.setsid()
        status = _carry_out(order, writing)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _carry_out(order: Order, answer: int) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # what the daemon waits for; stderr is its log, and stays
        os.dup2(null, descriptor)
    folder = Path(order.path).parent
    first = begun(order)
    try:
        sheet.write(folder, first, lasting=True)
    except OSError as error:
        os.write(answer, json.dumps({"error": f"cannot write {order.path}: {error.strerror}"}).encode() + b"\n")
        return 1
    os.write(answer, json.dumps({"pid": os.getpid()}).encode() + b"\n")
    os.close(answer)
    guard = guardian.start()
    try:
        ended = asyncio.run(_run(order, guard, first))
    finally:
        guard.close()
    return 1 if ended.state == FAILED else 0


async def _run(order: Order, guard: guardian.Guardian, first: Sheet) -> Sheet:
    from hasupervisor.drill.course import Drill  # httpx and threads only after the guardian has been forked

    return await Drill(order, guard, first).run()


def begun(order: Order) -> Sheet:
    """The sheet of a drill that this process begins to carry out."""
    return Sheet(
        id=order.id,
        fault=order.fault.value,
        name=order.name,
        by=order.by,
        rate=order.rate,
        seconds=order.seconds,
        patience=order.patience,
        started=time.time(),
        process=processes.identify(os.getpid()),
    )


if __name__ == "__main__":
    sys.exit(main())
