"""GLM-4's words as published before its -hf directories: a file of byte sequences and ranks, roles as in ChatGLM3."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from model_api.backends.base import LoadError, Message
from model_api.backends.template import refuse_tool_calls
from model_api.backends.words import WHO
from model_api.text import Tidy

SPECIALS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
# How text is cut before bytes are merged: the expression of the published tokenizer.
CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def is_ranks(file: Path) -> bool:
    """Whether a tokenizer.model is a list of ranks, and no sentencepiece file."""
    with file.open("rb") as stream:
        first = stream.readline(512).split()
    try:
        return len(first) == 2 and first[1].isdigit() and bool(base64.b64decode(first[0], validate=True))
    except binascii.Error:
        return False


def read_ranks(file: Path) -> dict[bytes, int]:
    """Byte sequences by rank, which is also their id; raises LoadError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise LoadError(f"{file}, line {number}: not a token and its rank; copy the file again") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes((byte,)) not in ranks for byte in range(256)):
        raise LoadError(f"{file}: its {len(ranks)} ranks are not all there; copy the file again")
    return ranks


def bytes_as_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it can be printed."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printed}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printed)))
    return [letters[byte] for byte in range(256)]


def byte_pairs(ranks: Mapping[bytes, int]) -> Tokenizer:
    """A tokenizer that merges the two neighbours whose joint sequence has the lowest rank, until there are none."""
    letters = bytes_as_letters()

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges: list[tuple[str, str]] = []
    for token in sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token]):
        cuts = ((token[:place], token[place:]) for place in range(1, len(token)))
        known = sorted((pair for pair in cuts if pair[0] in ranks and pair[1] in ranks), key=lambda p: ranks[p[0]])
        merges += [(spelt(left), spelt(right)) for left, right in known]
    tokenizer = Tokenizer(models.BPE(vocab={spelt(token): rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def special_ids(directory: Path, first: int) -> dict[str, int]:
    """Ids of the special tokens: as tokenizer_config.json lists them, else one after another from `first` on."""
    file = directory / "tokenizer_config.json"
    listed: dict[str, int] = {}
    if file.is_file():
        try:
            decoder = json.loads(file.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
            listed = {str(entry["content"]): int(number) for number, entry in decoder.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LoadError(f"cannot read {file}: {type(error).__name__}: {error}; copy the file again") from None
    return {name: listed.get(name, first + place) for place, name in enumerate(SPECIALS)}


class Glm4Codec:
    """A role's token, a line of metadata, the text; what users write makes no role."""

    ROLES = {"tool": "observation", "function": "observation"}  # noqa: RUF012 - constant

    def __init__(self, directory: Path) -> None:
        ranks = read_ranks(directory / "tokenizer.model")
        self._tokenizer = byte_pairs(ranks)
        self._bytes = {rank: token for token, rank in ranks.items()}
        self.longest_piece = max(len(token.decode("utf-8", errors="replace")) for token in ranks)
        self._special = special_ids(directory, len(ranks))
        self._prefix = [self._special["[gMASK]"], self._special["<sop>"]]

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset(self._special[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>"))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        refuse_tool_calls(messages, WHO)
        ids = list(self._prefix)
        for message in messages:
            role = self.ROLES.get(message["role"], message["role"])
            metadata = message.get("metadata") or ""
            ids += [self._special[f"<|{role}|>"], *self._text(f"{metadata}\n{message['content']}")]
        return [*ids, self._special["<|assistant|>"]]

    def encode(self, text: str) -> list[int]:
        return [*self._prefix, *self._text(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes.get(token, b"") for token in ids).decode("utf-8", errors="replace")

    def tidy(self) -> Tidy:
        return Tidy()

    def _text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
