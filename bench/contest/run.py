"""Runs one fault on one contender: starts it, sends the load, makes the fault, ends everything, counts."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bench.contest.contenders import Contender, Stand
from bench.contest.faults import PATIENCE_S, RATE, Fault
from bench.contest.figures import Figures, answered_twice, of_load, of_streams
from bench.contest.haproxy import HAProxy
from bench.contest.ledger import Ledger
from bench.contest.load import posting
from bench.contest.nginx import Original, plain
from bench.contest.ours import ChatglmHa
from bench.contest.scene import Scene
from tests.claims import Claims
from tests.real.conftest import BLOCK, PORTS_FROM, PORTS_TO, is_free

CONTENDERS: dict[str, Callable[[Stand], Contender]] = {
    "chatglm-ha": ChatglmHa,
    "haproxy": HAProxy,
    "original": Original,
    "plain": plain,
}


async def run(contender: str, fault: Fault, seed: int, seconds: float, keep: Path | None = None) -> Figures:
    """One fault on one contender. `keep`: a folder for its logs. Raises Missing before anything is started."""
    with _stand(contender, fault) as stand:
        try:
            async with _running(CONTENDERS[contender](stand)) as running:
                return await _perform(running, stand, contender, fault, seed, seconds)
        finally:
            if keep is not None:
                _keep(stand.folder, keep / f"{fault.name}-{contender}-{seed}")


async def _perform(
    running: Contender, stand: Stand, contender: str, fault: Fault, seed: int, seconds: float
) -> Figures:
    ledger = Ledger(stand.ledger)
    rate = fault.overload * stand.capacity if fault.overload else RATE
    versions = dict(await running.versions())
    async with posting(stand.gateway, rate, PATIENCE_S, f"{fault.name}-{seed}") as load:
        scene = Scene(stand, running, ledger, load, random.Random(seed), seconds)
        if not fault.overload:
            await scene.calm()
        await fault.make(scene)
    in_time = sum(one.what == "ok" and one.sent_at + one.took <= seconds for one in load.outcomes)
    return Figures(
        fault=fault.name,
        contender=contender,
        seed=seed,
        **of_load(load, overload=bool(fault.overload)),
        of_capacity=in_time / (stand.capacity * seconds) if fault.overload else None,
        restarts=ledger.restarts(),
        healthy_restarts=len(ledger.healthy_ended()),
        twice=answered_twice(ledger, load),
        said=scene.said,
        streams=of_streams(scene.streams, scene.said.get("killed", "")),
        load_average=os.getloadavg()[0],
        versions=versions,
    )


@asynccontextmanager
async def _running(contender: Contender) -> AsyncIterator[Contender]:
    try:
        await contender.start()
        yield contender
    finally:
        await asyncio.shield(contender.stop())


@contextmanager
def _stand(contender: str, fault: Fault) -> Iterator[Stand]:
    """Private folder and ports; the original design's instances have its own /health, which runs a prompt."""
    claims = Claims()
    folder = Path(tempfile.mkdtemp(prefix="failover-"))
    different = dict(fault.stand)
    if contender == "original":
        different["health"] = "inference"
    try:
        yield Stand(folder, _ports(claims), folder / "ledger", **different)
    finally:
        shutil.rmtree(folder)
        claims.close()


def _ports(claims: Claims) -> range:
    for start in range(PORTS_FROM, PORTS_TO, BLOCK):
        if claims(f"ports-{start}") and all(is_free(port) for port in range(start, start + BLOCK)):
            return range(start, start + BLOCK)
    raise RuntimeError(f"no {BLOCK} free ports in a row between {PORTS_FROM} and {PORTS_TO}: ss -ltn")


def _keep(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and not file.is_symlink():
            shutil.copy(file, to / file.name)
