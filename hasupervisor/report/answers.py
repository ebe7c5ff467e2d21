"""Answers of the HTTP servers: JSON, problems, and streams that end when the client leaves or the daemon stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import structlog
from starlette.responses import Response

from hasupervisor.report import document
from hasupervisor.report.desk import Declined, Invalid, NoSuch, Refused, Unavailable

log = structlog.get_logger(__name__)

PATIENCE = 0.5
"""Seconds that a stream waits for its first line before it answers 200: what fails at once is then a problem."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

AT_A_TIME = 64
"""Pieces that a stream sends before others have their turn: a long answer must not hold up the cycle."""

_TITLES: Sequence[tuple[type[Declined], int, str]] = (
    (Refused, 409, "Refused"),
    (NoSuch, 404, "Not found"),
    (Invalid, 422, "Invalid configuration"),
    (Unavailable, 503, "Unavailable"),
    (Declined, 500, "Failed"),
)


def answer(value: document.Document, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


def refuse(
    status: int,
    detail: str,
    hint: str | None = None,
    *,
    problems: Sequence[str] = (),
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = document.problem(title or HTTPStatus(status).phrase.capitalize(), status, detail, hint, problems)
    return Response(encode(body), status, dict(headers or {}), media_type="application/problem+json")


def decline(error: Declined) -> Response:
    status, title = next((status, title) for kind, status, title in _TITLES if isinstance(error, kind))
    return refuse(status, error.detail, error.hint, problems=error.problems, title=title)


def defect() -> Response:
    detail = "the daemon has a defect here; what it was is in its log, with the word BUG"
    return refuse(500, detail, "journalctl -u chatglm-ha", title="Defect")


def encode(value: document.Document) -> bytes:
    """UTF-8, with `?` for what is no text (names and output of others are not always)."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


class Stream:
    """An answer that arrives piece by piece, for as long as its source, the client and the daemon last.

    What the source declines before its first piece is raised, for the usual answer. After that it is logged, and the
    connection is cut, so that the client sees that the answer is not whole.
    """

    def __init__(self, source: AsyncGenerator[bytes, None], media_type: str, stopping: asyncio.Event) -> None:
        self._source = source
        self._media_type = media_type
        self._stopping = stopping
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        patience = asyncio.create_task(self._begin_late(send))
        ends = [asyncio.create_task(_departure(receive)), asyncio.create_task(self._stopping.wait())]
        try:
            await asyncio.wait([pump, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, patience, *ends):
                task.cancel()
            await asyncio.wait([pump, patience, *ends])
        error = None if pump.cancelled() else pump.exception()
        if error is None:
            await self._begin(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self._begun:
            raise error
        else:
            await self._cut(scope, error)

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._source) as source:
            sent = 0
            async for piece in source:
                await self._begin(send)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                sent += 1
                if sent % AT_A_TIME == 0:
                    await asyncio.sleep(0)

    async def _begin_late(self, send: Send) -> None:
        await asyncio.sleep(PATIENCE)
        await self._begin(send)

    async def _begin(self, send: Send) -> None:
        if not self._begun:
            self._begun = True
            headers = [(b"content-type", self._media_type.encode()), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _cut(self, scope: Scope, error: BaseException) -> None:
        if isinstance(error, Declined):
            log.warning("a stream has ended early", path=scope["path"], why=error.detail)
        else:
            log.error("BUG: a stream failed", path=scope["path"], exc_info=error)
        await abort(scope)


async def abort(scope: Scope) -> None:
    """Cuts the connection of a request, and lets the server notice before anything else is sent on it."""
    scope["state"]["abort"]()
    await asyncio.sleep(0)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
