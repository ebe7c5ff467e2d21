"""A small attention model with the interface of ChatGLM's own code, for the tests of what drives that code.

It looks where its mask lets it, knows where a token is by `position_ids` alone, and hands its past around as that code
does: so a wrong mask, position or past changes what it says.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, HEADS, LAYERS, PLACES = 32, 4, 2, 512
TOKENS_FIRST = (2, 0, 1, 3)  # from [rows, heads, tokens, dim] to [tokens, rows, heads, dim]
ROWS_FIRST = (0, 1, 2, 3)


class Attention(nn.Module):
    """One layer; the past it returns has its dimensions in `order`."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order
        self.back = tuple(order.index(place) for place in range(4))
        self.mix = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, mask: Tensor, past: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, length, _ = hidden.shape
        parts = self.mix(hidden).view(rows, length, HEADS, 3 * HIDDEN // HEADS).transpose(1, 2).chunk(3, -1)
        query, key, value = parts
        if past is not None:
            key = torch.cat([past[0].permute(self.back), key], 2)
            value = torch.cat([past[1].permute(self.back), value], 2)
        scores = (query @ key.transpose(2, 3) / math.sqrt(HIDDEN // HEADS)).masked_fill(mask, -10000.0)
        seen = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, HIDDEN)
        return hidden + self.out(seen), (key.permute(self.order), value.permute(self.order))


class Body(nn.Module):
    """Embeddings of tokens and of one or two kinds of places, then attention."""

    def __init__(self, vocabulary: int, kinds: int, order: tuple[int, ...]) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, HIDDEN)
        self.places = nn.ModuleList(nn.Embedding(PLACES, HIDDEN) for _ in range(kinds))
        self.layers = nn.ModuleList(Attention(order) for _ in range(LAYERS))

    def run(self, ids: Tensor, places: list[Tensor], mask: Tensor, past: Any) -> tuple[Tensor, Any]:
        hidden = self.words(ids) + sum(table(place) for table, place in zip(self.places, places, strict=True))
        presents = []
        for number, layer in enumerate(self.layers):
            hidden, present = layer(hidden, mask, past[number] if past else None)
            presents.append(present)
        return hidden, tuple(presents)


class _Transformer(Body):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any, **_: Any
    ) -> Any:
        hidden, past = self.run(input_ids, [position_ids[:, 0], position_ids[:, 1]], attention_mask, past_key_values)
        return SimpleNamespace(last_hidden_state=hidden.transpose(0, 1), past_key_values=past)


class FirstStandIn(nn.Module):
    """ChatGLM-6B's interface: masks of what not to see, positions in two rows, tokens first."""

    def __init__(self, vocabulary: int = 60) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.transformer = _Transformer(vocabulary, 2, TOKENS_FIRST)
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)


class LaterStandIn(Body):
    """The interface of ChatGLM2 and 3: a mask of what is there, or none; causal by itself."""

    def __init__(self, vocabulary: int = 60, order: tuple[int, ...] = TOKENS_FIRST) -> None:
        torch.manual_seed(2)
        super().__init__(vocabulary, 1, order)
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None, past_key_values: Any, **_: Any
    ) -> Any:
        _, length = input_ids.shape
        before = past_key_values[0][0].permute(self.layers[0].back).shape[2] if past_key_values else 0  # type: ignore[arg-type]
        hidden = torch.ones(length, before + length, dtype=torch.bool).triu(before + 1)[None, None]
        if attention_mask is not None:
            hidden = hidden | (attention_mask == 0)[:, None, None, :]
        states, past = self.run(input_ids, [position_ids], hidden, past_key_values)
        return SimpleNamespace(logits=self.lm_head(states[:, -1:]), past_key_values=past)
