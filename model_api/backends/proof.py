"""Is a model decoded right? Proven when it is loaded, by a few short passes, for every model alike.

Rows of different lengths decoded together, each alone, and each in one pass without a past must give the same. Where
they do not, an architecture has something that rows of a common cache do not have: positions that depend on other rows,
a state beside the cache, a mask of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_api.backends.base import LoadedModel, LoadError, Prompt
from model_api.faults import Fault, classify, first_line

STEPS = 2
LONGEST = 24  # tokens of a prompt: enough for rows to differ in length, and no load to speak of
TEXTS = ("Hi", "你好，请介绍一下你自己。 The quick brown fox jumps over the lazy dog, 123 times.")

# Root mean square difference of two passes' logits over their spread: rounding stays well below, and a wrong mask or
# position does not. Half precision rounds more, and the more so in models whose weights are whole numbers.
TOLERANCE = {torch.float32: 0.02}
TOLERANCE_HALF = 0.2


TRIES_HALF = 3
"""Pairs of prompts in half precision: where rounding chooses another expert, one pair alone proves nothing."""


def prove(model: LoadedModel) -> None:
    """Raises LoadError unless rows together, alone and without a past give the same tokens."""
    tries = 1 if model.dtype in TOLERANCE else TRIES_HALF
    for number in range(tries):
        try:
            _prove_by(model, _prompts(model, number))
            return
        except LoadError:
            if number == tries - 1:
                raise


def _prove_by(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> None:
    trouble: str | None = None
    try:
        with torch.inference_mode():
            _prove(model, prompts)
    except LoadError:
        raise
    except Exception as error:
        if classify(error) is not Fault.OTHER:
            raise
        trouble = first_line(error)
    finally:
        model.decoder.clear()
    if trouble:
        raise LoadError(f"{_cannot(model)}: {trouble}")


def _cannot(model: LoadedModel) -> str:
    return f"{model.family}: this server cannot decode this architecture in rows of different lengths"


def _prompts(model: LoadedModel, number: int = 0) -> list[list[int]]:
    """Two prompts of clearly different lengths, the first pair in the model's own words where they make such."""
    if number:
        return [[token % model.vocabulary for token in range(31 * number, 31 * number + size)] for size in (3, 11)]
    most = min(LONGEST, model.context // 2)
    short, long = (model.codec.encode(text)[:most] for text in TEXTS)
    if 0 < len(short) < len(long) - 3 and max(*short, *long) < model.vocabulary:
        return [short, long]
    return [[token % model.vocabulary for token in range(3, 3 + size)] for size in (3, 11)]


def _prove(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> None:
    together = _passes(model, prompts, None)
    said = [[int(step[row].argmax()) for step in together] for row in range(len(prompts))]
    for row, prompt in enumerate(prompts):
        # The same tokens read in one pass, without a past.
        whole = model.decoder.add([Prompt(prompt, said[row][:STEPS])])
        model.decoder.clear()
        _compare(model, together[-1][row], whole[0], "together with another row and without a cache")
    # The shorter one is the one that others can disturb.
    alone = _passes(model, prompts[:1], said[:1])
    for step, single in zip(together, alone, strict=True):
        _compare(model, step[0], single[0], "together with another row and alone")


def _passes(
    model: LoadedModel, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]] | None
) -> list[Tensor]:
    """The logits after the prompts and after each of STEPS tokens: those given, else the likeliest."""
    found = [model.decoder.add([Prompt(prompt) for prompt in prompts])]
    for step in range(STEPS):
        chosen = found[-1].argmax(-1).tolist() if tokens is None else [row[step] for row in tokens]
        found.append(model.decoder.step(chosen))
    model.decoder.clear()
    return found


def _compare(model: LoadedModel, one: Tensor, other: Tensor, when: str) -> None:
    if not bool(torch.isfinite(one).all() & torch.isfinite(other).all()):
        raise LoadError(
            f"{model.family}: the model gives no numbers (NaN or infinity): its weights are damaged, or are too large "
            f"for {str(model.dtype).removeprefix('torch.')}; set DTYPE=bfloat16 or float32, or copy the weights again"
        )
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE_HALF)
    spread = float(other.std()) or 1.0
    apart = float((one - other).square().mean().sqrt()) / spread
    # A tie may fall either way; what is clearly the likeliest may not.
    lost = float(other.max() - other[one.argmax()]) / spread
    if not apart <= tolerance or not lost <= 10 * tolerance:
        raise LoadError(
            f"{_cannot(model)}: it answers differently {when} (logits differ by {apart:.2g} of their spread); "
            "serve it with an engine that knows it (vLLM, SGLang), which chatglm-ha supervises as well"
        )
