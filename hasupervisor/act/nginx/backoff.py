"""When a thing that failed is tried again."""

from __future__ import annotations

import time
from dataclasses import dataclass

FIRST_S = 1.0
MAX_S = 10.0


@dataclass(slots=True)
class Backoff:
    """1 s, doubling to 10 s."""

    retry_at: float | None = None  # monotonic; None: nothing has failed
    failures: int = 0

    def fail(self) -> None:
        self.retry_at = time.monotonic() + min(FIRST_S * 2**self.failures, MAX_S)
        self.failures = min(self.failures + 1, 10)

    def try_at_once(self) -> None:
        """Something has changed; if it still fails, the wait goes on from where it was."""
        if self.retry_at is not None:
            self.retry_at = time.monotonic()

    def clear(self) -> None:
        self.retry_at, self.failures = None, 0
