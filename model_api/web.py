"""From a request to an answer: what both APIs share below their own words."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_api.admission import Refused
from model_api.bodies import most_items, read_json
from model_api.calls import ClientGone, GenerationFailed
from model_api.problems import Problem, Unanswerable
from model_api.request import PromptError, PromptTooLong, Why
from model_api.service import Service

T = TypeVar("T")

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's number; nobody receives it
IGNORED = b"x-ignored-parameters"  # the header that names them
MOST_NAMES = 16  # in that header
_IGNORED_KEY = "model_api.ignored"  # in a request's scope
_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")  # what a name must be made of to be repeated in a header and the log

# What is the request's own fault has a 4xx that neither a gateway nor the official client sends a second time: carried
# to the next instance it would do the same harm there.
_STATUS = {
    Why.DEADLINE: 408,
    Why.NOT_FINITE: 422,
    Why.STEP_FAILED: 422,
    Why.OUT_OF_MEMORY: 503,
    Why.SHUTDOWN: 503,
    Why.FAULT: 500,
}


Handler = Callable[[Service, HttpRequest, Send], Awaitable[None]]
Render = Callable[[Problem], Response]


def endpoint(service: Service, name: str, handler: Handler, render: Render, *, invalid: int) -> ASGIApp:
    """An ASGI application that checks the key, runs `handler`, and puts every failure into the API's own form.

    `invalid` is the status for prompts that the model cannot take.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        status = CLIENT_GONE

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (ignored := scope.get(_IGNORED_KEY)) is not None:
                    message = {**message, "headers": [*message.get("headers", ()), (IGNORED, ignored)]}
            await send(message)

        request = HttpRequest(scope, receive)
        try:
            try:
                check_key(request, service.settings.api_keys)
                await handler(service, request, counting_send)
            except (Unanswerable, Refused, PromptError, GenerationFailed) as error:
                problem = problem_of(error, invalid)
                if isinstance(error, Refused):
                    service.metrics.refused(error.refusal.reason)
                await render(problem)(scope, receive, counting_send)
            except (ClientGone, ClientDisconnect):
                status = CLIENT_GONE
            except Exception as error:
                log.exception("BUG: %s failed", name)
                failed = Problem(500, f"the server failed: {type(error).__name__}", "fault")
                await render(failed)(scope, receive, counting_send)
        finally:
            service.metrics.answered(name, status, time.monotonic() - began)

    return app


def problem_of(error: Exception, invalid: int = 400) -> Problem:
    """The Problem that an expected exception stands for."""
    match error:
        case Unanswerable():
            return error.problem
        case Refused():
            return Problem(503, error.refusal.words, error.refusal.reason, retry_after=error.refusal.retry_after)
        case GenerationFailed():
            status = _STATUS.get(error.why, invalid)
            again = 1 if status == 503 else None
            return Problem(status, error.words, str(error.why), retry_after=again, final=error.why.final)
        case PromptTooLong():
            return Problem(invalid, str(error), str(Why.TOO_LONG), final=True)
        case _:
            return Problem(invalid, str(error), "invalid_prompt")


def check_key(request: HttpRequest, keys: frozenset[str]) -> None:
    """Compares the bearer token with every key, each in constant time; raises Unanswerable (401)."""
    if not keys:
        return
    # Bytes, as they were sent: a header read as Latin-1 would never equal a key of other letters.
    sent = next((value for name, value in request.headers.raw if name == b"authorization"), b"")
    scheme, _, token = sent.partition(b" ")
    given = token.strip()
    # All are compared, so that the time taken does not say which one was near.
    matches = [hmac.compare_digest(given, key.encode()) for key in keys]
    if scheme.lower() != b"bearer" or not any(matches):
        words = "a valid API key is needed: send it as `Authorization: Bearer KEY`"
        raise Unanswerable(Problem(401, words, "invalid_api_key"))


async def read_object(
    service: Service, request: HttpRequest, parse: Callable[[Mapping[str, Any]], T], *, invalid: int
) -> T:
    """What `parse` makes of the body, a JSON object; raises Unanswerable with the status `invalid` where it is none.

    Raises Refused before the body is looked into if there is no place for the request anyway: in a flood, refusing must
    cost next to nothing.
    """
    body = await service.bodies.read(request, service.body_limit)
    if service.is_made_sick:
        raise Unanswerable(Problem(500, "told by a drill to answer every prompt with an error", "drill"))
    service.check_open()
    with service.bodies.reading(body):
        return await read_json(body, parse, most_items(service.context), invalid=invalid)


def tell_ignored(service: Service, request: HttpRequest, names: Sequence[str]) -> None:
    """Names in the answer's header, and once in the log, the parameters that nothing was made of."""
    if names:
        shown = [name if _PLAIN.fullmatch(name) else "?" for name in names[:MOST_NAMES]]
        request.scope[_IGNORED_KEY] = ", ".join(shown).encode("ascii")
        service.log_ignored(shown)


async def respond(request: HttpRequest, send: Send, content: Mapping[str, Any]) -> None:
    """Sends a 200 with JSON."""
    await JSONResponse(content)(request.scope, request.receive, send)
