"""Models that transformers knows itself: GLM, GLM-4 and any causal model with full attention and a chat template."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model_api.backends.base import Defaults, LoadedModel, LoadError, Prompt
from model_api.backends.checks import check_loading
from model_api.backends.rows import RowCache
from model_api.backends.template import TemplateCodec


class RowDecoder:
    """Plain forward passes over a RowCache."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._rows = RowCache(model.config.get_text_config().num_hidden_layers, device)
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        # Ready-made masks are what the attention wants: true/false for sdpa, something to add for the eager one.
        self._additive = model.config._attn_implementation == "eager"

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        # Padded on the right: a causal model never looks there, so no mask is needed and the fast kernels are taken.
        ids = torch.tensor(
            [[*prompt.ids, *prompt.generated, *[0] * (longest - len(prompt))] for prompt in prompts],
            device=self._device,
        )
        ends = torch.tensor([[length - 1] for length in lengths], device=self._device)
        self._rows.begin_rows(lengths)
        extra = {"logits_to_keep": ends} if self._last_only else {}
        output = self._model(
            input_ids=ids,
            position_ids=torch.arange(longest, device=self._device)[None].expand(len(prompts), -1),
            past_key_values=self._rows.cache,
            use_cache=True,
            **extra,
        )
        logits: Tensor = output.logits
        if not self._last_only:
            logits = logits.take_along_dim(ends[..., None], dim=1)
        self._rows.commit_rows(lengths)
        return logits[:, 0].float()

    def step(self, tokens: Sequence[int]) -> Tensor:
        positions, mask = self._rows.begin_step()
        if mask is not None and self._additive:
            mask = torch.zeros(mask.shape, dtype=self._model.dtype, device=self._device).masked_fill_(
                ~mask, torch.finfo(self._model.dtype).min
            )
        output = self._model(
            input_ids=torch.tensor(tokens, device=self._device)[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._rows.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1].float()
        self._rows.commit_step()
        return logits

    def remove(self, row: int) -> None:
        self._rows.remove(row)

    def clear(self) -> None:
        self._rows.clear()

    def cells(self, rows: int, longest: int) -> int:
        return self._rows.cells(rows, longest)

    def bound(self, tokens: int) -> None:
        self._rows.bound(tokens)

    def held(self) -> int:
        return self._rows.held()

    def bytes_per_token(self) -> int:
        return self._rows.bytes_per_token()


def load(directory: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device, bits: int) -> LoadedModel:
    """Loads a native model; raises LoadError with what is missing or unsupported."""
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LoadError(f"{directory / 'config.json'}: model_type {kind!r} is no causal model that transformers knows")
    parsed = AutoConfig.from_pretrained(directory, local_files_only=True)
    window = _attention_window(parsed.get_text_config(), directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if not tokenizer.chat_template:
        raise LoadError(f"{directory}: the tokenizer has no chat template; add chat_template.jinja to the directory")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, local_files_only=True, output_loading_info=True, **_quantization(bits, device)
    )
    model, info = loaded
    check_loading(info, directory)
    model = model.eval()
    if not bits:
        model = model.to(device)
    decoder = RowDecoder(model, device)
    context = getattr(parsed.get_text_config(), "max_position_embeddings", 2048)
    return LoadedModel(
        family=str(kind),
        codec=TemplateCodec(tokenizer),
        decoder=decoder,
        device=device,
        dtype=dtype,
        context=min(context, window) if window else context,
        vocabulary=model.get_input_embeddings().num_embeddings,
        ends=_ends(model, tokenizer),
        defaults=_defaults(directory),
        parameters=model.num_parameters(),
        kv_bytes_per_token=_measure(decoder),
    )


def _attention_window(config: Any, directory: Path) -> int | None:
    """The tokens within which every layer sees everything (None: no limit); raises LoadError for other kinds of layer.

    Up to its window a sliding layer is a full one, and rows of different lengths share one mask only as full layers.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    odd = kinds - {"full_attention", "sliding_attention"}
    if odd:
        raise LoadError(f"{directory}: layers of kind {', '.join(sorted(odd))} are not supported, only full attention")
    if "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True)):
        window = getattr(config, "sliding_window", None)
        return int(window) if window else None
    return None


def _quantization(bits: int, device: torch.device) -> dict[str, Any]:
    if not bits:
        return {}
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401 - asked for early, for the better message
    except ImportError:
        words = f"QUANTIZE={bits} of this model needs two packages: pip install bitsandbytes accelerate"
        raise LoadError(words) from None
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    return {
        "quantization_config": config(load_in_8bit=bits == 8, load_in_4bit=bits == 4),
        "device_map": {"": device.index or 0},
    }


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for source in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ends.update(source if isinstance(source, (list, tuple)) else () if source is None else (source,))
    return frozenset(ends)


def _defaults(directory: Path) -> Defaults:
    """What the model's own generation_config.json says, 1.0 and off where it says nothing."""
    if not (directory / "generation_config.json").is_file():
        return Defaults()
    config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return Defaults(
        temperature=_or(config.temperature, 1.0),
        top_p=_or(config.top_p, 1.0),
        top_k=int(_or(config.top_k, 0)),
        repetition_penalty=_or(config.repetition_penalty, 1.0),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _measure(decoder: RowDecoder) -> int:
    with torch.inference_mode():
        decoder.add([Prompt([0, 0])])
        size = decoder.bytes_per_token()
        decoder.clear()
    return size
