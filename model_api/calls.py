"""One request seen from the event loop: from its acceptance to its end, whatever ends it first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import Receive

from model_api.admission import Refusal, Refused
from model_api.request import Event, Failed, Finished, Request, Started, Text, Why
from model_api.service import Service

if TYPE_CHECKING:
    from model_api.job import Job


class ClientGone(Exception):
    """The client has closed its connection; nobody reads an answer."""


class GenerationFailed(Exception):
    """The engine gave up on the request."""

    def __init__(self, why: Why, words: str) -> None:
        super().__init__(words)
        self.why = why
        self.words = words


@dataclass(frozen=True, slots=True)
class _Gone:
    """Put among the engine's events when the client has left."""


class Call:
    """A request that has a place in the server; made by `calling`."""

    def __init__(self, service: Service, receive: Receive) -> None:
        self._service = service
        self._receive = receive
        self._events: asyncio.Queue[Event | _Gone] = asyncio.Queue()
        self._job: Job | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._started: float | None = None
        self._over = False

    @property
    def seconds_in_slot(self) -> float | None:
        """How long it has been decoded; None if it never was."""
        return None if self._started is None else time.monotonic() - self._started

    async def begin(self, request: Request) -> None:
        """Hands the request to the engine and waits until it has left the queue; its body must have been read.

        Raises PromptError, Refused when it waits longer than MAX_WAIT, ClientGone, GenerationFailed.
        """
        self._job = self._service.engine.submit(request, self._events.put_nowait)
        self._watcher = asyncio.create_task(self._watch())
        longest = self._service.admission.patience()
        try:
            # The wait is timed here and not in the engine, so that a hung step cannot hold the answer back too.
            async with asyncio.timeout(longest):
                event = await self._next()
        except TimeoutError:
            words = f"no place became free in {longest:g} s"
            raise Refused(Refusal("waited", words, self._service.admission.retry_after())) from None
        assert isinstance(event, Started), event
        self._started = time.monotonic()

    async def text(self) -> AsyncIterator[Text | Finished]:
        """The answer as it comes; the last is Finished. Raises ClientGone, GenerationFailed."""
        while not self._over:
            event = await self._next()
            if isinstance(event, (Text, Finished)):
                yield event

    async def answer(self) -> Finished:
        """The whole answer of a request that does not stream."""
        async for event in self.text():
            if isinstance(event, Finished):
                return event
        raise AssertionError("BUG: an answer without an end")

    def close(self) -> None:
        """Lets the engine forget the request if it has not ended."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._job is not None and not self._over:
            self._service.engine.cancel(self._job)

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, _Gone):
            raise ClientGone
        if isinstance(event, Failed):
            self._over = True
            raise GenerationFailed(event.why, event.words)
        if isinstance(event, Finished):
            self._over = True
        return event

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(_Gone())


@asynccontextmanager
async def calling(service: Service, receive: Receive) -> AsyncIterator[Call]:
    """A place in the server for the length of the block; raises Refused if there is none."""
    service.check_open()
    service.admission.enter()
    call = Call(service, receive)
    try:
        yield call
    finally:
        call.close()
        service.admission.leave(call.seconds_in_slot)
