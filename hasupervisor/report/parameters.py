"""Reads what a request asks for, strictly: an unknown key or a wrong type is a sentence that says what was meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.requests import Request

MOST_BODY = 65536
"""Bytes."""

MOST_TRACE = 4 * 2**20
"""Bytes of a body with a trace: a line every ten seconds for a week, and more."""

MOST_LINES = 100_000

_Model = TypeVar("_Model", bound="Parameters")


class Misunderstood(Exception):
    """The request cannot be understood; one sentence for each thing that is wrong with it."""

    def __init__(self, problems: Iterable[str], status: int = 400) -> None:
        self.problems = tuple(problems)
        self.status = status
        super().__init__("; ".join(self.problems))


class Parameters(BaseModel):
    """What a request may say."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Nothing(Parameters):
    """For requests that say nothing."""


class Scale(Parameters):
    n: Annotated[int, Field(ge=0, le=9999)]
    force: bool = False
    dry_run: bool = False


class Force(Parameters):
    force: bool = False


FAULTS_OF_INSTANCES = ("kill", "hang", "sick", "slow")


class Drill(Parameters):
    fault: Literal["kill", "hang", "sick", "slow", "spike", "daemon", "gateway"]
    name: str | None = None
    rate: Annotated[float, Field(gt=0, le=1000)] = 10.0
    seconds: Annotated[float | None, Field(gt=0, le=3600)] = None
    force: bool = False
    dry_run: bool = False


class Autoscale(Parameters):
    enabled: bool


_Amount = Annotated[float, Field(ge=0, le=1e9)]


class Replay(Parameters):
    since: Annotated[float | None, Field(ge=0, le=1e11)] = None
    trace: Annotated[
        tuple[Annotated[tuple[_Amount, _Amount, _Amount], Field(strict=False)], ...] | None,
        Field(min_length=1, strict=False),
    ] = None
    policy: Literal["thresholds", "concurrency"] | None = None
    set: dict[str, float] = {}

    @field_validator("trace")
    @classmethod
    def in_order(cls, trace: tuple[tuple[float, float, float], ...] | None) -> object:
        if trace is not None and any(one[0] >= later[0] for one, later in pairwise(trace)):
            raise ValueError("its seconds should grow from line to line")
        return trace


def _one_line(text: str) -> str:
    """Shown on terminals later: without line ends and what else controls them."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


class Pause(Parameters):
    for_s: Annotated[float | None, Field(gt=0, le=10 * 365 * 86400)] = None
    reason: Annotated[str, Field(max_length=500), AfterValidator(_one_line)] = ""


class Quarantine(Parameters):
    reason: Annotated[str, Field(max_length=500), AfterValidator(_one_line)] = ""


class OneInstance(Parameters):
    name: str | None = None


class Logs(Parameters):
    n: Annotated[int, Field(ge=0, le=MOST_LINES)] = 100
    follow: bool = False
    last_failure: bool = False


class Watch(Parameters):
    watch: bool = False


class History(Parameters):
    since: Annotated[float | None, Field(ge=0, le=1e11)] = None
    n: Annotated[int, Field(ge=0, le=MOST_LINES)] = 50
    follow: bool = False


async def body(request: Request, model: type[_Model], most: int = MOST_BODY) -> _Model:
    """The JSON object of the request, of `most` bytes; none at all is an empty one. Raises Misunderstood."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most:
            raise Misunderstood([f"the body is longer than {most} bytes"], 413)
    try:
        return model.model_validate_json(bytes(raw) or b"{}", strict=True)
    except ValidationError as error:
        raise Misunderstood(_sentences(error, model)) from None


def query(request: Request, model: type[_Model]) -> _Model:
    """The query of the request. Raises Misunderstood."""
    given = request.query_params.multi_items()
    keys = [key for key, _ in given]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise Misunderstood([f"{_short(key)}: is given more than once" for key in twice])
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise Misunderstood(_sentences(error, model)) from None


def _sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    return [_sentence(found, model) for found in error.errors(include_url=False)]


def _sentence(found: Any, model: type[BaseModel]) -> str:
    key = _short(".".join(str(part) for part in found["loc"]))
    match found["type"]:
        case "json_invalid":
            return f"the body is not JSON: {found['ctx']['error']}"
        case "model_type":
            return "the body should be a JSON object"
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden":
            return f"{key}: {_unknown(key, model)}"
        case _:
            wanted = str(found["msg"]).removeprefix("Input ").replace("valid integer", "whole number")
            return f"{key}: {wanted}, not {_short(_shown(found['input']))}"


def _unknown(key: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; known are {', '.join(known)}" if known else "unknown key; this request takes none"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
