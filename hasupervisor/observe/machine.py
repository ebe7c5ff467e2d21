"""The whole host's CPU and memory use, as the original monitor recorded them."""

from __future__ import annotations

import psutil


class Machine:
    """What is used since the last look. One look costs well under a millisecond."""

    def __init__(self) -> None:
        psutil.cpu_percent(None)  # the first says nothing: it has nothing to compare with

    def look(self) -> tuple[float, float]:
        """Percent of all cores in use since the last look, and of the memory now."""
        return float(psutil.cpu_percent(None)), float(psutil.virtual_memory().percent)
