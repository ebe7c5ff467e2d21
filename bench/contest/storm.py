"""A storm: 40 s of kills, hangs, drains and reloads in an order that the seed gives; twice nobody is alive."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from bench.contest.ledger import Life
from bench.contest.scene import Scene

HANG_S = 6.0  # then SIGCONT: also who fences nobody gets its instance back
DRAIN_S = 3.0
CALM_S = 8.0  # after the last gust: what waits is answered within the storm's own load

GUSTS = ("kill",) * 5 + ("hang",) * 2 + ("drain",) + ("reload",) * 6
"""What happens beside the two moments with nobody alive, in an order that the seed gives."""


@dataclass(frozen=True, slots=True)
class Gust:
    """One thing that happens, so many seconds after the storm began."""

    at: float
    what: str  # kill | kill-all | hang | drain | reload
    which: int  # of the two instances


def schedule(chance: random.Random, seconds: float) -> list[Gust]:
    """The same for the same seed: GUSTS shuffled, and everybody killed after a third and after two thirds of them."""
    names = chance.sample(GUSTS, len(GUSTS))
    third = round(len(names) / 3)
    names[third:third] = ["kill-all"]
    names[2 * third + 1 : 2 * third + 1] = ["kill-all"]
    step = (seconds - CALM_S) / len(names)
    return [
        Gust(step * (number + chance.uniform(-0.3, 0.3)) if number else 0.0, what, chance.randrange(2))
        for number, what in enumerate(names)
    ]


async def storm(scene: Scene) -> None:
    began = asyncio.get_running_loop().time()
    gusts = schedule(scene.chance, scene.seconds)
    scene.said["gusts"] = [f"{gust.at:.1f} s {gust.what} {gust.which}" for gust in gusts]
    async with asyncio.TaskGroup() as later:
        for gust in gusts:
            await asyncio.sleep(max(0.0, began + gust.at - asyncio.get_running_loop().time()))
            await _blow(scene, gust, later)
        await scene.rest()


async def _blow(scene: Scene, gust: Gust, later: asyncio.TaskGroup) -> None:
    living = scene.ledger.listening()
    life = living.get(scene.stand.instances[gust.which])
    match gust.what:
        case "kill-all":
            for one in living.values():
                scene.kill(one)
        case "reload":
            later.create_task(scene.contender.reload())
        case "kill" if life is not None:
            scene.kill(life)
        case "hang" if life is not None:
            scene.stop(life)
            later.create_task(_go_on(scene, life))
        case "drain" if life is not None:
            scene.ledger.harm(life.pid)  # some end what they drain
            later.create_task(_drain(scene, life.port))


async def _go_on(scene: Scene, life: Life) -> None:
    await asyncio.sleep(HANG_S)
    scene.go_on(life)


async def _drain(scene: Scene, port: int) -> None:
    await scene.contender.drain(port)
    await asyncio.sleep(DRAIN_S)
    await scene.contender.undrain(port)
