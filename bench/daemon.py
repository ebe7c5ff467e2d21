"""What the daemon costs at rest: its share of a core and its memory, with 8 instances and then with 64.

    python bench/daemon.py [--seconds 60] [--instances 8 64] [--docker]

Starts a daemon of its own with the stand-in model server as plain processes (--docker: as containers of a dockerd of
its own, which needs root) behind an nginx of its own, all on loopback in a temporary folder, and nobody asks them
anything: what is measured is looking after them. Beside it stands the memory of a dockerd, where one runs. Exits 1
where 8 instances cost 1 % of a core or 80 MB (the promise), 2 where something does not run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # what starts a daemon is the tests' own

from tests.real import images  # noqa: E402
from tests.real.conftest import Claims, is_free  # noqa: E402
from tests.real.daemon import Daemon, Settings, as_processes, daemon, on_docker  # noqa: E402
from tests.real.dockerd import own_dockerd  # noqa: E402

STANDIN = ROOT / "tests" / "real" / "standin" / "server.py"
PROMISED_AT, PROMISED_CPU, PROMISED_BYTES = 8, 0.01, 80e6
FIRST_PORT, LAST_PORT = 20000, 32000
START_S = 180.0
SETTLE_S = 5.0  # the last start is over, its first prompts are answered


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the daemon's process alone."""

    instances: int
    cpu: float  # share of one core
    rss: int  # bytes
    cycles: float  # a second


def measure(host: Daemon, instances: int, seconds: float) -> Cost:
    """Brings the host to so many instances and watches the daemon for so many seconds."""
    if host.status()["desired"] != instances:
        host.hactl("scale", str(instances), timeout=START_S)
    host.wait_until_green(instances, START_S)
    time.sleep(SETTLE_S)
    process = psutil.Process(host.pid)
    cycles = "chatglm_ha_cycle_duration_seconds_count"
    cycled, used, began = host.metrics()[cycles], sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    used, spent = sum(process.cpu_times()[:2]) - used, time.monotonic() - began
    cycled = host.metrics()[cycles] - cycled
    return Cost(instances, used / spent, process.memory_info().rss, cycled / spent)


@contextmanager
def instances_as(docker: bool) -> Iterator[Settings]:
    """Settings for stand-ins, and what they need to run in."""
    if not docker:
        yield as_processes(STANDIN)
        return
    with own_dockerd(Claims()) as engine:
        with engine.client() as client:
            images.build(client)
        yield on_docker(engine, images.STANDIN)
        engine.remove_everything()


def dockerd_bytes() -> int | None:
    """The memory of the largest dockerd of this machine; None where none runs."""
    found = [p.info["memory_info"].rss for p in psutil.process_iter(["name", "memory_info"]) if is_dockerd(p)]
    return max(found, default=None)


def is_dockerd(process: psutil.Process) -> bool:
    return process.info["name"] == "dockerd" and process.info["memory_info"] is not None


def free_ports(count: int) -> range:
    for start in range(FIRST_PORT, LAST_PORT - count, count):
        if all(is_free(port) for port in range(start, start + count)):
            return range(start, start + count)
    print(f"no {count} free ports in a row from {FIRST_PORT} on: ss -ltn", file=sys.stderr)
    raise SystemExit(2)


def table(costs: Sequence[Cost]) -> str:
    lines = [f"{'instances':>9}  {'CPU of a core':>13}  {'RSS':>9}  {'cycles/s':>8}"]
    lines += [f"{c.instances:>9}  {100 * c.cpu:>12.2f}%  {c.rss / 1e6:>6.1f} MB  {c.cycles:>8.2f}" for c in costs]
    dockerd = dockerd_bytes()
    if dockerd is None:
        lines.append("no dockerd runs here to compare with")
    else:
        ratio = costs[0].rss / dockerd
        lines.append(f"a dockerd of this machine: {dockerd / 1e6:.1f} MB; the daemon has {ratio:.2f} of that")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What the daemon costs at rest.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is watched for each count")
    parser.add_argument("--instances", type=int, nargs="+", default=[8, 64], metavar="N", help="counts, ascending")
    parser.add_argument("--docker", action="store_true", help="instances are containers, not plain processes")
    options = parser.parse_args()
    most = max(options.instances)
    service = {"instances": options.instances[0], "max": most, "one_at_a_time": False}
    with instances_as(options.docker) as runtime, daemon(free_ports(most + 8), runtime, {"service": service}) as host:
        host.start()
        costs = []
        for count in options.instances:
            costs.append(measure(host, count, options.seconds))
            print(table(costs[-1:]).splitlines()[1], flush=True)
    print(f"\n{table(costs)}\n({options.seconds:g} s each, {os.cpu_count()} processors)")
    broken = [c for c in costs if c.instances <= PROMISED_AT and (c.cpu >= PROMISED_CPU or c.rss >= PROMISED_BYTES)]
    for cost in broken:
        print(f"{cost.instances} instances cost more than 1 % of a core or 80 MB", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
