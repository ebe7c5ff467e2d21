"""What looking after 8 GPUs costs: the process that asks NVML, and the daemon beside itself without GPUs.

    python bench/gpus.py [--seconds 60] [--cards 8]

Starts a daemon of its own with two stand-ins as plain processes, once with `gpu.mode = "off"` and once with the double
of NVML (tests/doubles/nvml), on loopback in a temporary folder. On real cards a round costs more, in the driver. Exits
1 where both together cost 0.2 % of a core (the promise), 2 where something does not run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # what starts a daemon is the tests' own

from bench.daemon import SETTLE_S, STANDIN, free_ports  # noqa: E402
from tests.doubles.nvml.cards import NvmlDouble, build_library  # noqa: E402
from tests.real.daemon import Daemon, Settings, as_processes, daemon  # noqa: E402

PROMISED = 0.002


def used(process: psutil.Process) -> float:
    """Seconds of CPU so far."""
    return float(sum(process.cpu_times()[:2]))


def shares(host: Daemon, seconds: float) -> tuple[float, float]:
    """The shares of a core that the daemon and the process that asks NVML (0 where there is none) have used."""
    host.wait_until_green(2)
    time.sleep(SETTLE_S)
    own = psutil.Process(host.pid)
    asks = [child for child in own.children() if "gpu_child.py" in " ".join(child.cmdline())]
    before, began = [used(own), *map(used, asks)], time.monotonic()
    time.sleep(seconds)
    spent = time.monotonic() - began
    after = [used(own), *map(used, asks)]
    return (after[0] - before[0]) / spent, sum(after[1:], 0.0) / spent - sum(before[1:], 0.0) / spent


def main() -> int:
    parser = argparse.ArgumentParser(description="What looking after GPUs costs.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is watched")
    parser.add_argument("--cards", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chatglm-ha-") as folder:
        double = NvmlDouble(Path(folder) / "nvml", build_library(Path(folder) / "library"), options.cards)
        found: dict[str, tuple[float, float]] = {}
        for mode, env in (("off", {}), ("auto", dict(double.environment))):
            gpu: Settings = {"gpu": {"mode": mode}}
            with daemon(free_ports(20), as_processes(STANDIN), gpu) as host:
                host.start(env=env)
                found[mode] = shares(host, options.seconds)
    without, (own, asks) = found["off"][0], found["auto"]
    cost = asks + max(0.0, own - without)
    print(f"the process that asks NVML of {options.cards} cards: {100 * asks:.3f} % of a core")
    print(f"the daemon: {100 * own:.3f} %, without GPUs {100 * without:.3f} %")
    print(f"together: {100 * cost:.3f} % of a core ({options.seconds:g} s each, {os.cpu_count()} processors)")
    if cost >= PROMISED:
        print("polling costs more than 0.2 % of a core", file=sys.stderr)
    return 1 if cost >= PROMISED else 0


if __name__ == "__main__":
    sys.exit(main())
