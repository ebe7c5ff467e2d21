"""Begins the process that carries a drill out; it is nobody's child, and outlives the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import hasupervisor
from hasupervisor.drill.order import Order
from hasupervisor.report.desk import Failed

BEGIN_S = 15.0  # a new interpreter takes 0.3 s; the rest is for a machine that is busy
COMMAND = (sys.executable, "-P", "-m", "hasupervisor.drill")
"""-P: what lies in the folder where the daemon was started is none of ours."""


async def launch(order: Order) -> None:
    """Returns once the drill has written its first sheet. Raises Failed."""
    starter = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=_environment()
    )
    try:
        async with asyncio.timeout(BEGIN_S):
            said, _ = await starter.communicate(order.to_json().encode())
    except TimeoutError:
        starter.kill()
        await starter.wait()
        raise Failed(f"{order.id} did not begin within {BEGIN_S:g} s", "chatglm-hactl drill") from None
    try:
        answer: dict[str, object] = json.loads(said)
    except ValueError:
        words = f"{' '.join(COMMAND)} exited {starter.returncode} and said nothing; the daemon's log has its words"
        raise Failed(f"{order.id} did not begin: {words}", "journalctl -u chatglm-ha") from None
    if "error" in answer:
        raise Failed(f"{order.id} did not begin: {answer['error']}", "chatglm-hactl drill")


def _environment() -> dict[str, str]:
    """Ours, with the place of this very package, which -P would not find in a checkout that is not installed."""
    places = [str(Path(hasupervisor.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
