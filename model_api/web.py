"""Reading requests and writing answers: what both APIs share below their own words."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_api.admission import Refused
from model_api.calls import ClientGone, GenerationFailed
from model_api.request import PromptError, PromptTooLong, Why
from model_api.service import Service

log = logging.getLogger(__name__)

BODY_TIMEOUT = 30.0  # seconds for a client to send its body
CLIENT_GONE = 499  # nginx's number; nobody receives it

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


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is not answered. `code` is a word for programs, `field` the parameter that is wrong.

    `final`: clients are told not to send it again.
    """

    status: int
    words: str
    code: str
    field: str | None = None
    retry_after: int | None = None
    final: bool = False

    def headers(self) -> dict[str, str]:
        """What tells clients whether and when to ask again; x-should-retry is what OpenAI's own clients obey."""
        again = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**again, **({"x-should-retry": "false"} if self.final else {})}


class Unanswerable(Exception):
    """Ends a handler with a Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.words)
        self.problem = problem


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
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip().encode()
    # All are compared, so that the time taken does not say which one was near.
    matches = [hmac.compare_digest(given, key.encode()) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        words = "a valid API key is needed: send it as `Authorization: Bearer KEY`"
        raise Unanswerable(Problem(401, words, "invalid_api_key"))


async def read_body(request: HttpRequest, limit: int) -> bytes:
    """The body's bytes; raises Unanswerable, 413 beyond `limit` bytes, 408 when it is slow.

    It is read to its end even when it is too long (up to eight times the limit), or when nothing will be done for it:
    closing a connection on unread bytes resets it, and the client would never see why.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                elif size > 8 * limit:
                    break
    except TimeoutError:
        raise Unanswerable(Problem(408, f"the body did not arrive in {BODY_TIMEOUT:g} s", "timeout")) from None
    if size > limit:
        raise Unanswerable(Problem(413, f"the body is longer than {limit} bytes", "body_too_large"))
    return b"".join(chunks)


async def read_object(service: Service, request: HttpRequest, *, invalid: int) -> dict[str, Any]:
    """The body as a JSON object; raises Unanswerable with the status `invalid` where it is none.

    Raises Refused before the body is looked into if there is no place for the request anyway: in a flood, refusing must
    cost next to nothing.
    """
    body = await read_body(request, service.body_limit)
    if service.is_made_sick:
        raise Unanswerable(Problem(500, "told by a drill to answer every prompt with an error", "drill"))
    service.check_open()
    try:
        parsed = json.loads(body, parse_constant=_no_constants)
    except UnicodeDecodeError:
        raise Unanswerable(Problem(invalid, "the body is not UTF-8", "invalid_json")) from None
    except RecursionError:
        raise Unanswerable(Problem(invalid, "the body is nested too deeply", "invalid_json")) from None
    except ValueError as error:
        raise Unanswerable(Problem(invalid, f"the body is not JSON: {error}", "invalid_json")) from None
    if not isinstance(parsed, dict):
        kind = type(parsed).__name__
        raise Unanswerable(Problem(invalid, f"the body must be a JSON object, not a {kind}", "invalid_json"))
    return parsed


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def check_text(text: str, field: str, *, invalid: int) -> None:
    """Raises Unanswerable if `text` cannot be encoded: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        words = f"{field}: holds half of a surrogate pair, which is no character"
        raise Unanswerable(Problem(invalid, words, "invalid_text", field)) from None


async def respond(request: HttpRequest, send: Send, content: Mapping[str, Any]) -> None:
    """Sends a 200 with JSON."""
    await JSONResponse(content)(request.scope, request.receive, send)
