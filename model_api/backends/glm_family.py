"""ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B from their published directories.

Only what is data in them is read: configuration, weights, words. Their Python files are never run; two things that the
configuration does not say are looked up in their text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GlmForCausalLM

from model_api.backends import chatglm1
from model_api.backends.base import Defaults, LoadedModel, LoadError
from model_api.backends.chatglm1 import FirstDecoder, FirstModel
from model_api.backends.glm4_words import Glm4Codec, is_ranks
from model_api.backends.glm_names import glm_config, renaming
from model_api.backends.lora import Adapter, merging
from model_api.backends.native import RowDecoder, measured
from model_api.backends.prefix import Prefix, Shape, make_prefix, prefix_tensors, read_prefix
from model_api.backends.quantised import count_parameters, make_quantised
from model_api.backends.tuning import Tuning
from model_api.backends.weights import SCALE, fill, multiplied_out, open_tensors, present
from model_api.backends.words import FirstCodec, SecondCodec, ThirdCodec

FIRST_SIZES = (
    "vocab_size",
    "hidden_size",
    "inner_hidden_size",
    "num_layers",
    "num_attention_heads",
    "max_sequence_length",
)


@dataclass(frozen=True, slots=True)
class Generation:
    """What sets one generation apart."""

    family: str
    words: str  # the tokenizer's file
    codec: Callable[[Path], FirstCodec | SecondCodec | ThirdCodec | Glm4Codec]
    defaults: Defaults
    interpolated: bool = False  # what rope_ratio means where the directory has no code, see `glm_config`


FIRST = Generation("chatglm-v1", "ice_text.model", FirstCodec, Defaults(0.95, 0.7, 50))
SECOND = Generation("chatglm-v2", "tokenizer.model", SecondCodec, Defaults(0.8, 0.8, 50), interpolated=True)
THIRD = Generation("chatglm-v3", "tokenizer.model", ThirdCodec, Defaults(0.8, 0.8, 50))
FOURTH = Generation("glm-4", "tokenizer.model", Glm4Codec, Defaults(0.8, 0.8))


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be loaded, and how."""

    directory: Path
    config: dict[str, Any]
    dtype: torch.dtype
    device: torch.device
    bits: int  # 0: as it is; 8, 4: quantised while it is loaded
    tuning: Tuning

    @property
    def published_bits(self) -> int:
        """8 or 4 for a directory that is published in whole numbers, else 0; raises LoadError for others."""
        bits = self.config.get("quantization_bit") or 0
        if bits not in (0, 4, 8):
            raise LoadError(
                f"{self.directory / 'config.json'}: quantization_bit = {bits} is not supported, only 8 and 4"
            )
        return int(bits)


def generation_of(directory: Path, config: dict[str, Any]) -> Generation:
    """Which generation a directory is; raises LoadError with what is missing or unsupported."""
    if "vision_config" in config or "image_size" in config:
        raise LoadError(f"{directory}: a model of images (vision_config) is not supported, only of text")
    if "inner_hidden_size" in config or "position_encoding_2d" in config:
        found = FIRST
        if not config.get("position_encoding_2d", True):
            raise LoadError(f"{directory / 'config.json'}: position_encoding_2d = false is not supported")
    else:
        found = THIRD
    if not (directory / found.words).is_file():
        raise LoadError(f"{directory}: {found.words} is missing, without which there are no words; copy it there")
    present(directory / found.words)
    if found is FIRST:
        return FIRST
    return FOURTH if is_ranks(directory / found.words) else _second_or_third(directory, config)


def _second_or_third(directory: Path, config: dict[str, Any]) -> Generation:
    """Their configurations are alike; what is said of their words, or a name, tells whether dialogues have roles."""
    said = _text_of(directory / "tokenization_chatglm.py"), _text_of(directory / "tokenizer_config.json")
    if any("<|user|>" in text for text in said):
        return THIRD
    if said[0]:
        return SECOND
    name = f"{config.get('_name_or_path', '')} {_tokenizer_name(said[1])} {directory.resolve().name}".lower()
    for mark, generation in (("chatglm3", THIRD), ("chatglm2", SECOND), ("codegeex2", SECOND)):
        if mark in name:
            return generation
    raise LoadError(
        f"{directory}: nothing in it says whether it is ChatGLM2 or ChatGLM3; "
        'give config.json "_name_or_path": "chatglm2-6b" or "chatglm3-6b"'
    )


def _tokenizer_name(text: str) -> str:
    try:
        options = json.loads(text or "{}")
    except ValueError:
        return ""
    return str(options.get("name_or_path", "")) if isinstance(options, dict) else ""


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _interpolated(directory: Path, generation: Generation) -> bool:
    """Whether rope_ratio divides positions. Revisions differ, so the code's text has the word where it is there."""
    text = "".join(_text_of(directory / "modeling_chatglm.py").split())
    if "base=base*self.rope_ratio" in text:
        return False
    return generation.interpolated or "/self.rope_ratio" in text


