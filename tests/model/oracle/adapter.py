"""The oracle: ChatGLM-6B, 2 and 3 through the code in their directories, by its forward passes alone.

The server once ran them so; now only tests do, where somebody has that code. Its chat(), generate() and tokenizers work
with no one version of transformers between them; forward() with a tuple as the past works with all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from model_api.backends.base import Codec, Defaults, LoadedModel, Prompt
from model_api.backends.checks import check_loading
from tests.model.oracle.tuples import Layout, Past, PastRows, as_past, find_layout

MODEL_CLASS = "modeling_chatglm.ChatGLMForConditionalGeneration"


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


def load_remote(directory: Path, config: dict[str, Any], codec: Codec) -> LoadedModel:
    """The model of a directory through the code in it, float32 on the CPU, with `codec` for its words."""
    first = "inner_hidden_size" in config
    parsed = AutoConfig.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
    context = int(config["max_sequence_length" if first else "seq_length"])
    # What the code expects of older releases of transformers.
    parsed.max_length = context
    kind: Any = get_class_from_dynamic_module(MODEL_CLASS, str(directory), local_files_only=True)
    if not hasattr(kind, "all_tied_weights_keys"):
        kind.all_tied_weights_keys = {}
    model, info = kind.from_pretrained(
        directory, config=parsed, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    check_loading(info, directory)
    model = model.float().eval()
    device = torch.device("cpu")
    return LoadedModel(
        family="oracle",
        codec=codec,
        decoder=FirstDecoder(model, device) if first else LaterDecoder(model, device),
        device=device,
        dtype=torch.float32,
        context=context,
        vocabulary=int(config["vocab_size" if first else "padded_vocab_size"]),
        ends=codec.ends,  # type: ignore[attr-defined]
        defaults=Defaults(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        kv_bytes_per_token=1,
        batched_prefill=False,
    )
