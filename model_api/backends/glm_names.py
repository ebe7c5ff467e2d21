"""ChatGLM2, ChatGLM3 and GLM-4 as published are transformers' GLM under other names: how the two correspond."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GlmConfig

from model_api.backends.base import LoadError

PARTS = (
    ("embedding.word_embeddings.", "model.embed_tokens."),
    ("encoder.layers.", "model.layers."),
    ("encoder.final_layernorm.", "model.norm."),
    ("output_layer.", "lm_head."),
    (".self_attention.", ".self_attn."),
    (".dense.", ".o_proj."),
    (".mlp.dense_h_to_4h.", ".mlp.gate_up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)
FUSED = ".query_key_value."

# What GLM is, and what config.json would have to say (with what it means where it says nothing) to be it.
REQUIRED: dict[str, tuple[Any, Any]] = {
    "rmsnorm": (True, True),
    "post_layer_norm": (True, True),
    "original_rope": (True, True),
    "multi_query_attention": (False, True),
    "add_bias_linear": (False, False),
    "apply_residual_connection_post_layernorm": (False, False),
    "fp32_residual_connection": (False, False),
    "interleaved_qkv": (False, False),
    "rotary_percent": (0.5, 0.5),
    "tie_word_embeddings": (False, False),
}
SIZES = (
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "num_layers",
    "num_attention_heads",
    "multi_query_group_num",
    "kv_channels",
    "seq_length",
)


def renaming(config: dict[str, Any]) -> Callable[[str, Tensor], Iterable[tuple[str, Tensor]]]:
    """Where a tensor of a published directory belongs in GlmForCausalLM: the fused projection becomes three."""
    heads, groups, dim = (config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels"))

    def rename(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        name = name.removeprefix("transformer.")
        if name.endswith("rotary_pos_emb.inv_freq") or name.startswith("prefix_encoder."):
            return ()
        for theirs, ours in PARTS:
            name = name.replace(theirs, ours)
        if FUSED not in name or tensor.shape[0] != (heads + 2 * groups) * dim:
            return ((name, tensor),)
        parts = torch.split(tensor, [heads * dim, groups * dim, groups * dim])
        return [(name.replace(FUSED, f".{part}_proj."), rows) for part, rows in zip("qkv", parts, strict=True)]

    return rename


def glm_config(directory: Path, config: dict[str, Any], interpolated: bool) -> GlmConfig:
    """transformers' configuration for a published one; raises LoadError where GLM cannot be what it describes.

    `interpolated`: rope_ratio divides the positions (ChatGLM2-6B-32k) instead of multiplying the base of the
    frequencies (ChatGLM3, GLM-4).
    """
    file = directory / "config.json"
    for key in SIZES:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise LoadError(f"{file}: {key} must be a whole number above 0; copy the file again")
    for key, (default, needed) in REQUIRED.items():
        if config.get(key, default) != needed:
            raise LoadError(f"{file}: {key} = {config.get(key, default)} is not supported, only {needed}")
    ratio = float(config.get("rope_ratio", 1) or 1)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if interpolated and ratio != 1:
        rope |= {"rope_type": "linear", "factor": ratio}
    else:
        rope["rope_theta"] *= ratio
    return GlmConfig(
        vocab_size=config["padded_vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["multi_query_group_num"],
        head_dim=config["kv_channels"],
        attention_bias=bool(config.get("add_qkv_bias", False)),
        rms_norm_eps=float(config.get("layernorm_epsilon", 1e-5)),
        max_position_embeddings=config["seq_length"],
        tie_word_embeddings=False,
        pad_token_id=0,
        rope_parameters=rope,
    )
