"""A keeper's log, rotated without losing what it need not, also on a full disk; and the shield it takes away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasupervisor.runtimes import keeper


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "chatglm-ha-test", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_five_files_are_kept_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for life in range(7):
        log.write_text(f"{life}" * 200)
        assert keeper.rotate(str(log), 100, 5)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.log", "a.log.1", "a.log.2", "a.log.3", "a.log.4"]
    assert log.stat().st_size == 0
    assert [(tmp_path / f"a.log.{n}").read_text()[0] for n in (1, 2, 3, 4)] == ["6", "5", "4", "3"]


def test_a_log_within_its_limit_and_one_that_is_gone_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert not keeper.rotate(str(log), 100, 5)
    log.write_text("x" * 100)
    assert not keeper.rotate(str(log), 100, 5)
    assert log.read_text() == "x" * 100


def test_where_the_disk_has_no_room_for_a_copy_the_log_grows_to_its_whole_share_and_is_emptied_then(
    small_disk: Path,
) -> None:
    log = small_disk / "a.log"
    log.write_bytes(b"x" * 140 * 1024)
    assert not keeper.rotate(str(log), 50 * 1024, 3)
    assert [path.name for path in small_disk.iterdir()] == ["a.log"]
    assert log.stat().st_size == 140 * 1024
    log.write_bytes(b"x" * 200 * 1024)
    assert keeper.rotate(str(log), 50 * 1024, 3)
    assert [(path.name, path.stat().st_size) for path in small_disk.iterdir()] == [("a.log", 0)]


def test_the_last_lines_are_those_of_this_life(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"before\n" * 10 + b"one\r\ntwo\nthr\xe9e")
    assert keeper.tail(str(log), 70) == ["one", "two", "thr\ufffde"]
    assert keeper.tail(str(log), 70, lines=1) == ["thr\ufffde"]
    assert keeper.tail(str(log), 10_000)[-1] == "thr\ufffde"  # it was rotated since that place was noted
    assert keeper.tail(str(tmp_path / "none.log"), 0) == []


@pytest.mark.parametrize(("before", "after"), [("-900\n", "0"), ("0\n", "0\n"), ("300\n", "300\n")])
def test_an_instance_does_not_inherit_the_daemons_protection_from_the_oom_killer(
    tmp_path: Path, before: str, after: str
) -> None:
    score = tmp_path / "oom_score_adj"  # a copy of the kernel's file: lowering the real one needs CAP_SYS_RESOURCE
    score.write_text(before)
    keeper.unprotect(str(score))
    assert score.read_text() == after
