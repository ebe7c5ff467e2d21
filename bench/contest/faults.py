"""The faults: what is done to a contender's instances while users send requests, and how long that takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.contest.ledger import Life, is_alive
from bench.contest.load import stream
from bench.contest.scene import Scene
from bench.contest.storm import storm

PATIENCE_S = 30.0
RATE = 20.0
GLANCE_S = 0.05


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and the stage that it needs."""

    name: str
    about: str
    make: Callable[[Scene], Awaitable[None]]
    seconds: float  # of load from the fault on
    quick_s: float
    stand: Mapping[str, Any] = field(default_factory=dict)  # what differs from the usual Stand
    overload: float = 0.0  # load as a multiple of capacity; 0: RATE a second
    repeats: int = 1  # with seeds of their own


async def kill_one(scene: Scene) -> None:
    scene.kill(scene.victim())
    await scene.rest()


async def kill_all(scene: Scene) -> None:
    for life in scene.ledger.living().values():
        scene.kill(life)
    await scene.rest()


async def hang(scene: Scene) -> None:
    """Also notes when it was out of rotation and when it was ended, where the contender can tell."""
    life = scene.victim()
    scene.stop(life)
    at = scene.load.now()
    watch = asyncio.create_task(_watch(scene, life, at))
    await scene.rest()
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch


async def _watch(scene: Scene, life: Life, since: float) -> None:
    while is_alive(life.pid):
        if "out_s" not in scene.said and await scene.contender.routed(life.port) is False:
            scene.said["out_s"] = round(scene.load.now() - since, 2)
        await asyncio.sleep(GLANCE_S)
    scene.said["ended_s"] = round(scene.load.now() - since, 2)


async def hang_for_a_moment(scene: Scene) -> None:
    """SIGSTOP until it is out of rotation (4 s where the contender cannot tell), then SIGCONT."""
    life = scene.victim()
    at = scene.load.now()
    scene.stop(life)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(4.0):
            await _unrouted(scene, life)
    scene.said["stopped_s"] = round(scene.load.now() - at, 2)
    scene.go_on(life)
    await scene.rest()
    scene.said["same_process"] = is_alive(life.pid)
    scene.said["routed_again"] = await scene.contender.routed(life.port)


async def _unrouted(scene: Scene, life: Life) -> None:
    while await scene.contender.routed(life.port) is not False:  # noqa: ASYNC110 - nobody tells; it has to be asked
        await asyncio.sleep(GLANCE_S)


async def sick(scene: Scene) -> None:
    """500 to users from one, whose GET /health is fine."""
    life = scene.victim()
    scene.ledger.harm(life.pid)
    await scene.tell(life.port, mode="err")
    await scene.rest()


async def blind(scene: Scene) -> None:
    """Every GET /health fails at once for 15 s, while users are served."""
    for port in scene.stand.instances:
        await scene.tell(port, mode="health500", for_s=15.0)
    await scene.rest()


async def overloaded(scene: Scene) -> None:
    """Nothing but the load; notes how often each instance was seen out of rotation."""
    seen = {"looks": 0, "unrouted": 0}
    while scene.load.now() < scene.seconds:
        for port in scene.stand.instances:
            seen["looks"] += 1
            seen["unrouted"] += await scene.contender.routed(port) is False
        await asyncio.sleep(0.5)
    scene.said |= seen


async def cut_streams(scene: Scene) -> None:
    """Eight streams of 6 s, beside the usual load; one of the two instances is killed after 3 s."""
    life = scene.victim()
    began = [asyncio.create_task(stream(scene.stand.gateway, 6.0, PATIENCE_S)) for _ in range(8)]
    await asyncio.sleep(3.0)
    scene.kill(life)
    scene.streams = list(await asyncio.gather(*began))
    scene.said["killed"] = f"instance-{life.port}"
    await scene.rest()


def all_faults() -> dict[str, Fault]:
    """Every fault by its name, in the order in which they are made."""
    opaque = {"health": "opaque"}
    narrow = {"slots": 4, "at_once": 8}
    behind = {"slots": 4, "health": "inference"}
    # 32 wait 2.4 s for their turn, longer than chatglm-ha's and HAProxy's checks wait for an answer.
    deep = {**behind, "at_once": 32}
    faults = [
        Fault("kill", "one of two is killed", kill_one, 20.0, 6.0),
        Fault("kill-all", "both are killed at once", kill_all, 20.0, 8.0),
        Fault("hang", "one of two hangs (SIGSTOP)", hang, 45.0, 8.0),
        Fault("hang-opaque", "the same; its /health tells no progress", hang, 45.0, 15.0, opaque),
        Fault("hang-moment", "SIGSTOP, and SIGCONT once it is out", hang_for_a_moment, 15.0, 10.0, opaque),
        Fault("sick", "one answers users 500, its /health is fine", sick, 45.0, 8.0),
        Fault("blind", "every GET /health fails for 15 s", blind, 25.0, 20.0),
        Fault("stream", "killed in mid-stream", cut_streams, 12.0, 8.0),
        Fault("spike", "3 x capacity", overloaded, 60.0, 15.0, narrow, 3.0),
        Fault("spike-queue", "the same; /health is a prompt behind the queue", overloaded, 60.0, 15.0, deep, 3.0),
        Fault("spike-bare", "the same, and no gateway has a limit", overloaded, 60.0, 15.0, behind, 3.0),
        Fault("storm", "kills, hangs, drains, reloads, twice nobody alive", storm, 40.0, 40.0, repeats=3),
    ]
    return {fault.name: fault for fault in faults}
