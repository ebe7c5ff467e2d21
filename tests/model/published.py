"""Model directories in the layouts that the ChatGLM family was published in, of random numbers, with their own words.

Only names, shapes and files are those of the published directories: nothing of anybody's code is needed.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

CORPUS = (
    "你好，很高兴见到你。", "晚上睡不着应该怎么办", "今天天气怎么样？", "问：答：", "[Round 1]",
    "Hello, how are you today?", "The quick brown fox jumps over the lazy dog.", "0123456789 ,.!?;:",
)  # fmt: skip
FIRST_SYMBOLS = ("<n>", "<|tab|>", *(f"<|blank_{size}|>" for size in range(2, 81)))
FIRST_CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
GENERATIONS = ("v1", "v2", "v3", "glm4")
MIDDLE = {  # about 60 million parameters
    "v1": {"hidden_size": 1024, "inner_hidden_size": 4096, "num_layers": 4, "num_attention_heads": 8},
    "later": {
        "hidden_size": 1024, "ffn_hidden_size": 3424, "num_layers": 4, "num_attention_heads": 16,
        "kv_channels": 64, "multi_query_group_num": 2,
    },
}  # fmt: skip


# --- words --------------------------------------------------------------------------------------------------------


def train_words(file: Path, symbols: Iterable[str] = (), controls: Iterable[str] = (), **options: Any) -> None:
    """Writes a sentencepiece model of a few hundred pieces with byte fallback."""
    sentencepiece.SentencePieceTrainer.train(
        **{
            "sentence_iterator": iter(CORPUS * 20),
            "model_prefix": str(file.with_suffix("")),
            "vocab_size": 460,
            "model_type": "bpe",
            "byte_fallback": True,
            "character_coverage": 1.0,
            "hard_vocab_limit": False,
            "user_defined_symbols": list(symbols),
            "control_symbols": list(controls),
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            **options,
        }
    )
    file.with_suffix(".vocab").unlink()


def write_first_words(directory: Path, *, slim: bool = True) -> None:
    """ice_text.model and options of ChatGLM-6B v1.1.0; not `slim`: those of v1.0, whose code added most symbols."""
    options = {"remove_space": False, "do_lower_case": False}
    if slim:
        train_words(directory / "ice_text.model", FIRST_SYMBOLS, FIRST_CONTROLS, pad_id=3)
        options |= {"num_image_tokens": 0}
    else:
        train_words(directory / "ice_text.model", ["<n>"], pad_id=3, byte_fallback=False, vocab_size=200)
    (directory / "tokenizer_config.json").write_text(json.dumps(options))


def write_later_words(directory: Path) -> None:
    """The sentencepiece model of ChatGLM2 and 3, whose special ids come after it."""
    train_words(directory / "tokenizer.model")


def train_ranks(text: str, size: int) -> dict[bytes, int]:
    """Byte sequences by rank, as GLM-4's tokenizer.model lists them: the most frequent neighbours first."""
    ranks = {bytes((byte,)): byte for byte in range(256)}
    often = Counter(text.replace(" ", "\n ").split("\n"))
    words = [([bytes((byte,)) for byte in word.encode()], number) for word, number in often.items()]
    while len(ranks) < size:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, number in words:
            for pair in pairwise(word):
                counts[pair] += number
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks.setdefault(best[0] + best[1], len(ranks))
        words = [(_merged(word, best), number) for word, number in words]
    return ranks


