"""The bodies of OpenAI's completion endpoints: what is taken, within which bounds, and in which words it is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_api.messages import Message, Told
from model_api.openai_names import INVALID, refuse_unsupported
from model_api.problems import Problem, Unanswerable, check_text
from model_api.request import Sampling

T = TypeVar("T", bound=BaseModel)

MOST_STOPS = 16
MOST_TOKENS = 2**31 - 1  # more than any context; what no signed 32 bits hold is no number of tokens


class Defaults(Protocol):
    """How to draw when a body does not say."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def repetition_penalty(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked body. `prompt` is text or ids (completions), `messages` the dialogue (chat).

    `ignored`: the parameters that nothing was made of, for the client to be told.
    """

    model: str | None
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    timeout: float | None
    ignored: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | tuple[int, ...] = ""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against eavesdroppers: TLS, where there is any, is the proxy's


_Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
_Stops = Annotated[list[str], Field(fail_fast=True)]


class _Common(_Strict):
    """Every number has a lower and an upper bound: what is beyond them must not reach a step that others share."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: _Tokens | None = None
    stop: str | _Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Not OpenAI's own, but what other servers take too; `timeout`: seconds until the answer is worth nothing.
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    # Below a hundredth the logits leave the range of half precision, and an answer would be of no numbers at all.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False)] | None = None
    ignore_eos: bool | None = None
    timeout: Annotated[float, Field(ge=0.001, le=86400, allow_inf_nan=False)] | None = None


class _Chat(_Common):
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: _Tokens | None = None


class _Completion(_Common):
    prompt: Any = None  # looked at by `_prompt`, which can say of its many forms what is wrong


def parse_chat(body: Mapping[str, Any], defaults: Defaults) -> Ask:
    """Checks a body of /v1/chat/completions; raises Unanswerable naming the field."""
    unknown = refuse_unsupported(body, chat=True)
    chat = _validated(_Chat, body)
    told = Told()
    messages = tuple(message.to_model(index, told) for index, message in enumerate(chat.messages))
    limit = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    return _ask(chat, limit, defaults, ignored=(*unknown, *told.ignored), messages=messages)


def parse_completion(body: Mapping[str, Any], defaults: Defaults) -> Ask:
    """Checks a body of /v1/completions; raises Unanswerable naming the field."""
    unknown = refuse_unsupported(body, chat=False)
    completion = _validated(_Completion, body)
    if "prompt" not in body:
        raise _wrong("prompt: is missing", "prompt")
    limit = 16 if completion.max_tokens is None else completion.max_tokens  # OpenAI's default here
    return _ask(completion, limit, defaults, ignored=unknown, prompt=_prompt(completion.prompt))


def _prompt(prompt: object) -> str | tuple[int, ...]:
    """One prompt out of OpenAI's four forms: a text, ids, or a list of one text or of one list of ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        if len(prompt) > 1:
            raise _wrong("prompt: one prompt a request, not a list of several", "prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        check_text(prompt, "prompt", invalid=INVALID)
        return prompt
    if not isinstance(prompt, list):
        raise _wrong("prompt: must be a string, or a list of token ids", "prompt")
    if not prompt:
        raise _wrong("prompt: must not be empty", "prompt")
    for place, token in enumerate(prompt):
        if type(token) is not int or not 0 <= token <= MOST_TOKENS:
            raise _wrong(f"prompt[{place}]: must be a token id, a whole number of 0 or more", "prompt")
    return tuple(prompt)


def _ask(
    body: _Common,
    max_tokens: int | None,
    defaults: Defaults,
    *,
    ignored: tuple[str, ...],
    messages: tuple[Mapping[str, Any], ...] = (),
    prompt: str | tuple[int, ...] = "",
) -> Ask:
    if body.stream_options is not None and not body.stream:
        raise _wrong("stream_options: is only allowed when stream is true", "stream_options")
    return Ask(
        model=body.model,
        sampling=Sampling(
            temperature=defaults.temperature if body.temperature is None else body.temperature,
            top_p=defaults.top_p if body.top_p is None else body.top_p,
            top_k=defaults.top_k if body.top_k is None else max(0, body.top_k),
            repetition_penalty=(
                defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
            ),
            seed=body.seed,
        ),
        max_tokens=max_tokens,
        stops=_stops(body.stop),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        ignore_eos=bool(body.ignore_eos),
        timeout=body.timeout,
        ignored=ignored,
        messages=messages,
        prompt=prompt,
    )


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS:
        raise _wrong(f"stop: at most {MOST_STOPS} strings", "stop")
    for text in stops:
        check_text(text, "stop", invalid=INVALID)
    return tuple(text for text in stops if text)


def _validated(kind: type[T], body: Mapping[str, Any]) -> T:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = [part for part in first["loc"] if not _is_branch(part)]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        raise _wrong(f"{field}: {first['msg']}", field) from None


def _is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's location names a branch of a union and no field."""
    return isinstance(part, str) and (part in ("str", "int", "Part") or "[" in part)


def _wrong(words: str, field: str, code: str = "invalid_value") -> Unanswerable:
    return Unanswerable(Problem(INVALID, words, code, field))
