"""One look at the GPUs, as the user nobody: `python -m tests.gpu.looking PID RUNTIME_ID`, started by root.

The card's processes are those that the double of NVML lists. Says which of them are dead, whose they are, and what
becomes of the card when it stays like that for an hour.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from hasupervisor.decide.gpu.judge import Moment, judge_card
from hasupervisor.model import Address, Fact, Phase
from hasupervisor.model.gpu import GB, CardRecord, Gpus
from hasupervisor.observe.gpu_watch import GpuWatch
from tests.real.waiting import eventually

NOBODY = 65534


async def look(facts: list[Fact]) -> Gpus:
    watch = GpuWatch(lambda: None, Path("/dev/null"))
    watch.start()
    try:

        def listed() -> bool:
            return any(card.fact for card in watch.look([], {}).driver.cards)

        await eventually(listed, "the card has told its figures", 20.0)
        os.setresuid(NOBODY, NOBODY, 0)
        return watch.look(facts, {})
    finally:
        os.seteuid(0)  # to end the process that asks the driver
        await watch.close()


def state_after_an_hour(gpus: Gpus) -> str:
    (card,) = gpus.driver.cards
    now, record = time.monotonic(), CardRecord(card.uuid or "")
    for minute in range(60):
        at = now + 60.0 * minute
        judged = judge_card(card, record, [], Moment(at, at, gpus.boot, 13 * GB, gpus.dead))
        record = judged.record
    return judged.state.value


def main() -> None:
    pid, runtime_id = int(sys.argv[1]), sys.argv[2]
    here = Address("127.0.0.1", 8000)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)  # the group root would see everything
    gpus = asyncio.run(look([Fact("chatglm-01", runtime_id, Phase.RUNNING, here, here, pid=pid)]))
    said = {"dead": sorted(gpus.dead), "users": dict(gpus.users), "state": state_after_an_hour(gpus)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
