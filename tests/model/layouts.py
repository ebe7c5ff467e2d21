"""Tiny model directories in the layouts that the server reads, made for tests out of nothing but random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch

CORPUS = (
    "你好，很高兴见到你。", "晚上睡不着应该怎么办", "今天天气怎么样？", "问：答：", "[Round 1]",
    "Hello, how are you today?", "The quick brown fox jumps over the lazy dog.", "0123456789 ,.!?;:",
)  # fmt: skip
FIRST_SYMBOLS = ("<n>", "<|tab|>", *(f"<|blank_{size}|>" for size in range(2, 81)))
FIRST_CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


def train_words(file: Path, symbols: Iterable[str] = (), controls: Iterable[str] = (), **options: Any) -> None:
    """Writes a sentencepiece model of a few hundred pieces with byte fallback."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(file.with_suffix("")),
        vocab_size=460,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=list(symbols),
        control_symbols=list(controls),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    file.with_suffix(".vocab").unlink()


def write_first_words(directory: Path) -> None:
    """The sentencepiece model and options of ChatGLM-6B v1.1.0."""
    train_words(directory / "ice_text.model", FIRST_SYMBOLS, FIRST_CONTROLS, pad_id=3)
    options = {"num_image_tokens": 0, "remove_space": False, "do_lower_case": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(options))


def write_later_words(directory: Path) -> None:
    """The sentencepiece model of ChatGLM2 and 3, whose special ids come after it."""
    train_words(directory / "tokenizer.model")


def generation_of_code(code: Path) -> int:
    """1, 2 or 3: which ChatGLM the code files in a directory are of."""
    text = (code / "tokenization_chatglm.py").read_text(encoding="utf-8")
    return 1 if "ice_text.model" in text else 3 if "<|user|>" in text else 2


def write_remote(directory: Path, code: Path) -> Path:
    """A model directory of random weights around the code files in `code`."""
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    directory.mkdir(parents=True)
    for file in code.glob("*.py"):
        shutil.copy(file, directory)
    if generation_of_code(code) == 1:
        write_first_words(directory)
        config = _first_config(directory)
    else:
        write_later_words(directory)
        config = _later_config(directory)
    (directory / "config.json").write_text(json.dumps(config))
    parsed = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    parsed.max_length = 512
    kind: Any = get_class_from_dynamic_module("modeling_chatglm.ChatGLMForConditionalGeneration", str(directory))
    torch.manual_seed(11)
    model = kind(parsed, empty_init=False).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.ones_like(parameter)
                if "norm" in name and "weight" in name
                else torch.randn_like(parameter) * 0.08
            )
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors", {"format": "pt"}
    )
    return directory


def _auto_map() -> dict[str, str]:
    return {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }


def _first_config(directory: Path) -> dict[str, Any]:
    words = sentencepiece.SentencePieceProcessor(model_file=str(directory / "ice_text.model"))
    specials = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]"}
    ids = {f"{name}_token_id": words.piece_to_id(piece) for name, piece in specials.items()}
    return {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": _auto_map(), **ids, "pad_token_id": 3,
        "hidden_size": 64, "inner_hidden_size": 128, "layernorm_epsilon": 1e-5, "max_sequence_length": 512,
        "num_attention_heads": 4, "num_layers": 3, "position_encoding_2d": True, "torch_dtype": "float32",
        "use_cache": True, "vocab_size": words.vocab_size() + 20,
    }  # fmt: skip


def _later_config(directory: Path) -> dict[str, Any]:
    words = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": _auto_map(), "add_bias_linear": False,
        "add_qkv_bias": True, "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True,
        "ffn_hidden_size": 128, "fp32_residual_connection": False, "hidden_dropout": 0.0,
        "hidden_size": 64, "kv_channels": 16,
        "layernorm_epsilon": 1e-5, "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 4,
        "num_layers": 3, "original_rope": True, "padded_vocab_size": words.vocab_size() + 40, "post_layer_norm": True,
        "rmsnorm": True, "seq_length": 512, "use_cache": True, "torch_dtype": "float32", "tie_word_embeddings": False,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
