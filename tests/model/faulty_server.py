"""The real server with one fault built into its decoder: `python faulty_server.py FAULT`.

A fault waits for a request of exactly FAULTY_TOKENS tokens to run, so that the warm-up and other requests are well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from model_api.__main__ import _leave, main
from model_api.backends import native
from model_api.backends.base import Prompt

FAULTY_TOKENS = 40  # a prompt of at least so many tokens brings the fault
SLOW_S = 1.5


def poisoned(decoder: native.RowDecoder) -> None:
    """What CUDA says when a kernel has failed, now and at every later call."""
    raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")


def out_of_memory(decoder: native.RowDecoder) -> None:
    """Too little memory for this request, whatever else runs."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def hung(decoder: native.RowDecoder) -> None:
    """A kernel that never ends."""
    time.sleep(3600)


def query_of_death(decoder: native.RowDecoder) -> None:
    """What a prompt does that the model's code cannot take."""
    raise IndexError("index out of range in self")


def broken(decoder: native.RowDecoder) -> None:
    """From now on nothing works any more, whatever is asked."""
    FaultyDecoder.is_broken = True


def slow(decoder: native.RowDecoder) -> None:
    """A long prompt on a small machine."""
    time.sleep(SLOW_S)


FAULTS = {each.__name__: each for each in (poisoned, out_of_memory, hung, query_of_death, broken, slow)}


class FaultyDecoder(native.RowDecoder):
    """Meets its fault in the step after a long prompt has joined."""

    fault = staticmethod(FAULTS[sys.argv[1]])
    is_broken = False

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        if any(len(prompt.ids) >= FAULTY_TOKENS for prompt in prompts):
            self.fault(self)
        if self.is_broken:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")
        return super().add(prompts)


if __name__ == "__main__":
    native.RowDecoder = FaultyDecoder  # type: ignore[misc]
    _leave(main([]))
