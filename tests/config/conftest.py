"""What a person is told about a configuration that was written wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hasupervisor.config import ConfigError, load

Told = Callable[[str], list[str]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Loads a text as the file of a user who is not root; the lines of the error, each without the file's name."""

    def lines(text: str) -> list[str]:
        file = tmp_path / "config.toml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load(file, {}, lowest=1024)
        told = str(caught.value).split("\n")
        assert told == [str(problem) for problem in caught.value.problems]
        assert all(line.startswith(f"{file}:") for line in told)
        return [line.removeprefix(f"{file}:") for line in told]

    return lines
