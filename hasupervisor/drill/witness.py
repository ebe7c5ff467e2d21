"""Asks the daemon what it sees and has written down while a drill goes on; every time of a drill is from there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

Document = dict[str, Any]

EVERY_S = 0.2
ANSWER_S = 5.0
ENTRIES = 500  # of the history, from the beginning of the drill on
SHOWN = 50  # of them, kept with the drill


@dataclass(frozen=True, slots=True)
class Picture:
    """One status document; times are Unix seconds of the daemon's clock, which is this host's."""

    asked: float  # when it was asked for
    status: Document

    @property
    def at(self) -> float:
        return wall(self.status["now"])

    def instance(self, name: str) -> Document | None:
        found: Iterable[Document] = self.status["instances"]
        return next((one for one in found if one["name"] == name), None)

    def all_serve(self) -> bool:
        """Whether as many serve as are wanted, and nginx runs what is wanted."""
        status = self.status
        nginx = status["nginx"]
        whole = nginx is None or (nginx["ok"] and nginx["live_generation"] is not None)
        routed = all(one["routed"] for one in status["instances"])
        return bool(status["settled"] and whole and routed and status["serving"] >= status["desired"])


class Witness:
    """Keeps the latest picture and the history since the drill began; goes on through restarts of the daemon."""

    def __init__(self, socket: str, began: float, clock: Callable[[], float] = time.time) -> None:
        self.picture: Picture | None = None
        self.history: tuple[Document, ...] = ()
        self.pid: int | None = None  # of the daemon that answered last
        self.trouble: str = ""  # why it does not answer now; "" while it does
        self._began = began
        self._clock = clock
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, verify=False, limits=httpx.Limits(max_connections=1)),
            base_url="http://ha",
            timeout=ANSWER_S,
        )

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        asked = self._clock()
        try:
            status = await self._ask("/v1/status")
            if status is None:
                return
            history = await self._client.get("/v1/history", params={"since": f"{self._began:.3f}", "n": str(ENTRIES)})
            version = await self._ask("/v1/version")
        except httpx.HTTPError as error:
            self.trouble = f"the daemon does not answer: {error!r}"
            return
        if version is None:
            return
        if history.status_code == 200:
            self.history = tuple(json.loads(line) for line in history.text.splitlines())
        self.picture, self.pid, self.trouble = Picture(asked, status), version["pid"], ""

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, target: str) -> Document | None:
        answer = await self._client.get(target)
        if answer.status_code != 200:
            self.trouble = f"the daemon answered {answer.status_code} to {target}"
            return None
        found: Document = answer.json()
        return found


def out_of_rotation(history: Sequence[Document], name: str | None, since: float) -> float | None:
    """When that instance (None: any) was first proven to be out of the gateway; None: it was not."""
    moments = (
        wall(entry["at"])
        for entry in history
        if entry["event"] == "routing" and entry["sentence"].startswith("out ") and name in (None, entry["subject"])
    )
    return min((at for at in moments if at >= since), default=None)


def fenced(picture: Picture, name: str | None, since: float) -> float | None:
    """When the daemon first gave up a life of that instance (None: of any): its failure is later than the fault."""
    failures = (one["last_failure"] for one in picture.status["instances"] if name in (None, one["name"]))
    moments = (wall(failure["at"]) for failure in failures if failure is not None)
    return min((at for at in moments if at >= since), default=None)


def serving_since(picture: Picture, name: str) -> float | None:
    """Since when that instance has served and been routed without a break; None: it does not now."""
    found = picture.instance(name)
    if found is None or found["state"] != "serving" or not found["routed"]:
        return None
    return wall(found["since"])


def gateway_back(history: Sequence[Document], since: float) -> float | None:
    """When nginx was proven to answer again after it had gone; None: not yet, or it has not gone."""
    moments = (wall(e["at"]) for e in history if e["event"] == "gateway" and "answers again" in e["sentence"])
    return min((at for at in moments if at >= since), default=None)


def about(history: Sequence[Document], since: float) -> tuple[Document, ...]:
    """What the daemon wrote down from the fault on."""
    return tuple(entry for entry in history if wall(entry["at"]) >= since)[:SHOWN]


def wall(stamp: str) -> float:
    """Unix seconds of a time in a document."""
    return datetime.fromisoformat(stamp).timestamp()
