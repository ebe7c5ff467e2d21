"""The tool as people run it: the real program, against a stand-in daemon on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ctl.stand_in import StandIn
from tests.ctl.terminal import PROGRAM, Pipe, Terminal

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, for a socket's may have 107 bytes, in a folder that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="hactl-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def daemon(folder: Path) -> Iterator[StandIn]:
    with StandIn(folder / "control.sock") as daemon:
        yield daemon


@pytest.fixture
def env(folder: Path) -> dict[str, str]:
    """What the tool finds around it: our socket, the clock of UTC, and nothing of whoever runs the tests."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return kept | {
        "CHATGLM_HA_SOCKET": str(folder / "control.sock"),
        "TZ": "UTC",
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def hactl(env: dict[str, str], folder: Path) -> Run:
    """Run the tool to its end, without a terminal, in a folder where nothing lies."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env=env | more,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def on_terminal(env: dict[str, str]) -> Callable[..., Terminal]:
    """Start the tool on a terminal of its own."""

    def start(*arguments: str, columns: int = 80, rows: int = 24, **more: str) -> Terminal:
        return Terminal([*PROGRAM, *arguments], env | more, columns=columns, rows=rows)

    return start


@pytest.fixture
def on_pipe(env: dict[str, str]) -> Callable[..., Pipe]:
    """Start the tool without a terminal, to look at it while it runs."""

    def start(*arguments: str, **more: str) -> Pipe:
        return Pipe([*PROGRAM, *arguments], env | more)

    return start
