"""What the tests on real nginx share: tiny instances, a private nginx in the system's place, and gateways to test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hasupervisor.act.nginx import process
from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.nginx.program import Control
from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.model import Address, GatewayView, Route, Routing
from tests.real.waiting import eventually


@dataclass
class Instance:
    """An HTTP server that answers with its name and the body it was sent; `how` makes it misbehave."""

    port: int
    name: str = ""
    how: str = "ok"  # ok | slow | cut (takes the request, then closes) | busy (503) | stream | torn | redirect
    service_s: float = 0.0
    taken: int = 0  # requests of users
    lines: list[str] = field(default_factory=list)  # their request lines
    last_taken: float = 0.0
    release: asyncio.Event = field(default_factory=asyncio.Event)  # ends "slow", "stream" and "torn"
    server: asyncio.Server | None = None

    @property
    def route(self) -> Route:
        return Route(self.name, Address("127.0.0.1", self.port))

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            if head.startswith("GET /health"):
                writer.write(_reply("200 OK", b'{"status": "healthy"}'))
                return
            self.taken += 1
            self.lines.append(head.partition("\r\n")[0].removesuffix(" HTTP/1.1"))
            self.last_taken = time.monotonic()
            await self._behave(writer, body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _behave(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        if self.how == "cut":
            return
        if self.how == "busy":
            writer.write(_reply("503 Service Unavailable", b'{"error": "busy"}'))
            return
        if self.how == "redirect":
            writer.write(_reply("200 OK", b'{"name": "redirect"}', "X-Accel-Redirect: /ha/generation\r\n"))
            return
        if self.how in ("stream", "torn"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"d\r\ndata: first\n\n\r\n")
            await writer.drain()
            await self.release.wait()
            if self.how == "torn":
                return
            writer.write(b"c\r\ndata: last\n\n\r\n0\r\n\r\n")
            return
        if self.how == "slow":
            await self.release.wait()
        await asyncio.sleep(self.service_s)
        writer.write(_reply("200 OK", json.dumps({"name": self.name, "body": body.decode()}).encode()))


def _reply(status: str, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def whole(self) -> bool:
        """A chunked answer has its last chunk."""
        return self.headers.get("transfer-encoding") != "chunked" or self.body.endswith("0\r\n\r\n")

    @property
    def json(self) -> dict[str, object]:
        said: dict[str, object] = json.loads(self.body)
        return said


async def ask(
    port: int, target: str = "GET /", body: str = "", *, source: str = "127.0.0.1", deadline: float = 20.0
) -> Reply:
    """One request on a connection of its own, and all that comes back."""
    async with asyncio.timeout(deadline):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        writer.write(f"{target} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode())
        raw = (await reader.read(-1)).decode(errors="replace")
        writer.close()
    head, _, rest = raw.partition("\r\n\r\n")
    lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return Reply(int(lines[0].split(" ")[1]), headers, rest)


def table(*routed: Instance, others: tuple[Instance, ...] = ()) -> Routing:
    routes = tuple(instance.route for instance in routed)
    return Routing(routes=routes, everyone=routes + tuple(instance.route for instance in others))


def addresses(*instances: Instance) -> frozenset[Address]:
    return frozenset(instance.route.address for instance in instances)


@dataclass
class Watched:
    """A gateway under test, with every view that it has shown."""

    gateway: Gateway
    settings: NginxSettings
    port: int
    views: list[tuple[float, GatewayView]]

    @property
    def dir(self) -> Path:
        return self.settings.dir

    @property
    def upstream(self) -> str:
        return (self.settings.dir / "upstream.conf").read_text()

    async def route(self, routing: Routing, within: float = 10.0) -> GatewayView:
        """Wants a table and waits until nginx is proven to run it."""
        self.gateway.want(routing)
        wanted = frozenset(route.address for route in routing.routes)
        return await self.until(
            lambda view: view.ok and self.proven(view) and view.live == wanted and view.servers == len(wanted), within
        )

    async def until(self, condition: Callable[[GatewayView], bool], within: float = 10.0) -> GatewayView:
        def met() -> GatewayView | None:
            view = self.gateway.view()
            return view if condition(view) else None

        return await eventually(met, f"the gateway's view, {self.gateway.view()}", within, 0.002)

    @staticmethod
    def proven(view: GatewayView) -> bool:
        return view.live_generation == view.generation


@contextlib.asynccontextmanager
async def running(settings: NginxSettings, port: int, control: Control | None = None) -> AsyncIterator[Watched]:
    """A started gateway; what it has started is ended afterwards."""
    views: list[tuple[float, GatewayView]] = []
    watched: list[Gateway] = []
    gateway = Gateway(settings, lambda: views.append((time.monotonic(), watched[0].view())), control=control)
    watched.append(gateway)
    try:
        await gateway.start()
        yield Watched(gateway, settings, port, views)
    finally:
        await gateway.shutdown(patience=2.0)


@dataclass
class PrivateNginx:
    """An nginx of a test that stands for the distribution's: its own main file, started and ended by the test."""

    folder: Path
    binary: Path
    pid_file: Path
    conf_d: Path

    @property
    def main(self) -> Path:
        return self.folder / "etc" / "nginx.conf"

    @property
    def master(self) -> int | None:
        pid = process.read_pid(self.pid_file)
        return pid if pid is not None and (process.title(pid) or "").startswith("nginx: master") else None

    def start(self) -> None:
        subprocess.run([self.binary], check=True, timeout=10, capture_output=True)

    def stop(self) -> None:
        if (master := self.master) is None:
            return
        os.kill(master, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while process.title(master):
            assert time.monotonic() < deadline, f"nginx (pid {master}) did not end"
            time.sleep(0.005)


MAIN = """{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
    include mime.types;
    access_log {folder}/access.log combined;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/etc/conf.d/*.conf;
}}
"""


@contextlib.contextmanager
def private_nginx(folder: Path, conf: str) -> Iterator[PrivateNginx]:
    """Lays a main file out as Debian does, by absolute patterns, with `conf` in conf.d/ha.conf."""
    etc = folder / "etc"
    (etc / "conf.d").mkdir(parents=True)
    (etc / "mime.types").write_text("types { text/html html; }\n")
    user = "user root;" if os.geteuid() == 0 else ""
    (etc / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
    (etc / "conf.d" / "ha.conf").write_text(conf)
    binary = folder / "nginx"
    binary.write_text(f'#!/bin/sh\nPATH=$PATH:/usr/sbin exec nginx -c {etc}/nginx.conf "$@"\n')
    binary.chmod(0o755)
    nginx = PrivateNginx(folder, binary, folder / "nginx.pid", etc / "conf.d")
    try:
        yield nginx
    finally:
        nginx.stop()


def master_of(settings: NginxSettings) -> int | None:
    """The pid of the master of an nginx of our own; None: it has none."""
    return process.read_pid(settings.dir / "nginx.pid")


def refused(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0
