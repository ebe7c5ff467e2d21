"""What users see of an instance that dies or hangs: failed requests, time until nginx leaves it out and it is back.

    python -m bench.outage [--signal KILL|STOP] [--socket PATH] [--url http://127.0.0.1:8080/] [--rate 20]

Needs a running daemon with at least two serving instances of the process runtime (`make run`). It sends `--rate`
prompts a second, signals one instance, asks every 5 ms which generation nginx's workers run until that has changed,
then every 50 ms the status until the instance serves again, and sends for some seconds more. Exits 1 where a request
failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.real.load import LoadResult, post_load

BEFORE_S, AFTER_S = 5.0, 5.0
PATIENCE_S = 300.0


class Watched:
    """The daemon and the gateway, asked on loopback."""

    def __init__(self, socket: str, url: str) -> None:
        self._daemon = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://ha")
        self._gateway = httpx.AsyncClient(base_url=url)

    async def instances(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._daemon.get("/v1/status", timeout=10.0)).json()["instances"]
        return found

    async def generation(self) -> str:
        return (await self._gateway.get("/ha/generation", timeout=10.0)).text.strip()

    async def close(self) -> None:
        await self._daemon.aclose()
        await self._gateway.aclose()


async def measure(options: argparse.Namespace) -> LoadResult:
    watched = Watched(options.socket, options.url)
    serving = [one for one in await watched.instances() if one["state"] == "serving"]
    if len(serving) < 2:
        raise SystemExit(f"{len(serving)} instances serve; two are needed: chatglm-hactl status")
    victim, over = serving[-1], asyncio.Event()
    load = asyncio.create_task(post_load(options.url, options.rate, PATIENCE_S, until=over))
    try:
        await asyncio.sleep(BEFORE_S)
        generation = await watched.generation()
        os.kill(victim["pid"], signal.Signals[f"SIG{options.signal}"])
        began = time.monotonic()
        out = await _until(watched.generation, lambda now: now != generation, 0.005, began)
        back = await _until(watched.instances, lambda now: _is_another(victim, now), 0.05, began)
        await asyncio.sleep(AFTER_S)
    finally:
        over.set()
        result = await load
        await watched.close()
    print(f"SIG{options.signal} to {victim['name']} (pid {victim['pid']}), {options.rate:g} prompts/s: {result}")
    print(f"  nginx's workers leave it out after {out * 1000:.0f} ms; it serves again after {back:.1f} s")
    print(f"  {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, {result.late * 1000:.0f} ms late")
    return result


async def _until(ask: Callable[[], Any], is_so: Callable[[Any], bool], every: float, began: float) -> float:
    """Seconds since `began` at which the answer was so."""
    while not is_so(await ask()):
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"not within {PATIENCE_S:.0f} s: chatglm-hactl status")
        await asyncio.sleep(every)
    return time.monotonic() - began


def _is_another(victim: dict[str, Any], instances: list[dict[str, Any]]) -> bool:
    """Whether the name has another life, and that serves."""
    now = next((one for one in instances if one["name"] == victim["name"]), None)
    return now is not None and now["pid"] not in (None, victim["pid"]) and now["state"] == "serving"


def main() -> int:
    parser = argparse.ArgumentParser(description="What users see of an instance that dies or hangs.")
    parser.add_argument("--signal", choices=("KILL", "STOP"), default="KILL")
    parser.add_argument("--socket", default=".run/control.sock", help="the daemon's control socket")
    parser.add_argument("--url", default="http://127.0.0.1:8080/", help="the gateway")
    parser.add_argument("--rate", type=float, default=20.0, help="prompts a second")
    return 1 if asyncio.run(measure(parser.parse_args())).failures else 0


if __name__ == "__main__":
    sys.exit(main())
