"""The whole host's CPU and memory use, as the original monitor recorded them."""

from __future__ import annotations

import psutil


class Machine:
    """What is used since the last look. One look costs well under a millisecond."""

    def __init__(self) -> None:
        self.look()  # the first says nothing: it has nothing to compare with

    def look(self) -> tuple[float | None, float | None]:
        """Percent of all cores in use since the last look, and of the memory now. None: they cannot be read now."""
        try:
            return float(psutil.cpu_percent(None)), float(psutil.virtual_memory().percent)
        except OSError:  # no descriptor is left to read them with
            return None, None
