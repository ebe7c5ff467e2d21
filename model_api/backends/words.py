"""Prompts and text of ChatGLM-6B, 2 and 3: the directory's sentencepiece model, and each generation's own layout."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from model_api.backends.base import Message
from model_api.backends.first_pieces import LONGEST_BLANK, first_pieces
from model_api.backends.template import refuse_tool_calls
from model_api.request import PromptError
from model_api.text import Tidy

WHO = "this model's format of dialogues, as it is written here,"  # does not know tool calls


class FirstCodec:
    """ChatGLM-6B: bare text or rounds from 0, then [gMASK] <sop>; line feeds, tabs and runs of blanks are tokens."""

    def __init__(self, directory: Path) -> None:
        self._pieces: Any = first_pieces(directory / "ice_text.model")
        options = _tokenizer_options(directory)
        self._offset = int(options.get("num_image_tokens", 20000))  # earlier revisions keep the first ids for images
        self._remove_space = bool(options.get("remove_space", False))
        self._lower = bool(options.get("do_lower_case", False))
        self.gmask, self.sop, self.eop = (self._id(piece) for piece in ("[gMASK]", "<sop>", "<eop>"))
        # Spaces that are taken out stand in no token at all.
        self.longest_piece = 0 if self._remove_space else max(LONGEST_BLANK, _longest_piece(self._pieces))
        self._hidden = {self._id(piece) for piece in ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<pad>")}

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset((self.eop,))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        query, history = rounds(messages)
        if not history:
            return self.encode(query)
        text = "".join(f"[Round {number}]\n问：{q}\n答：{a}\n" for number, (q, a) in enumerate(history))
        return self.encode(f"{text}[Round {len(history)}]\n问：{query}\n答：")

    def encode(self, text: str) -> list[int]:
        if self._remove_space:
            text = " ".join(text.split())
        if self._lower:
            text = text.lower()
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(f" {{2,{LONGEST_BLANK}}}", lambda run: f"<|blank_{len(run.group())}|>", text)
        return [*(piece + self._offset for piece in self._pieces.encode(text)), self.gmask, self.sop]

    def decode(self, ids: Sequence[int]) -> str:
        known = range(self._offset, self._offset + self._pieces.vocab_size())
        pieces = [token - self._offset for token in ids if token in known and token not in self._hidden]
        text: str = self._pieces.decode(pieces)
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda run: " " * int(run.group(1)), text)

    def tidy(self) -> Tidy:
        return Tidy(training_date=True, punctuation=True)

    def _id(self, piece: str) -> int:
        return int(self._pieces.piece_to_id(piece)) + self._offset


class _LaterCodec:
    """What ChatGLM2 and 3 share: special ids follow the sentencepiece vocabulary, prompts begin with [gMASK] sop."""

    SPECIALS = (
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "sop",
        "eop",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    )

    def __init__(self, directory: Path) -> None:
        self._pieces: Any = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        size = self._pieces.vocab_size()
        self._special = {name: size + number for number, name in enumerate(self.SPECIALS)}
        self._prefix = [self._special["[gMASK]"], self._special["sop"]]
        self.longest_piece = _longest_piece(self._pieces)

    def encode(self, text: str) -> list[int]:
        return [*self._prefix, *self._pieces.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        # The logits are padded beyond the vocabulary: such an id is no piece, and asking for it would raise.
        size = self._pieces.vocab_size()
        text: str = self._pieces.decode([token for token in ids if token < size])
        return text

    def tidy(self) -> Tidy:
        return Tidy(training_date=True)


class SecondCodec(_LaterCodec):
    """ChatGLM2-6B: rounds from 1, always."""

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset((int(self._pieces.eos_id()),))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        query, history = rounds(messages)
        turns = enumerate(history, start=1)
        text = "".join(f"[Round {number}]\n\n问：{q}\n\n答：{a}\n\n" for number, (q, a) in turns)
        return self.encode(f"{text}[Round {len(history) + 1}]\n\n问：{query}\n\n答：")


class ThirdCodec(_LaterCodec):
    """ChatGLM3-6B: a role's token, an empty line of metadata, the text; what users write makes no role."""

    ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "observation"}  # noqa: RUF012

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        others = (self._special["<|user|>"], self._special["<|observation|>"])
        return frozenset((int(self._pieces.eos_id()), *others))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        refuse_tool_calls(messages, WHO)
        ids = list(self._prefix)
        for message in messages:
            role = self.ROLES.get(message["role"], message["role"])
            ids += [self._special[f"<|{role}|>"], *self._pieces.encode("\n"), *self._pieces.encode(message["content"])]
        return [*ids, self._special["<|assistant|>"]]


def rounds(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """(query, history) of a dialogue for models that know only questions and answers.

    A system message at the beginning is put in front of the query, as the published openai_api.py does. Raises
    PromptError for tool calls, for other roles, or where questions and answers do not alternate.
    """
    refuse_tool_calls(messages, WHO)
    messages = list(messages)
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    for index, message in enumerate(messages):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise PromptError(
                f"messages: this model takes user and assistant messages in turn after an optional system message; "
                f"message {index} of them is {message['role']!r} where {expected!r} was expected"
            )
    if len(messages) % 2 == 0:
        raise PromptError("messages: the last one must be of the user")
    texts = [str(message["content"]) for message in messages]
    return system + texts[-1], list(zip(texts[:-1:2], texts[1::2], strict=True))


def _longest_piece(pieces: Any) -> int:
    """The most characters that one piece of a sentencepiece model stands for."""
    return max(len(pieces.id_to_piece(number)) for number in range(pieces.vocab_size()))


def _tokenizer_options(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer_config.json"
    options = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return options if isinstance(options, dict) else {}
