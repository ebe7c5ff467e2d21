"""The family's arithmetic written down plainly: one row, one pass, no past, straight from published tensors.

What the server does in rows, over a cache, with fused kernels, is compared with this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu

Past = Sequence[tuple[Tensor, Tensor]]  # each layer's keys and values in front of all tokens, [heads, columns, dim]


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """[tokens, heads x dim] of [heads, tokens, dim]; `seen` [tokens, columns] is true where a token may look."""
    repeats = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
    scores = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).masked_fill(~seen, -1e9)
    return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)


def with_past(past: Past | None, layer: int, key: Tensor, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and mask with what stands in front."""
    if past is None:
        return key, value, seen
    front = seen.new_ones(seen.shape[0], past[layer][0].shape[1])
    return torch.cat((past[layer][0], key), 1), torch.cat((past[layer][1], value), 1), torch.cat((front, seen), 1)


# --- ChatGLM-6B ---------------------------------------------------------------------------------------------------


def turned_by_halves(states: Tensor, places: Tensor) -> Tensor:
    """[..., tokens, dim] turned by one position, its first half against its second."""
    dim = states.shape[-1]
    rates = (1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)).half().float()
    angles = torch.cat((places.float()[:, None] * rates,) * 2, -1)
    first, second = states[..., : dim // 2], states[..., dim // 2 :]
    return states * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def first_logits(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], ids: Sequence[int], context: int, past: Past | None = None
) -> Tensor:
    """Logits [tokens, vocabulary] of ChatGLM-6B; `context`: tokens before <sop>."""
    tokens, heads, epsilon = len(ids), config["num_attention_heads"], config["layernorm_epsilon"]
    place = torch.tensor([min(token, context - 1) for token in range(tokens)])
    block = torch.tensor([max(0, token - context + 1) for token in range(tokens)])
    seen = torch.tensor([[column < context or column <= token for column in range(tokens)] for token in range(tokens)])
    get = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    hidden = get["word_embeddings.weight"][list(ids)]

    def both(name: str) -> tuple[Tensor, Tensor]:
        return get[f"{name}.weight"], get[f"{name}.bias"]

    def rope(states: Tensor) -> Tensor:
        one, other = states.chunk(2, -1)
        return torch.cat((turned_by_halves(one, place), turned_by_halves(other, block)), -1)

    for layer in range(config["num_layers"]):
        at = f"layers.{layer}."
        normed = layer_norm(hidden, hidden.shape[-1:], *both(f"{at}input_layernorm"), epsilon)
        fused = linear(normed, *both(f"{at}attention.query_key_value")).view(tokens, heads, -1).transpose(0, 1)
        query, key, value = fused.chunk(3, -1)
        keys, values, mask = with_past(past, layer, rope(key), value, seen)
        mixed = linear(attention(rope(query), keys, values, mask), *both(f"{at}attention.dense"))
        hidden = normed * math.sqrt(56) + mixed
        normed = layer_norm(hidden, hidden.shape[-1:], *both(f"{at}post_attention_layernorm"), epsilon)
        inner = gelu(linear(normed, *both(f"{at}mlp.dense_h_to_4h")), approximate="tanh")
        hidden = normed * math.sqrt(56) + linear(inner, *both(f"{at}mlp.dense_4h_to_h"))
    hidden = layer_norm(hidden, hidden.shape[-1:], *both("final_layernorm"), epsilon)
    return hidden @ get["lm_head.weight"].T


# --- ChatGLM2, ChatGLM3, GLM-4 ------------------------------------------------------------------------------------


def turned_by_pairs(states: Tensor, base: float, stretch: float) -> Tensor:
    """[..., tokens, dim]: the first half of a head turned, each number with its neighbour; the rest as it is."""
    dim = states.shape[-1] // 2
    angles = (torch.arange(states.shape[-2]) / stretch)[:, None] * base ** -(torch.arange(0, dim, 2).float() / dim)
    one, other = states[..., :dim:2], states[..., 1:dim:2]
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack((one * cos - other * sin, other * cos + one * sin), -1).flatten(-2)
    return torch.cat((turned, states[..., dim:]), -1)


def rms(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm."""
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon) * weight


def later_logits(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    ids: Sequence[int],
    *,
    base: float = 10000.0,
    stretch: float = 1.0,
    past: Past | None = None,
) -> Tensor:
    """Logits [tokens, vocabulary] of ChatGLM2 and later; positions are divided by `stretch`."""
    tokens, epsilon = len(ids), config["layernorm_epsilon"]
    heads, groups, dim = (config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels"))
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    get = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    hidden = get["embedding.word_embeddings.weight"][list(ids)]
    for layer in range(config["num_layers"]):
        at = f"encoder.layers.{layer}."
        normed = rms(hidden, get[f"{at}input_layernorm.weight"], epsilon)
        name = f"{at}self_attention.query_key_value"
        fused = linear(normed, get[f"{name}.weight"], get[f"{name}.bias"])
        query, key, value = (
            part.view(tokens, -1, dim).transpose(0, 1)
            for part in torch.split(fused, [heads * dim, groups * dim, groups * dim], -1)
        )
        query, key = turned_by_pairs(query, base, stretch), turned_by_pairs(key, base, stretch)
        keys, values, mask = with_past(past, layer, key, value, seen)
        hidden = hidden + linear(attention(query, keys, values, mask), get[f"{at}self_attention.dense.weight"])
        normed = rms(hidden, get[f"{at}post_attention_layernorm.weight"], epsilon)
        gate, up = linear(normed, get[f"{at}mlp.dense_h_to_4h.weight"]).chunk(2, -1)
        hidden = hidden + linear(silu(gate) * up, get[f"{at}mlp.dense_4h_to_h.weight"])
    hidden = rms(hidden, get["encoder.final_layernorm.weight"], epsilon)
    return hidden @ get["output_layer.weight"].T
