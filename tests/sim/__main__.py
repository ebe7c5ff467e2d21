"""Lives through a seed of the simulator again, or through many to look for violations.

One seed with all that happens: `python -m tests.sim 7 --hours 5 -v`.
A thousand hours: `python -m tests.sim 1 --seeds 200 --hours 5`, some 200 seconds of one CPU.

What is simulated: host.py. Faults that end: faults.py; faults that do not: forever.py. What has to hold: invariants/.
Deliberate defects that have to be found: mutants.py.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.sim.run import Result, first_violation, run_seed, run_seeds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int)
    parser.add_argument("--hours", type=float, default=20.0, help="simulated hours of each seed")
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds, from this one on")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell everything that happens")
    parser.add_argument("--first", action="store_true", help="end with the first violation")
    options = parser.parse_args()
    if options.first:
        found = first_violation(range(options.seed, options.seed + options.seeds), options.hours)
        print(found.violation if found is not None else "no violation")
        return 1 if found is not None else 0
    if options.seeds == 1:
        results = [run_seed(options.seed, options.hours, verbose=options.verbose)]
    else:
        results = run_seeds(range(options.seed, options.seed + options.seeds), options.hours)
    report(results)
    return 1 if any(result.violation for result in results) else 0


def report(results: list[Result]) -> None:
    violated = [result for result in results if result.violation]
    if violated:
        print(violated[0].violation)
        for result in violated[1:]:
            print("\n".join((result.violation or "").splitlines()[-4:-1]))
    injected: Counter[str] = sum((result.injected for result in results), Counter())
    print(
        f"{sum(r.hours for r in results):.1f} simulated hours, {sum(r.episodes for r in results)} episodes, "
        f"{sum(injected.values())} faults and commands, {sum(r.cycles for r in results)} cycles, "
        f"{sum(r.steps for r in results)} steps, {sum(r.answered for r in results)} requests answered and "
        f"{sum(r.failed for r in results)} not, {len(violated)} violations, "
        f"{sum(r.seconds for r in results):.1f} CPU seconds"
    )


if __name__ == "__main__":
    sys.exit(main())
