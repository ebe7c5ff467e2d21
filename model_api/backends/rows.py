"""The past of rows that are decoded together: one buffer a layer, each row as long as it is, written in place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from model_api.backends.prefix import Prefix

COLUMNS = 64  # buffers grow by this many tokens, so that they are copied rarely


class _Plan:
    """What the forward pass now running does to the rows; shared by all layers of one cache."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # tokens each row holds
        self.rows_held = 0  # the buffers' size: rows and columns
        self.columns_held = 0
        self.bound = sys.maxsize  # rows x columns that may be held
        self.joining = 0  # rows that this pass begins; 0: it adds one token to every row
        self.width = 0  # columns in use after this pass
        self.rows: Tensor | None = None  # [rows] 0, 1, 2, ...; the index of every row
        self.positions: Tensor | None = None  # [rows] the column each row writes

    def fit(self, rows: int, columns: int) -> None:
        """Chooses the buffers' size: grown by steps and given back when a quarter would do, inside the bound.

        Where the bound leaves no room for that, the buffers are no larger than the rows need.
        """
        wanted = _rounded(columns)
        power = 1 << (rows - 1).bit_length()
        held = self.rows_held if rows <= self.rows_held < 4 * power else power
        width = self.columns_held if wanted <= self.columns_held < 4 * wanted else wanted
        if held * width > self.bound:
            held, width = (power if power * wanted <= self.bound else rows), wanted
        self.rows_held, self.columns_held = held, width


