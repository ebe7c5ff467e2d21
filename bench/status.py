"""How long `chatglm-hactl status` takes, as a whole process, against `docker ps` in the same run.

    python bench/status.py [--socket PATH] [--runs 40]

Needs a running daemon and a running dockerd; the programs take turns, so that both meet the same machine. Prints the
median and the 95th percentile of the wall time in milliseconds, and the ratio of the medians. Exits 1 where the median
of `status` is not under 100 ms (the promise), 2 where something does not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles

PROMISE_MS = 100.0
ONE_RUN_S = 30.0


def once(command: Sequence[str], env: Mapping[str, str]) -> float:
    """The wall time of one whole process in milliseconds; its failure ends the measurement."""
    began = time.perf_counter()
    result = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=ONE_RUN_S)
    took = (time.perf_counter() - began) * 1000
    if result.returncode != 0:
        print(f"{' '.join(command)} ended with {result.returncode}:", file=sys.stderr)
        print(result.stderr.decode(errors="replace"), file=sys.stderr)
        raise SystemExit(2)
    return took


def programs() -> dict[str, list[str]]:
    """What is measured: the tool beside this Python, docker, and what Python itself costs."""
    beside = Path(sys.executable).parent / "chatglm-hactl"
    tool = str(beside) if beside.exists() else shutil.which("chatglm-hactl")
    docker = shutil.which("docker")
    for name, found in (("chatglm-hactl", tool), ("docker", docker)):
        if found is None:
            print(f"there is no {name} on PATH", file=sys.stderr)
            raise SystemExit(2)
    return {
        "chatglm-hactl status": [str(tool), "status"],
        "docker ps": [str(docker), "ps"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Latency of chatglm-hactl status against docker ps.")
    parser.add_argument("--socket", help="the daemon's control socket; else CHATGLM_HA_SOCKET or the installed one")
    parser.add_argument("--runs", type=int, default=40, help="runs of each program, after two that are not counted")
    options = parser.parse_args()
    env = {**os.environ, **({"CHATGLM_HA_SOCKET": options.socket} if options.socket else {})}
    measured = programs()
    for command in list(measured.values()) * 2:  # files into the page cache, bytecode onto the disk
        once(command, env)
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.runs):
        for name, command in measured.items():
            times[name].append(once(command, env))
    for name, found in times.items():
        print(f"{name:<22} median {median(found):6.1f} ms   p95 {quantiles(found, n=20)[-1]:6.1f} ms")
    status, ps = median(times["chatglm-hactl status"]), median(times["docker ps"])
    print(f"status / docker ps     {status / ps:.2f}   ({options.runs} runs each, {os.cpu_count()} processors)")
    if status >= PROMISE_MS:
        print(f"status is not under {PROMISE_MS:g} ms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
