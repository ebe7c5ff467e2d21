"""P-Tuning v2: a trained past, the same for every row, that stands in front of its first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model_api.backends.base import LoadError
from model_api.backends.weights import open_tensors, read_file

PLACE = "prefix_encoder."


@dataclass(frozen=True, slots=True)
class Prefix:
    """`layers`: each layer's keys and values, [heads, columns, dim]; `columns`: tokens that they stand for."""

    layers: Sequence[tuple[Tensor, Tensor]]
    columns: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What the base model's past is made of."""

    layers: int
    heads: int  # of keys
    dim: int  # of one head

    @property
    def numbers(self) -> int:
        """How many numbers the past of one token has."""
        return self.layers * 2 * self.heads * self.dim


def prefix_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a checkpoint that belong to its prefix, by their names in it."""
    return {name.rpartition(PLACE)[2]: tensor for name, tensor in tensors.items() if PLACE in name}


def read_prefix(path: Path, shape: Shape, dtype: torch.dtype, device: torch.device) -> Prefix:
    """The prefix of a P-Tuning v2 checkpoint, a directory or its file; raises LoadError."""
    tensors = prefix_tensors(open_tensors(path) if path.is_dir() else read_file(path))
    if not tensors:
        raise LoadError(f"PTUNING_PATH={path}: no prefix in it: no tensor's name has {PLACE!r}")
    return make_prefix(tensors, str(path), shape, dtype, device)


def make_prefix(
    tensors: Mapping[str, Tensor], origin: str, shape: Shape, dtype: torch.dtype, device: torch.device
) -> Prefix:
    """The past that a prefix's tensors make, with their projection where they have one; raises LoadError."""
    embedding = tensors.get("embedding.weight")
    projection = [tensors.get(f"trans.{place}.{kind}") for place in (0, 2) for kind in ("weight", "bias")]
    if embedding is None or embedding.dim() != 2:
        raise LoadError(f"{origin}: the prefix has no embedding.weight; is the checkpoint whole?")
    past = embedding.float()
    if any(tensor is not None for tensor in projection):
        first, first_bias, second, second_bias = (
            tensor.float() if tensor is not None else None for tensor in projection
        )
        if first is None or second is None or first.shape[1] != past.shape[1] or second.shape[1] != first.shape[0]:
            raise LoadError(f"{origin}: the prefix's projection (trans.0, trans.2) is not whole")
        past = F.linear(torch.tanh(F.linear(past, first, first_bias)), second, second_bias)
    if past.shape[1] != shape.numbers:
        raise LoadError(
            f"{origin}: the prefix was made for another model: {past.shape[1]} numbers a token, where this one takes "
            f"{shape.numbers} ({shape.layers} layers x 2 x {shape.heads} heads x {shape.dim}); set MODEL_PATH to the "
            "model that it was trained on"
        )
    columns = past.shape[0]
    parts = past.to(device, dtype).view(columns, shape.layers, 2, shape.heads, shape.dim).permute(1, 2, 3, 0, 4)
    return Prefix([(part[0].contiguous(), part[1].contiguous()) for part in parts], columns)
