"""The past of rows as the remote code wants it: a tuple of tensors, all rows equally long, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Past = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which dimension of a past tensor is which; revisions differ."""

    rows: int
    tokens: int


def find_layout(one: Tensor, other: Tensor, rows: tuple[int, int], tokens: tuple[int, int]) -> Layout:
    """The layout, from two pasts of different sizes: the dimensions that changed as rows and tokens did.

    Raises ValueError where they cannot be told apart.
    """
    changed = [
        (place, pair) for place, pair in enumerate(zip(one.shape, other.shape, strict=True)) if pair[0] != pair[1]
    ]
    found = {pair: place for place, pair in changed}
    if len(changed) != 2 or rows not in found or tokens not in found:
        raise ValueError(f"the past has a layout that is not understood: {tuple(one.shape)} and {tuple(other.shape)}")
    return Layout(rows=found[rows], tokens=found[tokens])


class PastRows:
    """Left-padded rows. `pads[r]` columns at the beginning of row r hold nothing."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.past: Past = ()
        self.pads: list[int] = []
        self.width = 0

    def append(self, past: Past, length: int) -> None:
        """Adds a row with a past of `length` tokens, made by a pass of its own."""
        width = max(self.width, length)
        before, beside = width - self.width, width - length
        if self.pads:
            pairs = zip(self.past, past, strict=True)
            past = tuple(
                (self._joined(old[0], before, new[0], beside), self._joined(old[1], before, new[1], beside))
                for old, new in pairs
            )
        self.past, self.width = past, width
        self.pads = [*(pad + before for pad in self.pads), beside if self.pads else 0]

    def advance(self, past: Past) -> None:
        """Takes over the past that a pass over all rows has made one token longer."""
        self.past = past
        self.width += 1

    def remove(self, row: int) -> None:
        """Drops a row, the last one taking its place, and the columns that nobody needs any more."""
        self.pads[row] = self.pads[-1]
        order = list(range(len(self.pads)))
        order[row] = order[-1]
        order.pop()
        self.pads.pop()
        if not self.pads:
            self.clear()
            return
        cut = min(self.pads)
        self.pads = [pad - cut for pad in self.pads]
        index = torch.tensor(order, device=self.past[0][0].device)
        self.past = tuple((self._kept(keys, index, cut), self._kept(values, index, cut)) for keys, values in self.past)
        self.width -= cut

    def clear(self) -> None:
        """Drops all rows."""
        self.past, self.pads, self.width = (), [], 0

    def empty(self) -> Tensor:
        """[rows, width + 1], true where a row holds nothing; the last column is the token to come."""
        pads = torch.tensor(self.pads, device=self.past[0][0].device)
        return torch.arange(self.width + 1, device=pads.device) < pads[:, None]

    def _joined(self, old: Tensor, before: int, new: Tensor, beside: int) -> Tensor:
        return torch.cat([self._padded(old, before), self._padded(new, beside)], self._layout.rows)

    def _padded(self, tensor: Tensor, columns: int) -> Tensor:
        if not columns:
            return tensor
        shape = list(tensor.shape)
        shape[self._layout.tokens] = columns
        return torch.cat([tensor.new_zeros(shape), tensor], self._layout.tokens)

    def _kept(self, tensor: Tensor, index: Tensor, cut: int) -> Tensor:
        rows = tensor.index_select(self._layout.rows, index)
        return rows.narrow(self._layout.tokens, cut, rows.shape[self._layout.tokens] - cut)


def as_past(layers: Sequence[Sequence[Tensor]]) -> Past:
    """Whatever the code returns as its past, as a tuple of (keys, values)."""
    return tuple((layer[0], layer[1]) for layer in layers)
