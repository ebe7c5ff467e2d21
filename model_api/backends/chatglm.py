"""Remote-code directories of ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B, through their forward passes alone.

Their chat(), generate() and tokenizers work with no one version of transformers between them, and process_response of
ChatGLM3 runs eval() on what the model says; forward() with a tuple as the past works with all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from model_api.backends.base import Decoder, Defaults, LoadedModel, LoadError, Prompt
from model_api.backends.checks import check_loading
from model_api.backends.tuples import Layout, Past, PastRows, as_past, bytes_per_token, find_layout
from model_api.backends.words import FirstCodec, SecondCodec, ThirdCodec

MODEL_CLASS = "modeling_chatglm.ChatGLMForConditionalGeneration"
CODE = ("modeling_chatglm.py", "configuration_chatglm.py")


# --- ChatGLM-6B ---------------------------------------------------------------------------------------------------


def first_mask(context: int, length: int) -> Tensor:
    """[length, length], true where a token may not look: everybody sees the context, what follows sees its past."""
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[:, :context] = True
    return ~seen


def first_positions(context: int, length: int) -> Tensor:
    """[2, length] of int64: the place in the text, which stays at the [gMASK] after the context, and one in the answer.

    The context is the prompt without its last token, <sop>; [gMASK] is the last of the context.
    """
    positions = torch.zeros(2, length, dtype=torch.int64)
    positions[0] = torch.arange(length)
    positions[0, context:] = context - 1
    positions[1, context:] = torch.arange(1, length - context + 1)
    return positions


class _TupleDecoder:
    """What the decoders over PastRows share: the past is as large as its rows are, with nothing to choose."""

    _rows: PastRows

    def cells(self, rows: int, longest: int) -> int:
        return rows * longest

    def bound(self, tokens: int) -> None:
        """Nothing: there is no room to grow that could be left out."""

    def held(self) -> int:
        return len(self._rows.pads) * self._rows.width


class FirstDecoder(_TupleDecoder):
    """ChatGLM-6B: two-dimensional positions, the context seen in both directions."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._rows = PastRows(probe_layout(self._probe))
        self._places: list[tuple[int, int]] = []  # of each row's next token

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        return torch.cat([self._add_one(prompt) for prompt in prompts])

    def _add_one(self, prompt: Prompt) -> Tensor:
        context, length = len(prompt.ids) - 1, len(prompt)
        logits, past = self._forward(
            torch.tensor([[*prompt.ids, *prompt.generated]], device=self._device),
            first_mask(context, length)[None, None].to(self._device),
            first_positions(context, length)[None].to(self._device),
            None,
        )
        self._rows.append(past, length)
        self._places.append((context - 1, length - context + 1))
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits, past = self._forward(
            torch.tensor(tokens, device=self._device)[:, None],
            self._rows.empty()[:, None, None, :],
            torch.tensor(self._places, device=self._device)[:, :, None],
            self._rows.past,
        )
        self._rows.advance(past)
        self._places = [(place, block + 1) for place, block in self._places]
        return logits

    def remove(self, row: int) -> None:
        self._rows.remove(row)
        self._places[row] = self._places[-1]
        self._places.pop()

    def clear(self) -> None:
        self._rows.clear()
        self._places = []

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """(logits [rows, vocab], past). The head sees only the last token: all of a long prompt's logits are 0.5 GB."""
        output = self._model.transformer(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            return_dict=True,
        )
        logits: Tensor = self._model.lm_head(output.last_hidden_state[-1]).float()
        return logits, as_past(output.past_key_values)

    def _probe(self, rows: int, tokens: int) -> Past:
        return self._forward(
            torch.zeros(rows, tokens, dtype=torch.int64, device=self._device),
            first_mask(tokens - 1, tokens)[None, None].expand(rows, 1, -1, -1).to(self._device),
            first_positions(tokens - 1, tokens).expand(rows, -1, -1).to(self._device),
            None,
        )[1]


# --- ChatGLM2-6B and ChatGLM3-6B ----------------------------------------------------------------------------------


class LaterDecoder(_TupleDecoder):
    """ChatGLM2 and 3: causal, one position a token, a mask of what is padding."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._rows = PastRows(probe_layout(self._probe))

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        return torch.cat([self._add_one(prompt) for prompt in prompts])

    def _add_one(self, prompt: Prompt) -> Tensor:
        ids = torch.tensor([[*prompt.ids, *prompt.generated]], device=self._device)
        logits, past = self._forward(ids, torch.arange(len(prompt), device=self._device)[None], None, None)
        self._rows.append(past, len(prompt))
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        rows = self._rows
        logits, past = self._forward(
            torch.tensor(tokens, device=self._device)[:, None],
            torch.tensor([[rows.width - pad] for pad in rows.pads], device=self._device),
            (~rows.empty()).long(),
            rows.past,
        )
        rows.advance(past)
        return logits

    def remove(self, row: int) -> None:
        self._rows.remove(row)

    def clear(self) -> None:
        self._rows.clear()

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None, past: Past | None) -> tuple[Tensor, Past]:
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=past,
            use_cache=True,
            return_dict=True,
            return_last_logit=True,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits, as_past(output.past_key_values)

    def _probe(self, rows: int, tokens: int) -> Past:
        ids = torch.zeros(rows, tokens, dtype=torch.int64, device=self._device)
        return self._forward(ids, torch.arange(tokens, device=self._device).expand(rows, -1), None, None)[1]


def probe_layout(run: Callable[[int, int], Past]) -> Layout:
    """Finds the past's layout by two passes of different sizes."""
    with torch.inference_mode():
        return find_layout(run(3, 7)[0][0], run(4, 9)[0][0], rows=(3, 4), tokens=(7, 9))


