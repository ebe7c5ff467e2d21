"""`POST /`, as the api.py of ChatGLM-6B and ChatGLM2-6B published it, with wrong bodies refused in words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Send

from model_api.calls import calling
from model_api.problems import Problem, Unanswerable, check_text
from model_api.request import Request, Sampling
from model_api.service import Service
from model_api.web import read_object, respond, tell_ignored

INVALID = 422
PARAMETERS = frozenset(("prompt", "history", "max_length", "top_p", "temperature"))
MOST_TOKENS = 2**31 - 1
MAX_LENGTH = 2048  # tokens of prompt and answer together, as published
TOP_P = 0.7
TEMPERATURE = 0.95
TOP_K = 50  # never said in api.py; transformers' default at the time, so what answers were drawn with


@dataclass(frozen=True, slots=True)
class Question:
    """A checked body of `POST /`."""

    prompt: str
    history: tuple[tuple[str, str], ...]
    max_length: int
    top_p: float
    temperature: float
    ignored: tuple[str, ...] = ()  # names that nothing was made of, for the client to be told

    def messages(self) -> list[dict[str, str]]:
        """The dialogue as roles."""
        pairs = [
            {"role": role, "content": text}
            for turn in self.history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*pairs, {"role": "user", "content": self.prompt}]


async def answer(service: Service, request: HttpRequest, send: Send) -> None:
    """Handles one `POST /`."""
    question = await read_object(service, request, parse, invalid=INVALID)
    tell_ignored(service, request, question.ignored)
    async with calling(service, request.receive) as call:
        await call.begin(await _request(service, question))
        finished = await call.answer()
        await respond(
            request,
            send,
            {
                "response": finished.text,
                "history": [*map(list, question.history), [question.prompt, finished.text]],
                "status": 200,
                "time": _now(),
            },
        )


async def _request(service: Service, question: Question) -> Request:
    ids = await service.encode_chat(question.messages(), question.max_length)
    room = min(question.max_length, service.context) - len(ids)
    if room <= 0:
        limit = "max_length" if question.max_length < service.context else "this server's context"
        raise _wrong(
            f"the prompt with its history has {len(ids)} tokens, which leaves none of {limit} "
            f"({min(question.max_length, service.context)}) for an answer",
            "prompt",
        )
    sampling = Sampling(temperature=question.temperature, top_p=question.top_p, top_k=TOP_K)
    return Request(ids, room, sampling)


def parse(body: Mapping[str, Any]) -> Question:
    """The question in a body; unknown fields are ignored, empty ones mean the published default, as they always did."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise _wrong("prompt: must be a string" if "prompt" in body else "prompt: is missing", "prompt")
    if not prompt.strip():
        raise _wrong("prompt: must not be empty", "prompt")
    check_text(prompt, "prompt", invalid=INVALID)
    max_length = _number(body, "max_length", MAX_LENGTH, 1, MOST_TOKENS)
    if max_length != int(max_length):
        raise _wrong("max_length: must be a whole number of tokens", "max_length")
    return Question(
        prompt=prompt,
        history=_history(body.get("history")),
        max_length=int(max_length),
        top_p=_number(body, "top_p", TOP_P, 0, 1),
        temperature=_number(body, "temperature", TEMPERATURE, 0, 100),
        ignored=tuple(name for name in body if name not in PARAMETERS),
    )


def _history(history: object) -> tuple[tuple[str, str], ...]:
    if not history and (history is None or isinstance(history, (list, str, bool, int))):
        return ()
    if not isinstance(history, list):
        raise _wrong("history: must be a list of [question, answer] pairs", "history")
    pairs = []
    for index, pair in enumerate(history):
        if not _is_pair(pair):
            raise _wrong(f"history[{index}]: must be a pair of strings, [question, answer]", "history")
        for text in pair:
            check_text(text, f"history[{index}]", invalid=INVALID)
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _number(body: Mapping[str, Any], name: str, default: float, least: int, most: int) -> float:
    value = body.get(name)
    if not value and not isinstance(value, (dict, str)):
        return default  # by truthiness: 0, null and false mean the default in the published api.py
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(f"{name}: must be a number", name)
    if not least <= value <= most:
        raise _wrong(f"{name}: must be from {least} to {most}", name)
    return value


def _wrong(words: str, field: str) -> Unanswerable:
    return Unanswerable(Problem(INVALID, words, "invalid_value", field))


def render(problem: Problem) -> Response:
    """A failure in the shape of this API: `error` in words, `status` as the HTTP status, `time`."""
    body = {"error": problem.words, "status": problem.status, "time": _now()}
    return JSONResponse(body, status_code=problem.status, headers=problem.headers())


def _now() -> str:
    return datetime.fromtimestamp(time.time()).strftime("%Y-%m-%d %H:%M:%S")
