"""Asks runtimes for an instance, and stand-ins for their health and work."""

from __future__ import annotations

from typing import Any

import httpx

from hasupervisor.model import Fact
from hasupervisor.runtimes.base import Runtime


async def the(runtime: Runtime, name: str) -> Fact:
    """The listed instance of that name; fails when there is none."""
    return next(fact for fact in await runtime.list() if fact.name == name)


async def answers(fact: Fact) -> dict[str, Any]:
    """What its GET /health says; empty when nothing answers in 2 s."""
    async with httpx.AsyncClient() as client:
        try:
            said: dict[str, Any] = (await client.get(f"http://{fact.address}/health", timeout=2.0)).json()
        except httpx.TransportError:
            return {}
    return said


async def in_flight(fact: Fact) -> int:
    return int((await answers(fact)).get("progress", {}).get("in_flight", 0))


async def tell(fact: Fact, **mode: object) -> None:
    """Tells a stand-in how to be (standin/server.py lists the modes)."""
    async with httpx.AsyncClient() as client:
        await client.post(f"http://{fact.address}/standin", json=mode)
