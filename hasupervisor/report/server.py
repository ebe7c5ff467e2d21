"""Serves an application on a socket that is bound already, until told to stop, and then within a deadline."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from uvicorn.config import Config
from uvicorn.server import ServerState

from hasupervisor.descriptors import Acceptor
from hasupervisor.report.answers import Application, Receive, Scope, Send, abort, defect
from hasupervisor.report.connection import Connection, Limits

log = structlog.get_logger(__name__)

BACKLOG = 128

STOP_DEADLINE = 2.0
"""Seconds for answers that are under way when the daemon stops."""


async def serve(listener: socket.socket, application: Application, stopping: asyncio.Event, limits: Limits) -> None:
    """Returns when `stopping` is set and all connections are closed, STOP_DEADLINE later at most.

    Not uvicorn's own Server: that one takes over the signals, and wakes ten times a second for nothing.
    """
    config = Config(
        _guarded(application),
        http="h11",
        loop="none",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=limits.head,
        timeout_keep_alive=limits.idle,
    )
    config.load()
    state = ServerState()
    listener.listen(BACKLOG)
    acceptor = Acceptor(listener, lambda: Connection(config, state, limits))
    try:
        await stopping.wait()
    finally:
        acceptor.close()
        await _close(state)


async def _close(state: ServerState) -> None:
    """Lets answers end that are under way, then cuts what is left."""
    for connection in list(state.connections):
        if isinstance(connection, Connection):
            connection.end_soon()
    if state.tasks:
        await asyncio.wait(list(state.tasks), timeout=STOP_DEADLINE)
    for connection in list(state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)  # the connections learn that they are lost
    tasks = list(state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=STOP_DEADLINE)


def _guarded(application: Application) -> Application:
    """Nothing that goes wrong in a request reaches uvicorn, whose words for it are neither JSON nor our log's."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await application(scope, receive, watched)
        except ClientDisconnect:
            return  # nobody is there to be answered
        except asyncio.CancelledError:
            await abort(scope)
        except Exception:
            log.exception("BUG: a request failed", method=scope["method"], path=scope["path"])
            if started:
                await abort(scope)
            else:
                await defect()(scope, receive, send)

    return guarded
