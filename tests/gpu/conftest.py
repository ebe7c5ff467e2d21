"""A machine with two cards of the double of NVML."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.nvml.cards import NvmlDouble


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path) -> NvmlDouble:
    return NvmlDouble(tmp_path / "nvml", nvml_library)
