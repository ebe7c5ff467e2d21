"""Prompts by a tokenizer of transformers and the chat template in its directory."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from model_api.backends.base import Message
from model_api.request import PromptError
from model_api.text import Tidy

log = logging.getLogger(__name__)

# Unicode's normal forms C and KC make one character of at most so many.
COMPOSED = 4
# Steps before the vocabulary that drop nothing; of others, how much text a token stands for is not known.
_KEEPING = frozenset(
    ("ByteLevel", "Metaspace", "SplitIsolated", "SplitMergedWithPrevious", "SplitMergedWithNext", "Digits")
)
_NORMAL_FORMS = frozenset(("NFC", "NFD", "NFKC", "NFKD"))


class TemplateCodec:
    """A transformers tokenizer with its own chat template.

    Text of users that spells a special token (`<|assistant|>`) stays text: before the template sees it every such
    place is exchanged for a word that nobody can guess, and after it those places are encoded apart, in pieces that
    spell no special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # encoding sets state inside the tokenizer; decoding does not
        # Ordinary added tokens (</think>, a run of blanks) are words of the text, and templates look for some of them.
        special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        added = sorted(special, key=len, reverse=True)
        # One character cannot be taken apart; such tokens (a line feed, say) mark no roles.
        spelt = [re.escape(token) for token in added if len(token) > 1]
        self._special = re.compile("|".join(spelt) or r"(?!)")
        # A key that the template never names would be lost in silence.
        self._knows_tools = "tool_calls" in str(tokenizer.chat_template)
        self.longest_piece = _longest_piece(tokenizer)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        if not self._knows_tools:
            refuse_tool_calls(messages, "this model's chat template")
        word = secrets.token_hex(16)
        hidden: list[str] = []

        def hide(text: str) -> str:
            return self._special.sub(lambda found: _mark(word, hidden, found.group()), text)

        rendered = self._render([_each_text(message, hide) for message in messages])
        if not hidden:
            return self._ids(rendered, add_special_tokens=False)
        ids: list[int] = []
        for place, piece in enumerate(re.split(f"{word}x([0-9]+)x", rendered)):
            if place % 2:
                ids += self._plain_ids(hidden[int(piece)])
            elif piece:
                ids += self._ids(piece, add_special_tokens=False)
        return ids

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            # A template is a program of the model's directory: whatever it raises over a dialogue is the dialogue's.
            words = f"{type(error).__name__}: {error}"[:200]
            digest = hashlib.sha256(json.dumps(messages, ensure_ascii=True, default=str).encode()).hexdigest()[:12]
            log.warning("the chat template refuses a dialogue (sha256 %s…): %s", digest, type(error).__name__)
            raise PromptError(f"messages: this model's chat template refuses them: {words}") from None
        return text

    def encode(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=True)

    def _plain_ids(self, special: str) -> list[int]:
        """The ids of a special token's spelling as text: of its first character, and of the rest."""
        rest: list[int] = []
        end = 1
        for found in self._special.finditer(special, 1):  # one special token's spelling may hold another's
            rest += self._ids_or_none(special[end : found.start()]) + self._plain_ids(found.group())
            end = found.end()
        return self._ids_or_none(special[0]) + rest + self._ids_or_none(special[end:])

    def _ids_or_none(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=False) if text else []

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            with self._lock:
                ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            # Half a surrogate pair, in a key of a message that the template prints beside its content.
            raise PromptError(f"the prompt holds text that is no Unicode: {type(error).__name__}") from None
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def tidy(self) -> Tidy:
        return Tidy()


def refuse_tool_calls(messages: Sequence[Message], who: str) -> None:
    """Raises PromptError for a message with tool calls: `who` would answer as if there had been none."""
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            field = f"messages[{index}].tool_calls"
            raise PromptError(f"{field}: {who} does not know tool calls; say what was called in the message's content")


def _mark(word: str, hidden: list[str], spelt: str) -> str:
    hidden.append(spelt)
    return f"{word}x{len(hidden) - 1}x"


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A message with every text in it changed, but for its role; bodies are bounded in depth, so this is too."""
    match value:
        case str():
            return change(value)
        case list():
            return [_each_text(item, change) for item in value]
        case Mapping():
            return {change(key): item if key == "role" else _each_text(item, change) for key, item in value.items()}
    return value


def _longest_piece(tokenizer: Any) -> int:
    """The most characters that a token of this tokenizer can stand for; 0: unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return 0
    steps = json.loads(backend.to_str())
    forms = set(_kinds(steps.get("normalizer"), "normalizers"))
    cutters = set(_kinds(steps.get("pre_tokenizer"), "pretokenizers"))
    if not forms <= _NORMAL_FORMS or not cutters <= _KEEPING:
        return 0
    longest = max((len(piece) for piece in tokenizer.get_vocab()), default=0)
    return longest * COMPOSED if forms & {"NFC", "NFKC"} else longest


def _kinds(step: Any, parts: str) -> list[str]:
    if step is None:
        return []
    return [f"{part.get('type')}{part.get('behavior', '')}" for part in step.get(parts) or [step]]
