"""Lines of a real nginx, in the gateway's own log_format, from its worker's datagrams to the numbers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.model import Address, TrafficView
from hasupervisor.observe.connections import InFlight
from hasupervisor.observe.exchange import Missed, Question, exchange
from hasupervisor.observe.logsocket import open_log_socket
from hasupervisor.observe.traffic import Traffic
from hasupervisor.templates import template_dir
from tests.observe.servers import Handler, answering, free_address, here, http, saying, serving, silent_after
from tests.real.waiting import eventually

CONF = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log; {user}
events {{ worker_connections 256; }}
http {{
    geo $ha_generation {{ default "17"; }}
    {log_format}
    access_log syslog:server=unix:{dir}/log.sock,nohostname,tag=ha,severity=info ha;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    {upstreams}
    server {{
        listen {listen};
        keepalive_timeout 0; proxy_buffering off; proxy_http_version 1.1; proxy_read_timeout 1s;
        proxy_next_upstream error timeout http_502 http_503 http_504 non_idempotent; proxy_next_upstream_tries 3;
        recursive_error_pages on;
        {locations}
        location = /health {{ return 200 "fine"; }}
    }}
}}
"""


@dataclass
class Gateway:
    address: Address
    traffic: Traffic

    async def ask(self, path: str, timeout: float = 5.0) -> int | None:
        """The status, None when the client gave up; returns once nginx has told of the request."""
        told = self.traffic.received
        status = None
        with contextlib.suppress(Missed):
            status = (await exchange(self.address, Question("POST", path), timeout)).status
        await eventually(lambda: self.traffic.received > told)
        return status

    def view(self, address: Address) -> TrafficView:
        return self.traffic.view([address])[address]


@contextlib.asynccontextmanager
async def nginx(folder: Path, **upstreams: str) -> AsyncIterator[Gateway]:
    """A private nginx: /v1/NAME goes to the servers of NAME, each "HOST:PORT", in order (the others are backups)."""
    listener = open_log_socket(folder / "log.sock", mode=0o666)
    traffic = Traffic(listener, InFlight())
    traffic.start()
    listen = free_address()
    log_format = re.search(r"log_format ha .*?;\n", (template_dir() / "gateway.conf.j2").read_text(), re.DOTALL)
    assert log_format is not None
    (folder / "nginx.conf").write_text(
        CONF.format(
            dir=folder,
            user="user root;" if os.getuid() == 0 else "",
            listen=listen,
            log_format=log_format[0],
            upstreams="\n".join(f"upstream {name} {{ {servers} }}" for name, servers in upstreams.items()),
            locations="\n".join(
                f"location /v1/{name} {{ proxy_pass http://{name}; error_page 502 = @again; }}" for name in upstreams
            )
            + "location @again { proxy_pass http://ok; }",
        )
    )
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(folder), "-c", "nginx.conf", stderr=subprocess.DEVNULL
    )
    try:
        gateway = Gateway(listen, traffic)

        async def up() -> bool:
            with contextlib.suppress(Missed):
                return (await exchange(listen, Question("GET", "/health"), 1.0)).status == 200
            return False

        await eventually(up)
        await eventually(lambda: traffic.received)  # of that question
        yield gateway
    finally:
        process.terminate()
        await process.wait()
        traffic.close()


def servers(*addresses: Address) -> str:
    first, *others = addresses
    return " ".join([f"server {first} max_fails=0;", *(f"server {other} max_fails=0 backup;" for other in others)])


def stream(pause: float) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(4):
            writer.write(b"9\r\ndata: 1\n\n\r\n")
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(b"0\r\n\r\n")

    return handler


async def test_what_nginx_writes_is_what_happened(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ok = await stack.enter_async_context(serving(answering(200, {"response": "hi"})))
        err = await stack.enter_async_context(serving(answering(500, {})))
        dies = await stack.enter_async_context(serving(saying()))
        mute = await stack.enter_async_context(serving(silent_after()))
        streams = await stack.enter_async_context(serving(stream(0.1)))
        dead = free_address()
        gateway = await stack.enter_async_context(
            nginx(
                tmp_path,
                ok=servers(ok),
                err=servers(err),
                dies=servers(dies, ok),
                dead=servers(dead),
                down=f"server {ok} down;",
                mute=servers(mute),
                streams=servers(streams),
            )
        )
        assert gateway.traffic.total().qps == 0.0  # /health has been asked, and is no traffic

        assert await gateway.ask("/v1/ok") == 200
        view = gateway.view(ok)
        assert view.completed_at is not None
        assert (view.errors_in_row, view.error_rate) == (0, 0.0)

        assert await gateway.ask("/v1/err") == 500
        assert await gateway.ask("/v1/err") == 500
        view = gateway.view(err)
        assert (view.errors_in_row, view.completed_at) == (2, None)
        assert view.bytes_at is not None

        answered_before = gateway.view(ok).completed_at
        assert await gateway.ask("/v1/dies") == 200  # tried there, answered by the other
        assert gateway.view(dies).errors_in_row == 1
        assert gateway.view(ok).completed_at != answered_before

        assert await gateway.ask("/v1/dead") == 200  # refused, then a named location
        assert (gateway.view(dead).errors_in_row, gateway.view(dead).bytes_at) == (1, None)

        assert await gateway.ask("/v1/down") == 200  # nobody there, then a named location
        assert await gateway.ask("/v1/mute") == 504
        assert gateway.view(mute).errors_in_row == 1

        assert await gateway.ask("/v1/mute", timeout=0.3) is None  # 499: the client left
        assert gateway.view(mute).errors_in_row == 1

        assert await gateway.ask("/v1/streams") == 200
        view = gateway.view(streams)
        assert view.mean_ms is not None
        assert view.mean_ms < 100  # it took 400

        assert gateway.traffic.lost == 0
        assert gateway.traffic.total().error_rate == 3 / 9


async def test_requests_that_nginx_holds_with_an_instance_are_in_flight(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        mute = await stack.enter_async_context(serving(silent_after()))
        ok = await stack.enter_async_context(serving(saying(http(200, b""))))
        gateway = await stack.enter_async_context(nginx(tmp_path, mute=servers(mute), ok=servers(ok)))
        asking = [asyncio.ensure_future(gateway.ask("/v1/mute")) for _ in range(4)]
        await eventually(lambda: gateway.view(mute).in_flight == 4)
        assert gateway.traffic.idle(mute) is False
        gateway.traffic.follow([here(mute)])
        assert await asyncio.gather(*asking) == [504] * 4
        await eventually(lambda: gateway.view(mute).in_flight == 0)
        assert gateway.traffic.idle(mute) is True
