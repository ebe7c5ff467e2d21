"""CPU use as a witness, seen on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasupervisor.observe.cpu import STALE, CpuUse, tree_ticks
from tests.real.waiting import eventually

SPIN = "while True: pass"
CHILD_SPINS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPIN!r}])"


@pytest.fixture(params=[SPIN, CHILD_SPINS], ids=["itself", "its child"])
def worker(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process that works, or whose child does, in a group of its own."""
    process = subprocess.Popen([sys.executable, "-c", request.param], start_new_session=True)
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def test_one_that_works_is_not_idle_one_that_is_stopped_is_and_works_again_when_it_goes_on(worker: int) -> None:
    use = CpuUse()

    def idle() -> bool:
        return use.look("chatglm-01", worker) is not None

    before = tree_ticks(worker)
    assert before is not None
    await eventually(lambda: (tree_ticks(worker) or 0) > before + 20 or None, "it works", 20.0, 0.05)
    assert not idle()
    os.killpg(worker, signal.SIGSTOP)
    await eventually(lambda: idle() or None, "idle after SIGSTOP", 20.0, 0.05)
    since = use.look("chatglm-01", worker)
    assert use.look("chatglm-01", worker) == since, "the time since it is idle moved"
    os.killpg(worker, signal.SIGCONT)
    await eventually(lambda: (not idle()) or None, "working after SIGCONT", 20.0, 0.05)


def test_a_process_that_is_gone_or_unknown_is_not_called_idle() -> None:
    use = CpuUse()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert use.look("chatglm-01", ended.pid) is None
    assert use.look("chatglm-01", None) is None


def test_one_with_a_child_that_cannot_be_seen_is_not_called_idle(worker: int, tmp_path: Path) -> None:
    whole = tree_ticks(worker)
    assert whole is not None
    (tmp_path / str(worker)).symlink_to(f"/proc/{worker}")  # all that is hidden is its children
    has_children = any(file.read_bytes() for file in Path(f"/proc/{worker}/task").glob("*/children"))
    assert (tree_ticks(worker, tmp_path) is None) == has_children


def test_where_the_kernel_does_not_tell_children_nobody_is_called_idle(tmp_path: Path) -> None:
    here = tmp_path / str(os.getpid())
    (here / "task" / "1").mkdir(parents=True)
    (here / "stat").symlink_to("/proc/self/stat")
    assert tree_ticks(os.getpid(), tmp_path) is None
    (here / "task" / "1" / "children").touch()
    assert tree_ticks(os.getpid(), tmp_path) is not None


def test_a_process_that_is_not_the_instances_is_no_witness() -> None:
    now = [0.0]
    sleeper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        for is_its, found in ((True, 0.0), (False, None)):
            use = CpuUse(lambda: now[0], is_its=lambda name, pid, said=is_its: said)  # type: ignore[misc]
            now[0] = 0.0
            use.look("chatglm-01", sleeper.pid)
            now[0] = 2.0
            assert use.look("chatglm-01", sleeper.pid) == found
    finally:
        sleeper.kill()
        sleeper.wait()


def test_another_process_under_the_same_name_and_a_look_after_a_long_time_start_from_nothing() -> None:
    now = [0.0]
    use = CpuUse(clock=lambda: now[0])
    sleeper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        assert use.look("chatglm-01", os.getpid()) is None
        now[0] = 2.0
        assert use.look("chatglm-01", sleeper.pid) is None
        now[0] = 4.0
        assert use.look("chatglm-01", sleeper.pid) == 2.0
        now[0] = 4.0 + STALE + 0.1
        assert use.look("chatglm-01", sleeper.pid) is None
    finally:
        sleeper.kill()
        sleeper.wait()
