"""A thousand simulated hours of random faults: every invariant of the design holds at every cycle and every step.

The same by hand, with other seeds and hours: `make sim SEED=1 HOURS=5 SEEDS=200`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.commands import COMMANDS
from tests.sim.faults import CARD_FAULTS, FAULTS
from tests.sim.forever import ENDLESS_CARD_FAULTS, ENDLESS_FAULTS
from tests.sim.run import Result, run_seed, run_seeds

ROOT = Path(__file__).parents[2]

SEEDS = range(1, 201)
HOURS = 5.0


@pytest.fixture(scope="module")
def thousand_hours() -> list[Result]:
    return run_seeds(SEEDS, HOURS, os.cpu_count() or 2)


@pytest.mark.timeout(900)
def test_a_thousand_hours_of_random_faults_violate_no_invariant(thousand_hours: list[Result]) -> None:
    found = [result.violation for result in thousand_hours if result.violation is not None]
    assert not found, f"{len(found)} violations, the first:\n{found[0]}"
    assert sum(result.hours for result in thousand_hours) >= 1000.0


@pytest.mark.timeout(900)
def test_the_thousand_hours_contain_every_fault_and_every_command(thousand_hours: list[Result]) -> None:
    injected: Counter[str] = sum((result.injected for result in thousand_hours), Counter())
    rare = {
        act.__name__: injected[act.__name__]
        for act, _ in (*FAULTS, *CARD_FAULTS, *ENDLESS_FAULTS, *ENDLESS_CARD_FAULTS, *COMMANDS)
        if injected[act.__name__] < 10
    }
    assert not rare, f"too seldom to mean anything: {rare}"
    assert sum(result.answered for result in thousand_hours) > 50_000


@pytest.mark.timeout(300)
def test_fresh_seeds_violate_no_invariant_either() -> None:
    first = int(time.time())
    results = run_seeds(range(first, first + 6), HOURS, os.cpu_count() or 2)
    found = [result.violation for result in results if result.violation is not None]
    print(f"seeds {first} to {first + 5}")
    assert not found, found[0]


def test_a_seed_lives_through_the_same_hours_again() -> None:
    command = [sys.executable, "-m", "tests.sim", "7", "--hours", "2", "-v"]

    def told(hash_seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.splitlines()[:-1]  # the last line has the CPU seconds in it

    once, again = told("1"), told("2")
    assert len(once) > 100
    assert once == again


def test_a_run_tells_what_it_has_done() -> None:
    result = run_seed(3, 1.0)
    assert result.violation is None
    assert result.hours >= 1.0
    assert result.cycles > 100
    assert result.episodes >= 1
