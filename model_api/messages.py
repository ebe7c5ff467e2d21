"""The messages of a dialogue: which keys and kinds of content are taken, and what a model is given of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_api.openai_names import INVALID
from model_api.problems import Problem, Unanswerable, check_text

# Keys that a template may use beside `role` and `content`; no other reaches one.
FOR_TEMPLATES = ("name", "tool_calls", "tool_call_id", "reasoning_content", "metadata")
# What clients send back with an answer of theirs; without effect on the next one, so not worth a word.
SENT_BACK = frozenset(("annotations", "reasoning", "id"))
REFUSED = ("audio", "function_call")  # would be lost in silence

# OpenAI's newer name of `system`; and what the published server of ChatGLM3 called a tool's result.
ROLES = {"developer": "system", "function": "tool"}
LONGEST_NAME = 64  # characters of a key that is repeated to the client


@dataclass(slots=True)
class Told:
    """Keys of messages that nothing is made of, each once, as `messages.KEY`."""

    ignored: dict[str, None] = field(default_factory=dict)

    def ignore(self, key: str) -> None:
        """Notes one."""
        if len(self.ignored) < 64:
            self.ignored[f"messages.{key[:LONGEST_NAME]}"] = None


class Part(BaseModel):
    """A part of a message's content: text, or a refusal, which is an assistant's text of its own kind."""

    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class Message(BaseModel):
    """One message as it is sent."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "observation", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    refusal: str | None = None

    def to_model(self, index: int, told: Told) -> Mapping[str, Any]:
        """The message as a codec takes it; raises Unanswerable. Keys that are dropped are noted in `told`."""
        place = f"messages[{index}]"
        text = self._text(place)
        if not text and self.role == "user":
            raise _wrong(f"{place}.content: must not be empty", f"{place}.content")
        check_text(text, f"{place}.content", invalid=INVALID)
        kept: dict[str, Any] = {"role": ROLES.get(self.role, self.role), "content": text}
        for key, value in (self.model_extra or {}).items():
            if value is None or value == []:
                continue
            if key in FOR_TEMPLATES:
                kept[key] = value
            elif key in REFUSED:
                raise _wrong(f"{place}.{key}: is not supported by this server; leave it out", f"{place}.{key}")
            elif key not in SENT_BACK:
                told.ignore(key)
        return kept

    def _text(self, place: str) -> str:
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "".join(self._part(part, f"{place}.content[{number}]") for number, part in enumerate(self.content))

    def _part(self, part: Part, place: str) -> str:
        if part.type == "refusal" and self.role != "assistant":
            raise _wrong(f"{place}.type: only an assistant's message has refusals", place)
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise _wrong(f"{place}.{part.type}: Field required", place)
        return text


def _wrong(words: str, field: str) -> Unanswerable:
    return Unanswerable(Problem(INVALID, words, "invalid_value", field))
