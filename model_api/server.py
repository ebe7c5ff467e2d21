"""The process: its socket first, then its model, its signals, and the order in which it leaves."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn

from model_api import connections, exits
from model_api.app import build_app
from model_api.service import Service
from model_api.settings import Settings

log = logging.getLogger(__name__)

KEEP_ALIVE = 75  # seconds; longer than nginx keeps idle connections to its upstreams (60), so that nginx closes them
LINGER = 5.0  # seconds for the last answers to be sent and connections to close
BACKLOG = 2048
SEND_BUFFER = 256 << 10  # bytes of an answer that the kernel keeps for a slow client; by itself it would take 4 MB
ACCEPTED_AT_ONCE = 64  # connections; /health waits for no more of a flood than these


def bind(settings: Settings) -> socket.socket:
    """A listening socket on HOST and PORT; raises OSError with both in its words."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        words = f"cannot listen on HOST={settings.host} PORT={settings.port}: {error.strerror or error}"
        raise OSError(words) from None
    return listener


def run(settings: Settings, listener: socket.socket) -> int:
    """Serves until a signal or a fault ends it; returns the exit code."""
    return asyncio.run(_run(settings, listener))


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would refuse connections at once."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # One number of asyncio's is both how many it accepts in one go and how many may wait in the kernel.
        for listener in sockets or ():
            listener.listen(BACKLOG)


async def _run(settings: Settings, listener: socket.socket) -> int:
    service = Service(settings)
    book = connections.Book(
        connections.most_connections(connections.raise_file_limit(), settings.max_batch + settings.max_queue)
    )
    service.metrics.gauge("model_api_connections", "Open connections", lambda: len(book))
    service.metrics.gauge("model_api_connections_limit", "The most connections there may be", lambda: book.most)
    service.metrics.gauge("model_api_connections_closed", "Connections that made room for others", lambda: book.closed)
    config = uvicorn.Config(
        build_app(service),
        http=cast(Any, connections.protocol(book)),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(LINGER),
    )
    server = _Server(config)
    host, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    leaving = Leaving(service)
    leaving.listen()
    loading = _load_beside(service)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        code = await leaving.decide(loading)
    finally:
        server.should_exit = True
        await serving
    return code


def _load_beside(service: Service) -> asyncio.Future[None]:
    """Loads in a daemon thread, so that a signal while loading need not wait for it."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[None] = loop.create_future()

    def load() -> None:
        try:
            service.load(loop)
        except BaseException as error:
            loop.call_soon_threadsafe(_settle, loaded, error)
        else:
            loop.call_soon_threadsafe(_settle, loaded, None)

    threading.Thread(target=load, name="loader", daemon=True).start()
    return loaded


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


class Leaving:
    """Decides when the process ends, and with which code: signals only set flags, everything else happens here."""

    FAREWELL = 1.0  # seconds for requests that are cut off to be told so

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked = asyncio.Event()
        self._asked_twice = asyncio.Event()

    def listen(self) -> None:
        """Takes SIGTERM and SIGINT: the first asks to drain, the second to go at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        (self._asked_twice if self._asked.is_set() else self._asked).set()

    async def decide(self, loading: asyncio.Future[None]) -> int:
        """Returns the exit code when it is time to close the server."""
        asked: asyncio.Future[Any] = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait((asked, loading), return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and (error := loading.exception()) is not None:
            return _load_failed(error)
        await asked
        return await self._drain()

    async def _drain(self) -> int:
        service = self._service
        service.drain()
        grace = service.settings.grace
        log.info("draining: %d requests to finish, %g s of grace", service.admission.inside, grace)
        emptied: asyncio.Future[Any] = asyncio.ensure_future(service.admission.emptied())
        twice: asyncio.Future[Any] = asyncio.ensure_future(self._asked_twice.wait())
        await asyncio.wait((emptied, twice), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        twice.cancel()
        left = service.admission.inside
        if not left:
            log.info("drained")
            return exits.DRAINED
        why = "told twice" if self._asked_twice.is_set() else f"{grace:g} s of grace are over"
        log.warning("%s: cutting off %d requests", why, left)
        service.engine.close()
        await asyncio.wait((emptied,), timeout=self.FAREWELL)
        return exits.CUT_OFF


def _load_failed(error: BaseException) -> int:
    if type(error).__module__.startswith("model_api") or isinstance(error, OSError):
        log.debug("why the model did not load", exc_info=error)
    else:
        log.error("BUG: loading failed", exc_info=error)
    print(f"model_api: cannot serve: {error}", file=sys.stderr, flush=True)
    return exits.CANNOT_SERVE
