"""How the daemon writes moments for others: RFC 3339 in UTC."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_LAST_MOMENT = 253402300799.0  # of the year 9999: what RFC 3339 can write


def timestamp(wall: float) -> str:
    """RFC 3339 in UTC with milliseconds and `Z`; what is beyond its years becomes the nearest moment within."""
    seconds = min(max(wall, 0.0), _LAST_MOMENT) if math.isfinite(wall) else 0.0
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
