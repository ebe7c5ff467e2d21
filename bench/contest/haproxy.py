"""HAProxy with active checks and retries, as an experienced operator sets it up; supervisord restarts its instances."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

from bench.contest.contenders import Stand
from bench.contest.programs import Program, answers, find, run, until
from bench.contest.supervised import Supervised

CONFIG = """
global
    maxconn 8000
    stats socket {folder}/haproxy.sock level admin expose-fd listeners
    log stderr format raw local0 notice

defaults
    mode http
    log global
    option httpclose
    option redispatch 1
    retries 3
    retry-on all-retryable-errors
    timeout connect 2s
    timeout client 600s
    timeout server 600s
    timeout check 1s
    timeout queue {queue}

frontend gateway
    bind 127.0.0.1:{port}
    option http-buffer-request
    default_backend instances

backend instances
    balance leastconn
    option httpchk GET /health
    http-check expect status 200
    default-server check inter 1s fall 2 rise 1 on-marked-down shutdown-sessions{limit}
{servers}
"""


class HAProxy:
    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._instances = Supervised(stand)
        self._binary = find("haproxy", "haproxy")
        config = stand.folder / "haproxy.cfg"
        self._program = Program([self._binary, "-W", "-db", "-f", str(config)], stand.folder, "haproxy.log")
        self._config = config

    async def start(self) -> None:
        stand = self._stand
        servers = "\n".join(f"    server i{port} 127.0.0.1:{port}" for port in stand.instances)
        # Over the limit requests wait in HAProxy's own queue: for 5 s, so that those who get no turn are told in time.
        limit, queue = (f" maxconn {stand.at_once}", "5s") if stand.at_once else ("", "30s")
        self._config.write_text(
            CONFIG.format(folder=stand.folder, port=stand.gateway, servers=servers, limit=limit, queue=queue)
        )
        await self._instances.start()
        await self._program.start()
        await until(lambda: answers(stand.gateway), "HAProxy answers")
        for port in stand.instances:
            await until(lambda port=port: self._is_up(port), f"HAProxy sends requests to {port}")  # type: ignore[misc]

    async def stop(self) -> None:
        await self._program.stop()
        await self._instances.stop()

    async def drain(self, port: int) -> None:
        await self._command(f"set server instances/i{port} state drain")

    async def undrain(self, port: int) -> None:
        await self._command(f"set server instances/i{port} state ready")

    async def reload(self) -> None:
        os.kill(self._program.pid, signal.SIGUSR2)

    async def routed(self, port: int) -> bool | None:
        return await self._is_up(port)

    async def versions(self) -> Mapping[str, str]:
        first = (await run(self._binary, "-v")).splitlines()[0]
        return {"HAProxy": first.split(" ")[2], "supervisord": await self._instances.version()}

    def words(self) -> str:
        return f"{self._program.words()}\n{self._instances.words()}"

    async def _is_up(self, port: int) -> bool:
        lines = (await self._command("show stat")).splitlines()
        fields = next((line.split(",") for line in lines if line.startswith(f"instances,i{port},")), None)
        return fields is not None and fields[17].startswith("UP")

    async def _command(self, words: str) -> str:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_unix_connection(str(self._stand.folder / "haproxy.sock"))
            try:
                writer.write(f"{words}\n".encode())
                return (await reader.read(-1)).decode()
            finally:
                writer.close()
