"""The real server with little patience: `python impatient_server.py SECONDS`, for heads, for bodies and for readers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from model_api import bodies, connections
from model_api.__main__ import _leave, main

if __name__ == "__main__":
    seconds = float(sys.argv[1])
    connections.HEAD_TIMEOUT = connections.READ_TIMEOUT = connections.LINGER = seconds
    bodies.Bodies.SECONDS = seconds
    _leave(main([]))
