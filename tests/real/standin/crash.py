"""An instance that cannot start: says why in a few lines and exits 1."""

from __future__ import annotations

import sys

for number in range(1, 4):
    print(f"loading shard {number} of 3", flush=True)
print("RuntimeError: CUDA error: no kernel image is available for execution on the device", file=sys.stderr, flush=True)
sys.exit(1)
