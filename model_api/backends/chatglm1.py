"""ChatGLM-6B: a transformer with two positions for every token, whose prompt is seen in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_api.backends.base import Prompt
from model_api.backends.prefix import Prefix
from model_api.backends.rows import RowCache

# The residual's weight is that of 28 layers in every published model, whatever the number of layers is.
RESIDUAL = (2 * 28) ** 0.5


class Rope(nn.Module):
    """Cosines and sines of positions. A head's first half is turned by one position, its second half by the other.

    The model was trained with angles in half precision: frequencies are rounded to it always, angles unless the model
    runs in float32, where the published code does not round them either.
    """

    def __init__(self, dim: int, places: int, dtype: torch.dtype) -> None:
        super().__init__()
        rates = (1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)).half()
        exact = torch.float32 if dtype == torch.float32 else torch.float16
        angles = torch.arange(places).to(exact)[:, None] * rates.to(exact)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [rows, 1, tokens, 2, dim], of positions [rows, 2, tokens]."""
        places = positions.transpose(1, 2)[:, None]
        return F.embedding(places, self.cos), F.embedding(places, self.sin)  # type: ignore[arg-type]


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`states` [rows, heads, tokens, head] turned by both positions."""
    halves = states.view(*states.shape[:-1], 2, states.shape[-1] // 2)
    first, second = halves.chunk(2, dim=-1)
    return torch.flatten(halves * cos + torch.cat((-second, first), dim=-1) * sin, -2)


class Attention(nn.Module):
    """Every head's query, key and value lie together in the fused projection."""

    def __init__(self, hidden: int, heads: int, index: int) -> None:
        super().__init__()
        self.heads, self.index = heads, index
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        rows, tokens, _ = hidden.shape
        fused = self.query_key_value(hidden).view(rows, tokens, self.heads, -1).transpose(1, 2)
        query, key, value = fused.chunk(3, dim=-1)
        keys, values = cache.update(turned(key, *rope), value, self.index)
        seen = F.scaled_dot_product_attention(turned(query, *rope), keys, values, attn_mask=mask)
        output: Tensor = self.dense(seen.transpose(1, 2).reshape(rows, tokens, -1))
        return output


class Mlp(nn.Module):
    """Two projections with a GELU by tanh between them."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, inner)
        self.dense_4h_to_h = nn.Linear(inner, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden), approximate="tanh"))
        return output


class Layer(nn.Module):
    """Attention and MLP; what is added is not the input but its normalised form, weighted."""

    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        hidden, epsilon = config["hidden_size"], config["layernorm_epsilon"]
        self.input_layernorm = nn.LayerNorm(hidden, epsilon)
        self.attention = Attention(hidden, config["num_attention_heads"], index)
        self.post_attention_layernorm = nn.LayerNorm(hidden, epsilon)
        self.mlp = Mlp(hidden, config["inner_hidden_size"])

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        normed = self.input_layernorm(hidden)
        hidden = normed * RESIDUAL + self.attention(normed, rope, mask, cache)
        normed = self.post_attention_layernorm(hidden)
        output: Tensor = normed * RESIDUAL + self.mlp(normed)
        return output


class FirstModel(nn.Module):
    """The whole model. `config` is the directory's config.json; build it on the meta device and fill it."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        self.word_embeddings = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config["num_layers"]))
        self.final_layernorm = nn.LayerNorm(hidden, config["layernorm_epsilon"])
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)

    def add_rope(self, config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        """Computes the tables of positions, which are in no checkpoint."""
        half_a_head = config["hidden_size"] // config["num_attention_heads"] // 2
        self.rope = Rope(half_a_head, config["max_sequence_length"] + 1, dtype).to(device)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Any, ends: Tensor | None) -> Tensor:
        """Logits [rows, vocabulary], float32, of each row's last token; `ends` [rows, 1] says where rows of a
        prompt pass end, None means that there is one token in each row.
        """
        rope = self.rope(positions)
        hidden = self.word_embeddings(ids)
        for layer in self.layers:
            hidden = layer(hidden, rope, mask, cache)
        hidden = self.final_layernorm(hidden)
        if ends is not None:
            hidden = hidden.take_along_dim(ends[..., None], dim=1)
        logits: Tensor = self.lm_head(hidden[:, 0])
        return logits.float()


def rename(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """Where a tensor of a published directory belongs in FirstModel."""
    name = name.removeprefix("transformer.")
    return () if name.endswith("rotary_emb.inv_freq") or name.startswith("prefix_encoder.") else ((name, tensor),)


def first_mask(contexts: Tensor, tokens: int) -> Tensor:
    """[rows, 1, tokens, tokens], true where a token may look: at the whole context, and at what precedes it."""
    place = torch.arange(tokens, device=contexts.device)
    return ((place < contexts[:, None, None]) | (place <= place[:, None]))[:, None]


def first_positions(contexts: Tensor, tokens: int) -> Tensor:
    """[rows, 2, tokens]: the place in the text, which stays at the context's last token, and the place in the answer.

    The context is the prompt without its last token, <sop>; its last token is [gMASK].
    """
    place = torch.arange(tokens, device=contexts.device)[None]
    contexts = contexts[:, None]
    return torch.stack((torch.minimum(place, contexts - 1), (place - contexts + 1).clamp(min=0)), dim=1)


class FirstDecoder:
    """Rows of ChatGLM-6B over a RowCache."""

    def __init__(self, model: FirstModel, device: torch.device, prefix: Prefix | None = None) -> None:
        self._model = model
        self._device = device
        self._rows = RowCache(len(model.layers), device, prefix)
        self._contexts: list[int] = []  # tokens of each row's prompt before <sop>

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        contexts = [max(1, len(prompt.ids) - 1) for prompt in prompts]
        held = torch.tensor(contexts, device=self._device)
        ids = torch.tensor(
            [[*prompt.ids, *prompt.generated, *[0] * (longest - len(prompt))] for prompt in prompts],
            device=self._device,
        )
        ends = torch.tensor([[length - 1] for length in lengths], device=self._device)
        self._rows.begin_rows(lengths)
        mask = self._rows.behind_prefix(first_mask(held, longest))
        logits: Tensor = self._model(ids, first_positions(held, longest), mask, self._rows.cache, ends)
        self._rows.commit_rows(lengths)
        self._contexts += contexts
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        positions, mask = self._rows.begin_step()
        contexts = torch.tensor(self._contexts, device=self._device)[:, None]
        places = torch.stack((contexts - 1, positions - contexts + 1), dim=1)
        ids = torch.tensor(tokens, device=self._device)[:, None]
        logits: Tensor = self._model(ids, places, mask, self._rows.cache, None)
        self._rows.commit_step()
        return logits

    def remove(self, row: int) -> None:
        self._rows.remove(row)
        self._contexts[row] = self._contexts[-1]
        self._contexts.pop()

    def clear(self) -> None:
        self._rows.clear()
        self._contexts = []

    def cells(self, rows: int, longest: int) -> int:
        return self._rows.cells(rows, longest)

    def bound(self, tokens: int) -> None:
        self._rows.bound(tokens)

    def held(self) -> int:
        return self._rows.held()

    def bytes_per_token(self) -> int:
        """Memory of one token of one row."""
        return self._rows.bytes_per_token()
