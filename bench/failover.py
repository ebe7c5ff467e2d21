"""chatglm-ha beside the tools that an operator would otherwise pick: the same instances, load and faults for each.

    python bench/failover.py [--quick] [--faults kill,hang] [--contenders chatglm-ha,haproxy] [--seconds S] [--seed N]
                             [--json FILE] [--markdown FILE] [--logs FOLDER]

Two stand-in model servers behind each contender's gateway, 20 requests a second, a client's patience of 30 s.
Everything runs on 127.0.0.1, in folders and on ports of its own, and is ended by its pid. bench/README.md says what
the faults, the contenders and the columns are. Exits 1 where chatglm-ha failed a request that it must not fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

if not __package__:  # started by its path: its own modules and the tests' are found from the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.contest.contenders import Missing
from bench.contest.faults import Fault, all_faults
from bench.contest.figures import Figures
from bench.contest.machine import Machine
from bench.contest.report import markdown, row, table
from bench.contest.run import CONTENDERS, run

OURS = "chatglm-ha"


async def contest(options: argparse.Namespace) -> list[Figures]:
    """Every chosen fault on every chosen contender, fault by fault: rivals meet the same hour of the machine."""
    results: list[Figures] = []
    missing: set[str] = set()
    for fault in options.faults:
        seeds = range(options.seed, options.seed + (1 if options.quick else fault.repeats))
        for seed in seeds:
            for contender in options.contenders:
                if contender in missing:
                    continue
                try:
                    result = await run(contender, fault, seed, _seconds(fault, options), options.logs)
                except Missing as e:
                    missing.add(contender)
                    print(f"{contender} is left out: {e}", file=sys.stderr)
                    continue
                results.append(result)
                print(row(result), file=sys.stderr, flush=True)
    return results


def _seconds(fault: Fault, options: argparse.Namespace) -> float:
    if options.seconds is not None:
        return float(options.seconds)
    return fault.quick_s if options.quick else fault.seconds


def main() -> int:
    options = _options()
    machine = Machine.here()
    results = asyncio.run(contest(options))
    if not results:
        print("nothing was run", file=sys.stderr)
        return 2
    if options.json is not None:
        document = {"schema": 1, "machine": machine.as_json(), "results": [result.as_json() for result in results]}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(markdown(results, machine))
    print(table(results))
    return 1 if any(result.contender == OURS and result.failed and not result.of_capacity for result in results) else 0


def _options() -> argparse.Namespace:
    faults = all_faults()
    parser = argparse.ArgumentParser(description="chatglm-ha beside the tools that an operator would otherwise pick.")
    parser.add_argument("--faults", default=",".join(faults), help=f"of {', '.join(faults)}")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--seconds", type=float, help="of load after each fault, instead of the fault's own")
    parser.add_argument("--seed", type=int, default=1, help="of the storm's schedule; full runs also take the next two")
    parser.add_argument("--quick", action="store_true", help="shorter runs, one storm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page there, like docs/benchmarks.md")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep every contender's logs there")
    options = parser.parse_args()
    options.faults = [faults[name] for name in _chosen(parser, "fault", options.faults, list(faults))]
    options.contenders = _chosen(parser, "contender", options.contenders, list(CONTENDERS))
    return options


def _chosen(parser: argparse.ArgumentParser, what: str, given: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"no such {what}: {name}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
