"""What a wheel holds is what a checkout holds: every module, every template, and programs that start."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what belongs to the project, so that a build leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("sources")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(sources))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_a_wheel_holds_every_module_of_the_checkout(sources: Path, wheel: Path) -> None:
    packages = [sources / "hasupervisor", sources / "model_api"]
    expected = {str(path.relative_to(sources)) for package in packages for path in package.rglob("*.py")}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= held, sorted(expected - held)
    assert {"hasupervisor/py.typed", "model_api/py.typed"} <= held


def test_a_wheel_holds_the_nginx_templates_and_finds_them(sources: Path, installed: Path) -> None:
    found = run(
        sys.executable,
        "-c",
        "from hasupervisor.templates import template_dir as t; print(t(), *sorted(p.name for p in t().iterdir()))",
        cwd=installed.parent,
        env={"PYTHONPATH": str(installed)},
    )
    names = sorted(path.name for path in (sources / "nginx").iterdir())
    assert found.split() == [str(installed / "hasupervisor/nginx"), *names]


def test_a_wheel_installs_both_programs(installed: Path) -> None:
    programs = {path.name for path in (installed / "bin").iterdir()}
    assert {"chatglm-had", "chatglm-hactl"} <= programs
    version = run(str(installed / "bin/chatglm-hactl"), "-V", env={"PYTHONPATH": str(installed)})
    assert "0.1.0" in version
