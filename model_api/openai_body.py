"""The bodies of OpenAI's completion endpoints: what is taken, what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_api.request import Sampling
from model_api.web import Problem, Unanswerable, check_text

T = TypeVar("T", bound=BaseModel)

INVALID = 400
MOST_STOPS = 16


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
    """A checked body. `prompt` is text or ids (completions), `messages` the dialogue (chat)."""

    model: str | None
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    timeout: float | None
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | tuple[int, ...] = ""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _StreamOptions(_Strict):
    include_usage: bool = False


class _Common(_Strict):
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Not OpenAI's own, but what other servers take too; `timeout`: seconds until the answer is worth nothing.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    ignore_eos: bool = False
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    # Extra keys (name, tool_calls, tool_call_id) go to the chat template as they are.
    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "observation"]
    content: str | list[_Part] | None = None


class _Chat(_Common):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Prompts = Annotated[list[str], Field(min_length=1)]


class _Completion(_Common):
    prompt: (
        str
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1)]
    )


# Parameters that change an answer and that this server does not have: silence about them would be a wrong answer.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


def parse_chat(body: Mapping[str, Any], defaults: Defaults) -> Ask:
    """Checks a body of /v1/chat/completions; raises Unanswerable naming the field."""
    _refuse_unsupported(body)
    chat = _validated(_Chat, body)
    messages = tuple(_message(message, index) for index, message in enumerate(chat.messages))
    limit = chat.max_completion_tokens or chat.max_tokens
    return _ask(chat, limit, defaults, messages=messages)


def parse_completion(body: Mapping[str, Any], defaults: Defaults) -> Ask:
    """Checks a body of /v1/completions; raises Unanswerable naming the field."""
    _refuse_unsupported(body)
    completion = _validated(_Completion, body)
    texts = [item for item in completion.prompt if isinstance(item, str)]
    if isinstance(completion.prompt, list) and len(texts) > 1:
        raise _wrong("prompt: one prompt a request, not a list of several", "prompt")
    limit = completion.max_tokens or 16  # OpenAI's default here
    if not texts:
        ids = tuple(item for item in completion.prompt if isinstance(item, int))
        return _ask(completion, limit, defaults, prompt=ids)
    prompt = completion.prompt if isinstance(completion.prompt, str) else texts[0]
    check_text(prompt, "prompt", invalid=INVALID)
    return _ask(completion, limit, defaults, prompt=prompt)


def _ask(
    body: _Common,
    max_tokens: int | None,
    defaults: Defaults,
    *,
    messages: tuple[Mapping[str, Any], ...] = (),
    prompt: str | tuple[int, ...] = "",
) -> Ask:
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
        ignore_eos=body.ignore_eos,
        timeout=body.timeout,
        messages=messages,
        prompt=prompt,
    )


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS:
        raise _wrong(f"stop: at most {MOST_STOPS} strings", "stop")
    return tuple(text for text in stops if text)


def _message(message: _Message, index: int) -> Mapping[str, Any]:
    field = f"messages[{index}].content"
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    if not text and message.role in ("user", "system", "developer"):
        raise _wrong(f"{field}: must not be empty", field)
    check_text(text, field, invalid=INVALID)
    role = "system" if message.role == "developer" else message.role
    return {**(message.model_extra or {}), "role": role, "content": text}


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name, harmless in _REFUSED.items():
        value = body.get(name)
        # By type too: 0 == False and 1 == True, and `n: true` is not `n: 1`.
        if not any(value == other and type(value) in (type(other), int, float) for other in harmless):
            shown = repr(value)[:60]
            raise _wrong(f"{name}: {shown} is not supported by this server; leave it out", name, "unsupported_value")


def _validated(kind: type[T], body: Mapping[str, Any]) -> T:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = [part for part in first["loc"] if not _is_branch(part)]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        raise _wrong(f"{field}: {first['msg']}", field) from None


def _is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's location names a branch of a union and no field."""
    return isinstance(part, str) and (part in ("str", "int", "_Part") or "[" in part)


def _wrong(words: str, field: str, code: str = "invalid_value") -> Unanswerable:
    return Unanswerable(Problem(INVALID, words, code, field))