def _rounded(columns: int) -> int:
    return -(-columns // COLUMNS) * COLUMNS


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, [rows held, heads, columns held, dim]; row r is filled up to its own length.

    Cells past a row's length are masked from attention but still multiplied by a weight of zero, so they must be
    finite: a row that begins is cleared to its end.
    """

    is_sliding = False

    def __init__(self, plan: _Plan, prefix: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan
        self._prefix = prefix  # keys and values, [heads, columns, dim], with which every row begins

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        plan = self._plan
        self.keys = self._resized(None, key_states, plan)
        self.values = self._resized(None, value_states, plan)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @staticmethod
    def _resized(old: Tensor | None, like: Tensor, plan: _Plan) -> Tensor:
        heads, dim = like.shape[1], like.shape[3]
        if old is not None and (old.shape[0], old.shape[2]) == (plan.rows_held, plan.columns_held):
            return old
        new = like.new_zeros(plan.rows_held, heads, plan.columns_held, dim)
        if old is not None:
            rows, columns = min(old.shape[0], new.shape[0]), min(old.shape[2], new.shape[2])
            new[:rows, :, :columns] = old[:rows, :, :columns]
        return new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        plan = self._plan
        if plan.joining and self._prefix:
            key_states, value_states = (
                torch.cat((before.expand(plan.joining, -1, -1, -1), states), dim=2)
                for before, states in zip(self._prefix, (key_states, value_states), strict=True)
            )
        self.keys = self._resized(self.keys, key_states, plan)
        self.values = self._resized(self.values, value_states, plan)
        self.is_initialized = True
        if plan.joining:
            first, length = len(plan.lengths), key_states.shape[2]
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer[first : first + plan.joining, :, :length] = states
                buffer[first : first + plan.joining, :, length:] = 0
            return key_states, value_states
        count = len(plan.lengths)
        self.keys[plan.rows, :, plan.positions] = key_states[:, :, 0]
        self.values[plan.rows, :, plan.positions] = value_states[:, :, 0]
        return self.keys[:count, :, : plan.width], self.values[:count, :, : plan.width]

    def move(self, source: int, target: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys[target] = self.keys[source]
            self.values[target] = self.values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self._plan.joining else self._plan.width), 0

    def get_seq_length(self) -> int:
        return 0 if self._plan.joining else self._plan.width - 1

    def get_max_length(self) -> int:
        return -1

    def bytes_per_token(self) -> int:
        if self.keys is None or self.values is None:
            return 0
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in (self.keys, self.values))


class RowCache:
    """All layers' rows, and what each forward pass needs to know of them."""

    def __init__(self, layers: int, device: torch.device, prefix: Prefix | None = None) -> None:
        self._device = device
        self._plan = _Plan()
        self._prefix = prefix.columns if prefix else 0
        pairs = prefix.layers if prefix else [None] * layers
        self._layers = [_Layer(self._plan, pair) for pair in pairs]
        self.cache = Cache(layers=list(self._layers))

    @property
    def lengths(self) -> Sequence[int]:
        """Columns held by each row: the prefix's, then one for each token."""
        return self._plan.lengths

    def begin_rows(self, lengths: Sequence[int]) -> None:
        """Prepares a pass over the prompts of new rows, `lengths` tokens each, right-padded to the longest."""
        plan = self._plan
        plan.joining = len(lengths)
        longest = self._prefix + max(lengths, default=0)
        plan.fit(len(plan.lengths) + len(lengths), max([*plan.lengths, longest]) + 1)

    def commit_rows(self, lengths: Sequence[int]) -> None:
        """Makes the rows of `begin_rows` real, once the pass has succeeded."""
        self._plan.lengths.extend(self._prefix + length for length in lengths)

    def behind_prefix(self, mask: Tensor) -> Tensor:
        """A mask of a pass over prompts, [rows, 1, tokens, tokens], made wider by the prefix, which all may see."""
        if not self._prefix:
            return mask
        return torch.cat((mask.new_ones(*mask.shape[:3], self._prefix), mask), dim=3)

    @property
    def prefix(self) -> int:
        """Columns with which every row begins that belong to no token: with them prompts need a mask of their own."""
        return self._prefix

    def begin_step(self) -> tuple[Tensor, Tensor | None]:
        """Prepares a pass that adds one token to every row: (positions [rows, 1], mask [rows, 1, 1, width] or None).

        Positions count tokens, not columns: the prefix has none. The mask is true where a row may look; None where
        every row fills the whole width.
        """
        plan = self._plan
        plan.joining = 0
        plan.width = max(plan.lengths) + 1
        plan.fit(len(plan.lengths), plan.width)
        positions = torch.tensor(plan.lengths, device=self._device)
        plan.positions = positions
        plan.rows = torch.arange(len(plan.lengths), device=self._device)
        if min(plan.lengths) + 1 == plan.width:
            return positions[:, None] - self._prefix, None
        mask = torch.arange(plan.width, device=self._device) <= positions[:, None]
        return positions[:, None] - self._prefix, mask[:, None, None, :]

    def commit_step(self) -> None:
        """Counts the token that `begin_step`'s pass has written, once it has succeeded."""
        self._plan.lengths = [length + 1 for length in self._plan.lengths]

    def remove(self, row: int) -> None:
        """Drops a row; the last one takes its place. The last row dropped gives all memory back."""
        last = len(self._plan.lengths) - 1
        if row != last:
            for layer in self._layers:
                layer.move(last, row)
            self._plan.lengths[row] = self._plan.lengths[last]
        self._plan.lengths.pop()
        if not self._plan.lengths:
            self.clear()

    def clear(self) -> None:
        """Drops all rows and their memory."""
        self._plan.lengths = []
        self._plan.rows_held = self._plan.columns_held = 0
        for layer in self._layers:
            layer.keys = layer.values = None
            layer.is_initialized = False

    def cells(self, rows: int, longest: int) -> int:
        """Tokens that are held, at least, for so many rows of which the longest has `longest`; the prefix counts."""
        return rows * _rounded(self._prefix + longest)

    def bound(self, tokens: int) -> None:
        """Holds no more than so many tokens from the next pass on, where `cells` allows it."""
        self._plan.bound = tokens

    def held(self) -> int:
        """Tokens that the buffers have room for."""
        return self._plan.rows_held * self._plan.columns_held

    def bytes_per_token(self) -> int:
        """Memory of one token of one row, all layers together; known after the first pass."""
        return sum(layer.bytes_per_token() for layer in self._layers)
