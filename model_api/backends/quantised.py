"""Weights as whole numbers of 8 or 4 bits with one scale a row: the format of the published INT8 and INT4 directories.

The kernels that came with those directories do not run on newer GPUs. Here a weight is multiplied out by torch's own
operations just before it is used: the memory is theirs, on every device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quantise(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(whole numbers, scales of `dtype`) of a matrix: each row's largest weight becomes the largest number.

    With 4 bits two neighbours share a byte, the first in its upper half. Columns must then be even in number.
    """
    most = 2 ** (bits - 1) - 1
    scale = (weight.float().abs().amax(dim=-1) / most).to(dtype)
    scale = torch.where(scale == 0, 1, scale)
    whole = (weight.float() / scale.float()[:, None]).round().clamp(-most - 1, most).to(torch.int8)
    if bits == 4:
        whole = (whole[:, 0::2] << 4) | (whole[:, 1::2] & 0x0F)
    return whole, scale


def unpack(whole: Tensor, bits: int) -> Tensor:
    """The whole numbers one by one, int8: from 4 bits a row becomes twice as long."""
    if bits == 8:
        return whole
    return torch.stack((whole >> 4, (whole << 4) >> 4), dim=-1).flatten(-2)


def dequantise(whole: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The matrix that (whole, scale) stand for, float32."""
    return unpack(whole, bits).float() * scale.float()[:, None]


class RowQuantised(nn.Module):
    """A linear layer whose weight is kept as whole numbers; like torch's Linear otherwise."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, like: nn.Linear, bits: int) -> None:
        super().__init__()
        self.bits = bits
        rows, columns = like.weight.shape
        self.register_buffer("weight", torch.empty(rows, columns * bits // 8, dtype=torch.int8, device="meta"))
        self.register_buffer("weight_scale", torch.empty(rows, device="meta"))
        self.bias: nn.Parameter | None = like.bias

    @property
    def count(self) -> int:
        """Weights and biases, each counted once however small it is."""
        return self.weight.numel() * 8 // self.bits + (0 if self.bias is None else self.bias.numel())

    def forward(self, hidden: Tensor) -> Tensor:
        weight = unpack(self.weight, self.bits).to(hidden.dtype) * self.weight_scale[:, None]
        return F.linear(hidden, weight, self.bias)


def make_quantised(layers: nn.Module, bits: int) -> None:
    """Replaces every linear layer below `layers` by a RowQuantised one without values."""
    for module in list(layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, RowQuantised(child, bits))


def count_parameters(model: nn.Module) -> int:
    """The model's parameters, those kept as whole numbers among them."""
    whole = [module for module in model.modules() if isinstance(module, RowQuantised)]
    biases = sum(module.bias.numel() for module in whole if module.bias is not None)
    return sum(module.count for module in whole) + sum(p.numel() for p in model.parameters()) - biases