def _merged(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out


def write_ranks(directory: Path, ranks: dict[bytes, int]) -> None:
    """tokenizer.model as GLM-4 has it."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (directory / "tokenizer.model").write_text("".join(lines))


# --- configurations -----------------------------------------------------------------------------------------------


def _auto_map() -> dict[str, str]:
    return {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }


def first_config(directory: Path, *, slim: bool = True, **sizes: Any) -> dict[str, Any]:
    """config.json of ChatGLM-6B for the words in `directory`."""
    words = sentencepiece.SentencePieceProcessor(model_file=str(directory / "ice_text.model"))
    specials = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]"}
    ids = {f"{name}_token_id": words.piece_to_id(piece) for name, piece in specials.items()}
    return {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": _auto_map(), **ids, "pad_token_id": 3,
        "hidden_size": 64, "inner_hidden_size": 128, "layernorm_epsilon": 1e-5, "max_sequence_length": 512,
        "num_attention_heads": 4, "num_layers": 3, "position_encoding_2d": True, "torch_dtype": "float32",
        "use_cache": True, "vocab_size": words.vocab_size() + (20 if slim else 20364), **sizes,
    }  # fmt: skip


def later_config(vocabulary: int, **sizes: Any) -> dict[str, Any]:
    """config.json of ChatGLM2, 3 and GLM-4."""
    return {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": _auto_map(), "add_bias_linear": False,
        "add_qkv_bias": True, "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True,
        "ffn_hidden_size": 128, "fp32_residual_connection": False, "hidden_dropout": 0.0,
        "hidden_size": 64, "kv_channels": 16,
        "layernorm_epsilon": 1e-5, "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 4,
        "num_layers": 3, "original_rope": True, "padded_vocab_size": vocabulary, "post_layer_norm": True,
        "rmsnorm": True, "seq_length": 512, "use_cache": True, "torch_dtype": "float32", "tie_word_embeddings": False,
        "eos_token_id": 2, "pad_token_id": 0, **sizes,
    }  # fmt: skip


# --- weights ------------------------------------------------------------------------------------------------------


def first_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of ChatGLM-6B by their published names."""
    hidden, inner, words = config["hidden_size"], config["inner_hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (words, hidden)}
    for layer in range(config["num_layers"]):
        at = f"transformer.layers.{layer}."
        shapes[at + "attention.rotary_emb.inv_freq"] = (hidden // config["num_attention_heads"] // 4,)
        for name, rows, columns in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", inner, hidden),
            ("mlp.dense_4h_to_h", hidden, inner),
        ):
            shapes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (rows,)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{at}{name}.weight": (hidden,), f"{at}{name}.bias": (hidden,)}
    norm = "transformer.final_layernorm."
    return {**shapes, f"{norm}weight": (hidden,), f"{norm}bias": (hidden,), "lm_head.weight": (words, hidden)}


def later_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of ChatGLM2, 3 and GLM-4 by their published names."""
    hidden, inner, words = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    heads, groups, dim = (config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels"))
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (words, hidden),
        "transformer.rotary_pos_emb.inv_freq": (dim // 4,),
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (words, hidden),
    }
    fused = (heads + 2 * groups) * dim
    for layer in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}self_attention.query_key_value.weight": (fused, hidden),
            f"{at}self_attention.query_key_value.bias": (fused,),
            f"{at}self_attention.dense.weight": (hidden, heads * dim),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}mlp.dense_h_to_4h.weight": (2 * inner, hidden),
            f"{at}mlp.dense_4h_to_h.weight": (hidden, inner),
        }
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 11) -> dict[str, Tensor]:
    """Random weights that are lively enough for different prompts to get different answers.

    They are numbers that half precision has, as all published ones are: ChatGLM-6B's own code keeps no others.
    """
    chance = torch.Generator().manual_seed(seed)
    columns = max(max(shape) for shape in shapes.values())
    spread = 0.08 if columns < 1500 else 0.03
    tensors = {
        name: (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        + spread * torch.randn(shape, generator=chance)
        for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        if name.endswith("inv_freq"):  # no weight: a table that the published files carry along
            tensors[name] = (1.0 / 10000 ** (torch.arange(shape[0]).float() / shape[0])).half().float()
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def write_tensors(directory: Path, tensors: dict[str, Tensor], kind: str = "safetensors", shards: int = 1) -> None:
    """The weights as one file or several with an index; `kind`: safetensors or bin."""
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    names = sorted(tensors)
    place: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}{suffix}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}{suffix}"
        part = {name: tensors[name].contiguous() for name in names[shard::shards]}
        place |= dict.fromkeys(part, file)
        if kind == "safetensors":
            save_file(part, directory / file, {"format": "pt"})
        else:
            torch.save(part, directory / file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": place}
        (directory / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def write_published(
    directory: Path,
    generation: str,
    *,
    kind: str = "safetensors",
    shards: int = 1,
    slim: bool = True,
    middle: bool = False,
    **changes: Any,
) -> Path:
    """A whole directory of one generation, of a tiny or a middle size; `changes` go into config.json."""
    directory.mkdir(parents=True)
    if generation == "v1":
        write_first_words(directory, slim=slim)
        config = first_config(directory, slim=slim, **(MIDDLE["v1"] if middle else {}), **changes)
        shapes = first_shapes(config)
    else:
        vocabulary = _write_words(directory, generation)
        sizes = {**(MIDDLE["later"] if middle else {}), **changes}
        config = {
            "_name_or_path": f"THUDM/chat{generation.replace('v', 'glm')}-6b",
            **later_config(vocabulary, **sizes),
        }
        shapes = later_shapes(config)
    (directory / "config.json").write_text(json.dumps(config))
    write_tensors(directory, random_tensors(shapes), kind, shards)
    return directory


def _write_words(directory: Path, generation: str) -> int:
    """Writes a later generation's words; returns how many logits there are."""
    if generation == "glm4":
        ranks = train_ranks("\n".join(CORPUS), 400)
        write_ranks(directory, ranks)
        return len(ranks) + 40
    write_later_words(directory)
    words = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return int(words.vocab_size()) + 40


def read_config(directory: Path) -> dict[str, Any]:
    """config.json."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config
