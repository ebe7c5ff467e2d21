"""Both policies over shapes of load, in virtual time: how soon they step, how long requests wait, what it costs.

    PYTHONPATH=. python bench/scaling.py [--shape NAME] [--seed N] [--rows]

Instances have 4 slots of half a second each (8 requests/s), start in 60 s one after another, and are 2 to 6; the rules
are the defaults. The queue model is the one of `chatglm-hactl autoscale replay`. Exits 1 where `concurrency` does not
stay at the minimum while the service idles with long answers, or a policy goes to and fro under an even load.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from hasupervisor.decide.autoscale.facts import Rules
from hasupervisor.decide.autoscale.replay import Host, Row, Total, Traffic, replay

HOUR = 3600.0
SLOTS, WORK_S, LOAD_S = 4, 0.5, 60.0
ONE = SLOTS / WORK_S  # requests a second that one instance can answer
POLICIES = ("thresholds", "concurrency")


@dataclass(frozen=True)
class Shape:
    """Requests a second over time."""

    name: str
    seconds: float
    qps: Callable[[float], float]
    work_s: float = WORK_S

    def trace(self) -> list[Traffic]:
        return [Traffic(float(at), self.qps(float(at)), self.work_s) for at in range(0, int(self.seconds), 5)]


def diurnal(at: float) -> float:
    """From a tenth at night to three instances' worth at noon."""
    return ONE * (1.6 - 1.4 * math.cos(2 * math.pi * at / (24 * HOUR)))


def flash_sale(at: float) -> float:
    """Three times as many within ten seconds, for ten minutes."""
    rise = min(1.0, max(0.0, (at - 600.0) / 10.0)) if at < 1210.0 else 0.0
    return 1.1 * ONE * (1.0 + 2.0 * rise)


def sawtooth(at: float) -> float:
    """From nothing to four instances' worth in twenty minutes, again and again."""
    return 4.0 * ONE * (at % 1200.0) / 1200.0


SHAPES = (
    Shape("steady", 2 * HOUR, lambda at: 1.2 * ONE),
    Shape("diurnal", 24 * HOUR, diurnal),
    Shape("flash sale", HOUR, flash_sale),
    Shape("sawtooth", 2 * HOUR, sawtooth),
    Shape("idle, 8 s answers", 2 * HOUR, lambda at: 0.1, work_s=8.0),
)


def play(shape: Shape, policy: str, seed: int) -> tuple[list[Row], Total]:
    rules, host = Rules(min=2, max=6, policy=policy), Host(start=2, slots=SLOTS, load_s=LOAD_S)
    found = list(replay(shape.trace(), shape.seconds, rules, host, random.Random(seed)))
    total = found[-1]
    assert isinstance(total, Total)
    return [row for row in found if isinstance(row, Row)], total


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", action="store_true", help="print every step with its sentence")
    options = parser.parse_args()
    print(
        f"{'load':<18} {'policy':<12} {'first step':>10} {'p95 wait':>9} {'worst':>8} {'replica-min':>11} "
        f"{'steps':>5} {'turns':>5} {'most':>4}"
    )
    broken: list[str] = []
    for shape in (shape for shape in SHAPES if options.shape in (None, shape.name)):
        for policy in POLICIES:
            rows, total = play(shape, policy, options.seed)
            first = f"{total.first_step_s:.0f} s" if total.first_step_s is not None else "none"
            print(
                f"{shape.name:<18} {policy:<12} {first:>10} {total.wait_p95_s:>7.1f} s {total.wait_worst_s:>6.1f} s "
                f"{total.replica_minutes:>11.0f} {total.steps:>5} {total.turns:>5} {total.most:>4}"
            )
            if options.rows:
                print(*(f"    {row.at:>6.0f} s  {row.step}" for row in rows if row.step), sep="\n")
            if shape.name == "steady" and total.turns > 1:
                broken.append(f"{policy} goes to and fro under an even load")
            if shape.name.startswith("idle") and policy == "concurrency" and total.most > 2:
                broken.append("concurrency does not stay at the minimum while the service idles")
    for sentence in broken:
        print(f"BROKEN: {sentence}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
