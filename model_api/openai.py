"""OpenAI's API: /v1/models, /v1/chat/completions and /v1/completions, streamed or whole."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Send

from model_api.calls import Call, GenerationFailed, calling
from model_api.openai_body import Ask, parse_chat, parse_completion
from model_api.openai_names import INVALID as INVALID
from model_api.problems import Problem, Unanswerable
from model_api.request import Finished, Request
from model_api.service import Service
from model_api.web import problem_of, read_object, respond, tell_ignored


@dataclass(frozen=True, slots=True)
class Shape:
    """How one of the two completion endpoints words its answers."""

    prefix: str  # of ids
    whole: str  # object of an answer
    chunk: str  # object of a streamed piece
    chat: bool

    def choice(self, text: str, reason: str | None) -> dict[str, Any]:
        """The choice of a whole answer."""
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def piece(self, text: str, reason: str | None, *, first: bool = False) -> dict[str, Any]:
        """The choice of a streamed piece; a chat's last piece has an empty delta."""
        if not self.chat:
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        delta: dict[str, str] = {"role": "assistant", "content": text} if first else {"content": text} if text else {}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", chat=True)
COMPLETION = Shape("cmpl-", "text_completion", "text_completion", chat=False)


async def models(service: Service, request: HttpRequest, send: Send) -> None:
    """Handles GET /v1/models: the one model there is."""
    await respond(request, send, {"object": "list", "data": [_model(service)]})


async def model(service: Service, request: HttpRequest, send: Send) -> None:
    """Handles GET /v1/models/NAME."""
    _check_model(service, request.path_params["name"])
    await respond(request, send, _model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": int(service.created),
        "owned_by": "chatglm-ha",
        "max_model_len": service.context or None,
    }


async def chat_completions(service: Service, request: HttpRequest, send: Send) -> None:
    """Handles POST /v1/chat/completions."""
    ask = await read_object(service, request, lambda body: parse_chat(body, service.defaults), invalid=INVALID)
    _check_model(service, ask.model)
    tell_ignored(service, request, ask.ignored)
    async with calling(service, request.receive) as call:
        await _answer(service, request, send, call, ask, CHAT, await service.encode_chat(ask.messages))


async def completions(service: Service, request: HttpRequest, send: Send) -> None:
    """Handles POST /v1/completions: text or token ids, continued."""
    ask = await read_object(service, request, lambda body: parse_completion(body, service.defaults), invalid=INVALID)
    _check_model(service, ask.model)
    tell_ignored(service, request, ask.ignored)
    async with calling(service, request.receive) as call:
        ids = list(ask.prompt) if isinstance(ask.prompt, tuple) else await service.encode_text(ask.prompt)
        await _answer(service, request, send, call, ask, COMPLETION, ids)


async def _answer(
    service: Service, request: HttpRequest, send: Send, call: Call, ask: Ask, shape: Shape, ids: list[int]
) -> None:
    room = service.context - len(ids)
    wanted = ask.max_tokens if ask.max_tokens is not None else room
    if room <= 0 or wanted > room:
        asked = f"{len(ids)} in the prompt" + (f" and {ask.max_tokens} for the answer" if ask.max_tokens else "")
        words = f"this model's maximum context length is {service.context} tokens; you asked for {asked}"
        raise Unanswerable(Problem(INVALID, words, "context_length_exceeded", "messages" if shape.chat else "prompt"))
    await call.begin(
        Request(
            prompt=ids,
            max_tokens=wanted,
            sampling=ask.sampling,
            stops=ask.stops,
            chat=shape.chat,
            stream=ask.stream,
            ignore_end=ask.ignore_eos,
            deadline=None if ask.timeout is None else time.monotonic() + ask.timeout,
        )
    )
    identity = f"{shape.prefix}{uuid.uuid4().hex}"
    frame = {"id": identity, "created": int(time.time()), "model": service.settings.model_name}
    if ask.stream:
        await _stream(send, call, shape, frame, len(ids), usage=ask.include_usage)
        return
    finished = await call.answer()
    whole = {"object": shape.whole, "choices": [shape.choice(finished.text, finished.reason)]}
    await respond(request, send, {**frame, **whole, "usage": _usage(len(ids), finished.tokens)})


async def _stream(
    send: Send, call: Call, shape: Shape, frame: Mapping[str, Any], prompt_tokens: int, *, usage: bool
) -> None:
    """Sends the answer as server-sent events.

    The head waits for the first piece: until then a failure still has a status of its own, and whoever proxies the
    request may try another instance. After it, a failure is an event with an `error` in it, and no [DONE] follows.
    """
    begun = False
    try:
        async for event in call.text():
            if not begun:
                await _open_stream(send)
                if shape.chat:
                    await _event(send, shape, frame, usage, shape.piece("", None, first=True))
                begun = True
            if event.text:
                await _event(send, shape, frame, usage, shape.piece(event.text, None))
            if isinstance(event, Finished):
                await _event(send, shape, frame, usage, shape.piece("", event.reason))
                if usage:
                    last = {**frame, "object": shape.chunk, "choices": [], "usage": _usage(prompt_tokens, event.tokens)}
                    await _data(send, json.dumps(last, ensure_ascii=False))
                await _data(send, "[DONE]")
    except GenerationFailed as error:
        if not begun:
            raise
        await _data(send, json.dumps(error_body(problem_of(error)), ensure_ascii=False))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _open_stream(send: Send) -> None:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx would collect the pieces otherwise
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _event(send: Send, shape: Shape, frame: Mapping[str, Any], usage: bool, choice: Mapping[str, Any]) -> None:
    # With the usage asked for, every piece but the last has it as null: so the API says.
    extra = {"usage": None} if usage else {}
    await _data(send, json.dumps({**frame, "object": shape.chunk, "choices": [choice], **extra}, ensure_ascii=False))


async def _data(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


def _usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _check_model(service: Service, name: str | None) -> None:
    if name is not None and name != service.settings.model_name:
        words = f"the model {name[:200]!r} does not exist here; GET /v1/models names the one that does"
        raise Unanswerable(Problem(404, words, "model_not_found", "model"))


def error_body(problem: Problem) -> dict[str, Any]:
    """A failure in OpenAI's shape."""
    kind = "server_error" if problem.status >= 500 else "invalid_request_error"
    return {"error": {"message": problem.words, "type": kind, "param": problem.field, "code": problem.code}}


def render(problem: Problem) -> Response:
    """A failure as an HTTP response."""
    return JSONResponse(error_body(problem), status_code=problem.status, headers=problem.headers())