def load(
    directory: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device, bits: int, tuning: Tuning
) -> LoadedModel:
    """Loads a published directory of the family; raises LoadError."""
    order = Order(directory, config, dtype, device, bits, tuning)
    generation = generation_of(directory, config)
    if bits and order.published_bits:
        raise LoadError(f"QUANTIZE={bits}: {directory} is INT{order.published_bits} already; unset QUANTIZE")
    codec = generation.codec(directory)
    build = _first if generation is FIRST else _later
    decoder, model, context, vocabulary = build(order, generation)
    return LoadedModel(
        family=generation.family,
        codec=codec,
        decoder=decoder,
        device=device,
        dtype=dtype,
        context=context,
        vocabulary=vocabulary,
        ends=codec.ends,
        defaults=_defaults(directory, generation),
        parameters=count_parameters(model),
        kv_bytes_per_token=measured(decoder),
    )


Built = tuple[FirstDecoder | RowDecoder, nn.Module, int, int]  # with context and vocabulary


def _first(order: Order, generation: Generation) -> Built:
    config = order.config
    for key in FIRST_SIZES:
        if not isinstance(config.get(key), int) or config[key] < 1:
            file = order.directory / "config.json"
            raise LoadError(f"{file}: {key} must be a whole number above 0; copy the file again")
    config = {"layernorm_epsilon": 1e-5, **config}
    with torch.device("meta"):
        model = FirstModel(config)
    heads = config["num_attention_heads"]
    shape = Shape(config["num_layers"], heads, config["hidden_size"] // heads)
    prefix = _filled(order, model, model.layers, chatglm1.rename, shape)
    model.add_rope(config, order.dtype, order.device)
    decoder = FirstDecoder(model.eval(), order.device, prefix)
    return decoder, model, config["max_sequence_length"], config["vocab_size"]


def _later(order: Order, generation: Generation) -> Built:
    parsed = glm_config(order.directory, order.config, _interpolated(order.directory, generation))
    parsed._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: Any = GlmForCausalLM(parsed)
    sizes = (order.config[key] for key in ("num_layers", "multi_query_group_num", "kv_channels"))
    prefix = _filled(order, model, model.model.layers, renaming(order.config), Shape(*sizes))
    # Its tables are in no checkpoint, and on the meta device they have no values.
    model.model.rotary_emb = type(model.model.rotary_emb)(parsed).to(order.device)
    decoder = RowDecoder(model.eval(), order.device, prefix)
    return decoder, model, parsed.max_position_embeddings, parsed.vocab_size


def _filled(order: Order, model: nn.Module, layers: nn.Module, rename: Any, shape: Shape) -> Prefix | None:
    """Fills a model built on the meta device, quantised and with its adapter as asked; returns the trained prefix."""
    directory, device, dtype = order.directory, order.device, order.dtype
    tensors: dict[str, Tensor] = open_tensors(directory)
    prefix = _prefix(order, tensors, shape)
    adapter = Adapter(order.tuning.lora) if order.tuning.lora else None
    published = order.published_bits
    if not published and any(name.endswith(SCALE) for name in tensors):
        raise LoadError(f"{directory}: weights with scales, and config.json has no quantization_bit; copy it again")
    # On a GPU they stay as small as they are. A CPU would multiply them out at every step, and an adapter changes them.
    kept = published if device.type == "cuda" and adapter is None else 0
    if kept or order.bits:
        make_quantised(layers, kept or order.bits)
    pairs = multiplied_out(tensors, published, but=".layers." if kept else "") if published else tensors.items()
    if adapter is not None:
        adapter.check(name.removesuffix(".weight") for name in tensors)
        pairs = merging(adapter, pairs)
    fill(model, pairs, rename, directory, dtype, device)
    return prefix


def _prefix(order: Order, tensors: dict[str, Tensor], shape: Shape) -> Prefix | None:
    directory, path = order.directory, order.tuning.ptuning
    if path is not None:
        return read_prefix(path, shape, order.dtype, order.device)
    own = prefix_tensors(tensors)
    if own:
        return make_prefix(own, str(directory), shape, order.dtype, order.device)
    if order.config.get("pre_seq_len"):
        words = f"{directory}: config.json says it is tuned (pre_seq_len), and its prefix is not among the weights"
        raise LoadError(f"{words}; set PTUNING_PATH to the checkpoint that has it")
    return None


def _defaults(directory: Path, generation: Generation) -> Defaults:
    """GLM-4 brings its own in generation_config.json; the others' are those of their chat()."""
    if generation is not FOURTH or not (directory / "generation_config.json").is_file():
        return generation.defaults
    own = GenerationConfig.from_pretrained(directory, local_files_only=True)
    base = generation.defaults
    return Defaults(
        temperature=base.temperature if own.temperature is None else own.temperature,
        top_p=base.top_p if own.top_p is None else own.top_p,
        top_k=int(own.top_k or 0),
    )
