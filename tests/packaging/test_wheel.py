"""What a wheel holds is what a checkout holds: every module, every template, and programs that start."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkout import build_wheel, copy_sources, run


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what belongs to the project, so that a build leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("sources")
    copy_sources(copy)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel))
    return folder


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
