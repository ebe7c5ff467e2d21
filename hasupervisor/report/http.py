"""The TCP server for machines and browsers: /metrics, /healthz and the page, GET only."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from hasupervisor.model import Address
from hasupervisor.report.answers import Application, Receive, Scope, Send
from hasupervisor.report.connection import Limits
from hasupervisor.report.desk import Unavailable
from hasupervisor.report.metrics import Metrics, Status
from hasupervisor.report.page import text

ALIVE = 5.0
"""Seconds since the last cycle, beyond which the daemon calls itself dead."""

LIMITS = Limits(connections=32)

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class CannotListen(Exception):
    """The address cannot be listened on; the text says why, and the next command."""


def bind(listen: Address) -> socket.socket:
    """The listening socket for [http].listen. Raises CannotListen."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"http.listen: {listen}: {error.strerror or error}; getent hosts {listen.host}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        words = f"http.listen: cannot listen on {listen}: {error.strerror}; ss -ltnp 'sport = :{listen.port}'"
        raise CannotListen(words) from error
    return listener


def public_pages(
    desk: Status, metrics: Metrics, listen: Address, clock: Callable[[], float] = time.monotonic
) -> Application:
    """The application behind [http].listen."""

    async def show_metrics(request: Request) -> Response:
        content, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={**_HEADERS, "Content-Type": content_type})

    async def healthz(_: Request) -> Response:
        try:
            age = clock() - desk.status().cycled_at
        except Unavailable as error:
            return _words(f"starting: {error.detail}", 503)
        if age < ALIVE:
            return _words(f"ok: the last cycle ended {age:.1f} s ago")
        return _words(f"the last cycle ended {age:.1f} s ago; journalctl -u chatglm-ha", 503)

    async def page(_: Request) -> Response:
        try:
            return _words(text(desk.status()))
        except Unavailable as error:
            return _words(f"starting: {error.detail}", 503)

    routes = [Route("/metrics", show_metrics), Route("/healthz", healthz), Route("/", page)]
    handlers: dict[Any, Any] = {HTTPException: _http_exception, Exception: _defect}
    application = Starlette(routes=routes, exception_handlers=handlers)
    application.router.redirect_slashes = False
    return _checked(application, listen)


def _checked(application: Application, listen: Address) -> Application:
    """Answers only to a Host that is ours: a web page elsewhere must not read this one by a name of its own."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if is_ours(host, listen):
            await application(scope, receive, send)
        else:
            words = f"this server is not {host[:100]!r}; ask for {listen}, an address of this host, or its name"
            await _words(words, 421)(scope, receive, send)

    return checked


def is_ours(host: str, listen: Address) -> bool:
    """Whether a Host header names this server: the address it listens on, an address as such, or the host's name."""
    name = _without_port(host).lower()
    if not host:
        return True  # a probe that speaks HTTP/1.0; a browser always has one
    if name in {"localhost", listen.host.lower()}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        own = os.uname().nodename.lower()
        return not _is_loopback(listen.host) and name in {own, own.partition(".")[0]}
    return address.is_loopback or not _is_loopback(listen.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and port.isdecimal() else host


def _words(words: str, status: int = 200) -> Response:
    return PlainTextResponse(words + "\n", status, headers=_HEADERS)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    words = {404: f"there is nothing at {request.url.path}", 405: "this server is read only: GET"}
    response = _words(words.get(error.status_code, str(error.detail)), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _defect(_: Request, __: Exception) -> Response:
    return _words("the daemon has a defect here; what it was is in its log, with the word BUG", 500)
