"""What is asked of the engine and what comes back: plain facts, so that the web side needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

GREEDY_BELOW = 1e-4  # temperatures under this mean "the most likely token"; 1/T would leave float32's range


class PromptError(ValueError):
    """A prompt that the model cannot take; the text is for the client."""


class PromptTooLong(PromptError):
    """A prompt that leaves no room for an answer in what this server can hold, ever."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request draws. temperature 0: greedy; top_p 1 and top_k 0: off; seed None: fresh."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the most likely token is taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks of the engine. `deadline` is time.monotonic(); `stream`: text as it comes, not at the end."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    chat: bool = True  # tidy the answer as a chat answer
    stream: bool = False
    ignore_end: bool = False  # go on to max_tokens whatever the model says (for measurements)
    deadline: float | None = None


class Why(StrEnum):
    """Why a request ended without an answer.

    Blamed on the request are the `final` ones: a prompt that is known to be good was answered when it failed.
    """

    DEADLINE = "deadline"
    TOO_LONG = "context_length_exceeded"  # there is not enough memory for it even alone
    NOT_FINITE = "not_finite"  # its logits hold NaN or infinity
    STEP_FAILED = "step_failed"  # a step with it in it raises, and without it does not
    OUT_OF_MEMORY = "out_of_memory"  # there is no memory now, for a short prompt neither
    SHUTDOWN = "shutdown"
    FAULT = "fault"  # the server fails whatever it is asked

    @property
    def final(self) -> bool:
        """Whether asking again, here or on another instance, would only do the same harm again."""
        return self in (Why.DEADLINE, Why.TOO_LONG, Why.NOT_FINITE, Why.STEP_FAILED)


@dataclass(frozen=True, slots=True)
class Started:
    """The request has left the queue."""


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `text` is what no Text event carried; `reason` is OpenAI's: stop or length."""

    text: str
    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no (further) answer; `words` are for the client."""

    why: Why
    words: str


Event = Started | Text | Finished | Failed
