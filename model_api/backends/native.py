"""Models that transformers knows itself: GLM, GLM-4 and any causal model with full attention and a chat template."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model_api.backends.base import Defaults, LoadedModel, LoadError, Prompt
from model_api.backends.checks import check_loading
from model_api.backends.lora import Adapter
from model_api.backends.prefix import Prefix
from model_api.backends.rows import RowCache
from model_api.backends.template import TemplateCodec
from model_api.backends.tuning import Tuning

log = logging.getLogger(__name__)


class RowDecoder:
    """Plain forward passes over a RowCache."""

    def __init__(self, model: Any, device: torch.device, prefix: Prefix | None = None) -> None:
        self._model = model
        self._device = device
        self._rows = RowCache(model.config.get_text_config().num_hidden_layers, device, prefix)
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
        extra: dict[str, Any] = {"logits_to_keep": ends} if self._last_only else {}
        if self._rows.prefix:
            seen = torch.ones(len(prompts), 1, longest, longest, dtype=torch.bool, device=self._device).tril()
            extra["attention_mask"] = self._as_wanted(self._rows.behind_prefix(seen))
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
        output = self._model(
            input_ids=torch.tensor(tokens, device=self._device)[:, None],
            attention_mask=None if mask is None else self._as_wanted(mask),
            position_ids=positions,
            past_key_values=self._rows.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1].float()
        self._rows.commit_step()
        return logits

    def _as_wanted(self, mask: Tensor) -> Tensor:
        """A mask that is true where a row may look, as the model's attention takes it."""
        if not self._additive:
            return mask
        dtype = self._model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=self._device).masked_fill_(~mask, torch.finfo(dtype).min)

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
        """Memory of one token of one row."""
        return self._rows.bytes_per_token()


def load(
    directory: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device, bits: int, tuning: Tuning
) -> LoadedModel:
    """Loads a native model; raises LoadError with what is missing or unsupported."""
    _check_tuning(tuning, bits)
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LoadError(f"{directory / 'config.json'}: model_type {kind!r} is no causal model that transformers knows")
    parsed = AutoConfig.from_pretrained(directory, local_files_only=True)
    check_architecture(parsed.get_text_config(), directory)
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
    if tuning.lora:
        Adapter(tuning.lora).merge_into(model)
    if not bits:
        model = model.to(device)
    decoder = RowDecoder(model, device)
    context = _first_range(parsed.get_text_config(), directory)
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
        kv_bytes_per_token=measured(decoder),
    )


def _check_tuning(tuning: Tuning, bits: int) -> None:
    if tuning.ptuning:
        raise LoadError(
            f"PTUNING_PATH={tuning.ptuning}: a prefix belongs to a ChatGLM directory as published, of model_type "
            "chatglm; set MODEL_PATH to the model that it was trained on"
        )
    if tuning.lora and bits:
        raise LoadError(f"LORA_PATH and QUANTIZE={bits} do not go together for this model; unset one of them")


def check_architecture(config: Any, directory: Path) -> None:
    """Raises LoadError for families that are known to be decoded wrong in rows of a common cache."""
    kind = str(getattr(config, "model_type", ""))
    known: dict[str, Callable[[], object]] = {
        "bloom": lambda: "alibi",
        "falcon": lambda: "alibi" if getattr(config, "alibi", False) else None,
        "gpt_neo": lambda: "local attention" if "local" in (getattr(config, "attention_layers", None) or ()) else None,
        "rwkv": lambda: "a state in place of a past",
    }
    why = known[kind]() if kind in known else None
    if why:
        raise LoadError(
            f"{directory}: {kind} has {why}, with which this server would answer wrong as soon as two requests run; "
            "serve it with an engine that knows it (vLLM, SGLang), which chatglm-ha supervises as well"
        )


def _first_range(config: Any, directory: Path) -> int:
    """Tokens of context. A rope that changes with the longest row is kept to the range in which it does not."""
    context = int(getattr(config, "max_position_embeddings", None) or 2048)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return context
    original = rope.get("original_max_position_embeddings")
    first = int(original or getattr(config, "original_max_position_embeddings", None) or context)
    if first < context:
        log.warning(
            "%s: its %s rope changes a row's text with the length of the rows beside it beyond %d tokens: "
            "the context is limited to these (of %d)",
            *(directory, rope["rope_type"], first, context),
        )
    return min(first, context)


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


class Measurable(Protocol):
    """A decoder that knows what its rows cost, once there was one."""

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        """See Decoder."""

    def clear(self) -> None:
        """See Decoder."""

    def bytes_per_token(self) -> int:
        """Memory of one token of one row."""


def measured(decoder: Measurable) -> int:
    """Bytes of past that a token of a row takes, by trying one."""
    with torch.inference_mode():
        decoder.add([Prompt([0, 0])])
        size = decoder.bytes_per_token()
        decoder.clear()
    return size
