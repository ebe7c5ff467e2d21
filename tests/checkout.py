"""A copy of this checkout and the wheel that is built of it, for tests of what users install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD_S = 240.0


def copy_sources(into: Path) -> None:
    """Copies what belongs to the project, committed or not, so that a build leaves nothing in the checkout."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name, follow_symlinks=False)


def build_wheel(sources: Path, into: Path) -> Path:
    """The project's wheel, without those that it depends on."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(into), str(sources))
    (built,) = into.glob("chatglm_ha-*.whl")
    return built


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What it prints; fails with all its words when it does not exit 0."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
