"""What a family of models is to the rest of the server: a codec between words and ids, and a decoder of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model_api.text import Tidy

Message = Mapping[str, Any]  # {"role": ..., "content": text, ...}, as OpenAI's API has them


class LoadError(Exception):
    """The model cannot be served; the text says what is missing or unsupported, and what to do."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row to begin: the client's ids, and those already generated when a row is taken up again after eviction."""

    ids: Sequence[int]
    generated: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.ids) + len(self.generated)


class Codec(Protocol):
    """Between words and token ids. Called from several threads at once."""

    @property
    def longest_piece(self) -> int:
        """The most characters of text that one token can stand for; 0 where no such bound is known."""

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids for a dialogue whose last message waits for an answer; raises PromptError."""

    def encode(self, text: str) -> list[int]:
        """The ids of bare text to be continued."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; U+FFFD where bytes make no character."""

    def tidy(self) -> Tidy:
        """A fresh tidier for one chat answer."""


class Decoder(Protocol):
    """Rows that are decoded together, each with its own past. The engine's thread alone calls it, but for `held`."""

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        """Appends rows; returns the logits of each one's next token, float32 [len(prompts), vocab].

        If it raises, nothing was appended, and the rows from before are as they were.
        """

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Appends one token to each row; returns the next logits, float32 [rows, vocab].

        If it raises, only `clear` may be called.
        """

    def remove(self, row: int) -> None:
        """Drops a row; the last row takes its place."""

    def clear(self) -> None:
        """Drops all rows and their memory."""

    def cells(self, rows: int, longest: int) -> int:
        """Tokens of past that are held, at least, for so many rows of which the longest has `longest` tokens."""

    def bound(self, tokens: int) -> None:
        """Never holds more than so many tokens of past from the next pass on, where `cells` leaves a choice."""

    def held(self) -> int:
        """Tokens of past that memory is taken for now, room to grow included."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """How to draw when a request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be decoded."""

    family: str  # "glm", "chatglm-v1", ...
    codec: Codec
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    context: int  # tokens of prompt and answer together
    vocabulary: int
    ends: frozenset[int]  # ids that end an answer
    defaults: Defaults
    parameters: int
    kv_bytes_per_token: int
    batched_prefill: bool = True
