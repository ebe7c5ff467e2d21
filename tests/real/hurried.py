"""The daemon itself, but for what has to last minutes on a card before it is said: here that takes seconds."""

from __future__ import annotations

import sys

from hasupervisor.daemon import main
from hasupervisor.decide.gpu import judge

if __name__ == "__main__":
    judge.SLICE = 1.1  # of seconds: more than the second between two figures
    judge.LEAK_SETTLES = 1.0
    sys.exit(main())
