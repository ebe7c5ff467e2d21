"""chatglm-ha itself: its real daemon, process runtime, nginx of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress

from bench.contest.contenders import Stand
from bench.contest.ledger import Ledger
from bench.contest.programs import find, run, tail
from tests.real.daemon import Daemon, Document, Settings

GREEN_S = 60.0
TRIES = 4  # as HAProxy's: the first and three retries
HOLD_S = 25.0  # what clients with 30 s of patience leave; HAProxy's queue has its 30 s
REFUSED = 5


class ChatglmHa:
    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        find("nginx", "nginx")
        ports = stand.ports
        settings: Settings = {
            "service": {"ports": f"{ports[-4]}-{ports[-1]}", "min": 2, "max": 2},
            "process": {"command": stand.command, "env": stand.environment},
            "health": {"interval": 1, "timeout": 1, "failures": 2},
            "autoscale": {"enabled": False},
            "nginx": {"max_in_flight": stand.at_once, "tries": TRIES, "hold": HOLD_S},
        }
        self._daemon = Daemon(ports, settings)

    async def start(self) -> None:
        await asyncio.to_thread(self._daemon.start)
        await asyncio.to_thread(self._daemon.wait_until_green, 2, GREEN_S)

    async def stop(self) -> None:
        for name in ("daemon.log", "nginx/error.log"):
            self._keep(name.replace("/", "-"), tail(self._daemon.folder / name, 5000))
        if self._daemon.runs():
            entries = await asyncio.to_thread(self._daemon.history)
            self._keep("history.jsonl", "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries))
        for life in Ledger(self._stand.ledger).living().values():
            with suppress(ProcessLookupError):
                os.kill(life.pid, signal.SIGCONT)
        await asyncio.to_thread(self._daemon.close)

    async def drain(self, port: int) -> None:
        await self._command("drain", "--no-wait", await self._name(port))

    async def undrain(self, port: int) -> None:
        await self._command("undrain", "--no-wait", await self._name(port))

    async def reload(self) -> None:
        await self._command("nginx", "reload")

    async def routed(self, port: int) -> bool | None:
        return bool((await self._instance(port))["routed"])

    async def versions(self) -> Mapping[str, str]:
        status = await asyncio.to_thread(self._daemon.status)
        nginx = (await run(find("nginx", "nginx"), "-v")).rpartition("/")[2]
        return {"chatglm-ha": str(status["version"]), "nginx": nginx}

    def words(self) -> str:
        return tail(self._stand.folder / "history.jsonl", 80)

    async def _name(self, port: int) -> str:
        return str((await self._instance(port))["name"])

    async def _instance(self, port: int) -> Document:
        status = await asyncio.to_thread(self._daemon.status)
        found: Document = next(i for i in status["instances"] if str(i["endpoint"]).endswith(f":{port}"))
        return found

    async def _command(self, *arguments: str) -> None:
        ran = await asyncio.to_thread(self._daemon.hactl, *arguments)
        if ran.code not in (0, REFUSED):  # refused: nothing else would be left serving
            raise RuntimeError(f"chatglm-hactl {' '.join(arguments)} ended with {ran.code}: {ran.err.strip()}")

    def _keep(self, name: str, text: str) -> None:
        (self._stand.folder / name).write_text(text)
