"""The Makefile: every target is explained in its head, and a seed of the simulator is replayed by number and hours."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What make would do, without doing it."""
    command = ["make", "--dry-run", "--no-print-directory", *words]
    # Not what the make that runs the tests hands down.
    env = {
        key: value for key, value in os.environ.items() if key not in ("SEED", "HOURS", "SEEDS") and "MAKE" not in key
    }
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)


def test_every_target_is_explained_in_the_head_but_the_set_up_that_the_others_call() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = re.findall(r"^# make (\w+) ", text, re.MULTILINE)
    targets = [name for rule in re.findall(r"^(\w[\w ]*):(?!=)", text, re.MULTILINE) for name in rule.split()]
    assert sorted(explained) == sorted(set(targets) - {"setup"})
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert sorted(phony.split()) == sorted(targets)


def test_a_seed_is_replayed_with_all_that_happens_told() -> None:
    ran = make("sim", "SEED=7", "HOURS=5")
    assert ran.stdout.splitlines()[-1] == ".venv/bin/python -m tests.sim 7 --hours 5 --seeds 1 -v"


def test_without_a_seed_make_says_what_it_wants() -> None:
    ran = make("sim")
    assert ran.returncode == 2
    assert "say which seed: make sim SEED=7" in ran.stderr
