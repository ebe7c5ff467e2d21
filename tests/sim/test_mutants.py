"""The test of the test: every deliberate defect of the decisions is found by the simulator within bounded hours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]

SEEDS, HOURS = 120, 5.0
"""Simulated hours within which each has to be found: 600, most are found within fifty."""


def mutated(mutant: Mutant, where: Path) -> Path:
    """A copy of the tree with the defect in it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hasupervisor", where / "hasupervisor", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "sim", where / "tests" / "sim", ignore=ignored)
    file = where / "hasupervisor" / "decide" / mutant.file
    source = file.read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.file} has changed: write this mutant anew"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return where


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_simulator_finds_that(mutant: Mutant, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.sim", "1", "--seeds", str(SEEDS), "--hours", str(HOURS), "--first"]
    found = subprocess.run(
        command,
        cwd=mutated(mutant, tmp_path),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert found.returncode == 1, f"nothing was found: {found.stdout[-500:]}{found.stderr[-2000:]}"
    assert "against invariant" in found.stdout, found.stdout[-2000:] + found.stderr[-2000:]
