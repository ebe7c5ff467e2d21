"""How much may run at once: rows, and the memory that is held for their past."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable

from model_api.backends.base import Decoder

REGAIN_STEPS = 256  # steps after which a little more is tried again when memory had run out
REGAIN_PARTS = 8  # in so many parts the tokens come back
RELEARN_STEPS = 64 * REGAIN_STEPS  # steps after which a length that did not fit alone may be tried again, or ...
RELEARN_S = 600.0  # ... seconds: whoever gets long prompts alone makes no steps while they are refused


class Budget:
    """Rows that may run together, tokens of past that may be held for all, and tokens that a single row may have.

    All are less for a while after memory ran out. What counts is what the decoder holds, room to grow included. Belongs
    to the engine's thread; others only read.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: int,
        tokens: int,
        context: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decoder = decoder
        self._all_rows, self._all_tokens = rows, tokens
        self._whole = bisect_right(range(context + 1), tokens, key=lambda length: decoder.cells(1, length)) - 1
        self.rows = rows
        self.tokens = tokens
        self._clock = clock
        self._longest = self._whole
        self._steps = 0
        self._shortened = 0  # the step at which `longest` was last made less, and when
        self._shortened_at = 0.0
        decoder.bound(tokens)

    @property
    def longest(self) -> int:
        """Tokens that a single row may have, as far as is known now."""
        if self._longest < self._whole and self._clock() - self._shortened_at >= RELEARN_S:
            return self._whole
        return self._longest

    def holds(self, rows: int, longest: int) -> bool:
        """Whether so many rows, the longest of `longest` tokens, can have one more token each."""
        return self._decoder.cells(rows, longest + 1) <= self.tokens

    def stepped(self) -> None:
        """A pass has succeeded: now and then a little more is allowed again."""
        self._steps += 1
        if self._steps % REGAIN_STEPS:
            return
        self.rows = min(self._all_rows, self.rows + 1)
        self._allow(min(self._all_tokens, self.tokens + -(-self._all_tokens // REGAIN_PARTS)))
        if self._steps - self._shortened >= RELEARN_STEPS:
            self._longest = self._whole

    def ran_out(self, rows: int, longest: int, running: int) -> None:
        """Memory ran out with so many rows, `running` of which still run: less is promised from now on."""
        size = self._decoder.cells(rows, longest + 1)
        self.rows = max(1, rows // 2, running)
        self._allow(max(min(self.tokens, size * 9 // 10), self._decoder.cells(1, self.longest)))

    def does_not_hold(self, length: int) -> None:
        """A row of `length` tokens did not fit even alone: none so long is taken from now on."""
        self._longest = max(1, min(self.longest, length * 9 // 10))
        self._shortened, self._shortened_at = self._steps, self._clock()

    def _allow(self, tokens: int) -> None:
        if tokens != self.tokens:
            self.tokens = tokens
            self._decoder.bound(tokens)
