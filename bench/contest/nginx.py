"""The two contenders on stock nginx: the original design, and nginx's defaults with a restart policy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping

from bench.contest.contenders import Stand
from bench.contest.programs import Program, answers, ask, find, run, until
from bench.contest.supervised import Supervised

MAIN = """
worker_processes 2;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream chatglm {{
{servers}
{upstream}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://chatglm;
{location}
        }}
    }}
}}
"""

ORIGINAL_LOCATION = """
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection 'upgrade';
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_connect_timeout 10s;
            proxy_send_timeout 300s;
            proxy_read_timeout 300s;
            proxy_buffering on;
            proxy_buffer_size 128k;
            proxy_buffers 4 256k;
            proxy_busy_buffers_size 256k;
"""

PLAIN_LOCATION = """
            proxy_http_version 1.1;
            proxy_read_timeout 600s;
"""

MONITOR_EVERY_S, MONITOR_PATIENCE_S = 30.0, 5.0


class Nginx:
    """nginx in front of supervised instances; what it knows of them is what its own requests meet."""

    def __init__(self, stand: Stand, server: str, upstream: str, location: str) -> None:
        self._stand, self._server, self._upstream, self._location = stand, server, upstream, location
        self._drained: set[int] = set()
        self._config = stand.folder / "nginx.conf"
        self._binary = find("nginx", "nginx")
        self.instances = Supervised(stand)
        command = [self._binary, "-p", str(stand.folder), "-c", str(self._config), "-g", "daemon off;"]
        self._program = Program(command, stand.folder, "nginx.out")

    async def start(self) -> None:
        self._write()
        await self.instances.start()
        await self._program.start()
        await until(lambda: answers(self._stand.gateway), "nginx answers")

    async def stop(self) -> None:
        await self._program.stop()
        await self.instances.stop()

    async def drain(self, port: int) -> None:
        self._drained.add(port)
        await self.reload()

    async def undrain(self, port: int) -> None:
        self._drained.discard(port)
        await self.reload()

    async def reload(self) -> None:
        self._write()
        os.kill(self._program.pid, signal.SIGHUP)

    async def routed(self, port: int) -> bool | None:
        return None

    async def versions(self) -> Mapping[str, str]:
        said = await run(self._binary, "-v")
        return {"nginx": said.rpartition("/")[2], "supervisord": await self.instances.version()}

    def words(self) -> str:
        return f"{self._program.words()}\n{self.instances.words()}"

    def _write(self) -> None:
        stand = self._stand
        servers = [
            f"        server 127.0.0.1:{port}{self._server}{' down' if port in self._drained else ''};"
            for port in stand.instances
        ]
        self._config.write_text(
            MAIN.format(
                folder=stand.folder,
                port=stand.gateway,
                servers="\n".join(servers),
                upstream=self._upstream,
                location=self._location,
            )
        )


def plain(stand: Stand) -> Nginx:
    """nginx with its defaults and instances that are restarted when they end: Docker's --restart and a proxy."""
    return Nginx(stand, "", "", PLAIN_LOCATION)


class Original(Nginx):
    """The original design: passive checks, and a monitor that asks every 30 s and restarts who does not answer.

    Kinder than the design in one point: its monitor looks after both instances, not only after the first.
    """

    def __init__(self, stand: Stand) -> None:
        super().__init__(stand, " max_fails=3 fail_timeout=30s", "        keepalive 32;", ORIGINAL_LOCATION)
        self._monitor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        self._monitor = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._monitor is not None:
            self._monitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._monitor
        await super().stop()

    async def _watch(self) -> None:
        while True:
            for port in self._stand.instances:
                if not await self._is_healthy(port):
                    await self.instances.restart(port)
            await asyncio.sleep(MONITOR_EVERY_S)

    async def _is_healthy(self, port: int) -> bool:
        status, _, body = (await ask(port, within=MONITOR_PATIENCE_S)).partition(" ")
        try:
            return status == "200" and json.loads(body).get("status") == "healthy"
        except (ValueError, AttributeError):
            return False