# --- loading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generation:
    """What sets one generation apart."""

    family: str
    words: str  # the sentencepiece file
    context: str  # the key of config.json with the longest text
    vocabulary: str  # the key with the number of logits
    codec: Callable[[Path], FirstCodec | SecondCodec | ThirdCodec]
    decoder: Callable[[Any, torch.device], Decoder]
    defaults: Defaults


FIRST = Generation(
    *("chatglm-v1", "ice_text.model", "max_sequence_length", "vocab_size"),
    FirstCodec,
    FirstDecoder,
    Defaults(0.95, 0.7, 50),
)
SECOND = Generation(
    *("chatglm-v2", "tokenizer.model", "seq_length", "padded_vocab_size"),
    SecondCodec,
    LaterDecoder,
    Defaults(0.8, 0.8, 50),
)
THIRD = Generation(
    *("chatglm-v3", "tokenizer.model", "seq_length", "padded_vocab_size"),
    ThirdCodec,
    LaterDecoder,
    Defaults(0.8, 0.8, 50),
)


def generation_of(directory: Path, config: dict[str, Any]) -> Generation:
    """Which generation a directory is; raises LoadError with what is missing or unsupported."""
    missing = [name for name in CODE if not (directory / name).is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise LoadError(f"{directory}: model_type chatglm needs its own code; {' and '.join(missing)} {verb} missing")
    if config.get("pre_seq_len"):
        words = "P-tuning checkpoints (pre_seq_len) are not supported: a prefix is no weight, so it cannot be merged"
        raise LoadError(f"{directory}: {words}; serve the model that was tuned, without its prefix")
    if "inner_hidden_size" in config or "position_encoding_2d" in config:
        found = FIRST
    else:
        tokenization = directory / "tokenization_chatglm.py"
        text = tokenization.read_text(encoding="utf-8") if tokenization.is_file() else ""
        if "tiktoken" in text:
            raise LoadError(f"{directory}: GLM-4's remote code is not supported; use the directory ending in -hf")
        # The configurations of the two are alike; only their tokenizers say whether dialogues have roles.
        found = THIRD if "<|user|>" in text else SECOND
    if not (directory / found.words).is_file():
        raise LoadError(f"{directory}: {found.words} is missing, without which there are no words")
    return found


def load(directory: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device, bits: int) -> LoadedModel:
    """Loads a remote-code model, running the code in its directory; raises LoadError."""
    generation = generation_of(directory, config)
    parsed = AutoConfig.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
    context = int(config[generation.context])
    # What the code expects of older releases of transformers.
    parsed.max_length = context
    kind: Any = get_class_from_dynamic_module(MODEL_CLASS, str(directory), local_files_only=True)
    if not hasattr(kind, "all_tied_weights_keys"):
        kind.all_tied_weights_keys = {}
    model, info = kind.from_pretrained(
        directory, config=parsed, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    check_loading(info, directory)
    model = _on_device(model.to(dtype), device, bits).eval()
    codec = generation.codec(directory)
    decoder = generation.decoder(model, device)
    return LoadedModel(
        family=generation.family,
        codec=codec,
        decoder=decoder,
        device=device,
        dtype=dtype,
        context=context,
        vocabulary=int(config[generation.vocabulary]),
        ends=codec.ends,
        defaults=generation.defaults,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        # Twice: the code makes a longer past beside the old one at every step.
        kv_bytes_per_token=2 * _measure(decoder),
        batched_prefill=False,
    )


def _on_device(model: Any, device: torch.device, bits: int) -> Any:
    """The model on its device, quantised by its own code if asked to.

    Any failure there is the end: after a failed quantize(8), quantize(4) returns as if it had worked, and has not.
    """
    if bits:
        try:
            model = model.half().quantize(bits)
        except Exception as error:
            words = (
                f"QUANTIZE={bits} failed ({type(error).__name__}: {error}); its kernels need: pip install cpm_kernels"
            )
            raise LoadError(words) from error
    return model.to(device)


def _measure(decoder: Any) -> int:
    with torch.inference_mode():
        return bytes_per_token(decoder._probe(1, 8), 8)
