"""The double of NVML, compiled once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.nvml.cards import NvmlDouble, build_library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml-library"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path) -> NvmlDouble:
    return NvmlDouble(tmp_path / "nvml", nvml_library)
