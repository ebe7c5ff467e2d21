"""The stand-in model server as a contender's instance: it writes down every life and every answer, so that both count.

    HOST=127.0.0.1 PORT=8000 LEDGER=PATH python -m bench.contest.instance NAME

Beside the environment of tests/real/standin/server.py: LEDGER, a file that gets a JSON line for each start and each
answer; WARM_S 0, seconds before the port is bound, as of a server that loads its model first; HEALTH may also be
"inference": GET /health waits in the queue like a user and runs a prompt, as the original design's does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from tests.real.standin.server import Server, prompt_of, respond


class Instance(Server):
    def __init__(self, env: dict[str, str], name: str) -> None:
        super().__init__(env, name)
        self._warm_s = float(env.get("WARM_S", "0"))
        self._ledger = os.open(env["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._made: set[str] = set()  # numbers of requests whose answers are made and not yet sent
        self._write("up")

    async def run(self) -> None:
        await asyncio.sleep(self._warm_s)
        await super().run()

    async def listen(self) -> None:
        await super().listen()
        self._write("listens")

    async def health(self, writer: asyncio.StreamWriter, keep: bool) -> None:
        if self.health_form == "inference":
            if self.mode.name == "err":
                return await respond(writer, 500, {"error": "the prompt failed"}, keep)
            async with self.slots:
                await self.labour(self.service_s)
        return await super().health(writer, keep)

    async def prompt(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any], keep: bool) -> None:
        number = prompt_of(body).partition(" ")[0]
        await super().prompt(writer, path, body, keep)
        if number in self._made:  # and handed to the kernel: what is killed before that was not answered
            self._made.discard(number)
            self._write("answered", request=number)

    def answer(self, path: str, text: str, answer: str) -> dict[str, Any]:
        self._made.add(text.partition(" ")[0])
        return super().answer(path, text, answer)

    def _write(self, what: str, **more: str) -> None:
        line = {"at": time.monotonic(), "what": what, "pid": os.getpid(), "port": self.port, **more}
        os.write(self._ledger, (json.dumps(line) + "\n").encode())  # one call: lines of several writers stay whole


def main() -> None:
    env = dict(os.environ)
    name = sys.argv[1] if len(sys.argv) > 1 else f"instance-{env['PORT']}"
    asyncio.run(_serve(env, name))


async def _serve(env: dict[str, str], name: str) -> None:
    await Instance(env, name).run()


if __name__ == "__main__":
    main()
