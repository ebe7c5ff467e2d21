"""Processes on the cards that the daemon may not see: a /proc that hides them, and a pid namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hasupervisor.model import Address, Fact, Phase
from hasupervisor.observe.owners import Owners, Sight
from tests.doubles.nvml.cards import NvmlDouble

GB = 1 << 30
ROOT = Path(__file__).parents[2]
CONTAINER = "3f1c9a" + "0" * 58
HIDES = ("unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh")
APART = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")


@pytest.fixture
def holder(nvml: NvmlDouble) -> Iterator[subprocess.Popen[bytes]]:
    """A process of root's that holds nearly all of the only card, for as long as it lives."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        (card,) = nvml.cards = nvml.cards[:1]
        card.processes = {process.pid: 20 * GB}
        nvml.tell()
        yield process
        process.kill()


def looked(nvml: NvmlDouble, pid: int, *, within: Sequence[str] = ()) -> dict[str, Any]:
    """What a daemon without rights sees of the card, where the runtime names `pid` as its instance's."""
    command = [*within, sys.executable, "-m", "tests.gpu.looking", str(pid), CONTAINER]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **nvml.environment}, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_a_process_that_proc_hides_is_not_dead_and_its_card_stays_in_use(
    nvml: NvmlDouble, holder: subprocess.Popen[bytes]
) -> None:
    said = looked(nvml, holder.pid, within=HIDES)
    assert said == {"dead": [], "users": {str(holder.pid): "chatglm-01"}, "state": "ok"}


def test_pids_of_the_host_say_nothing_in_a_pid_namespace_of_our_own(
    nvml: NvmlDouble, holder: subprocess.Popen[bytes]
) -> None:
    assert looked(nvml, holder.pid, within=APART) == {"dead": [], "users": {}, "state": "ok"}


def test_one_that_has_gone_is_dead_and_what_it_held_is_leaked(
    nvml: NvmlDouble, holder: subprocess.Popen[bytes]
) -> None:
    holder.kill()
    holder.wait()
    for within in ((), HIDES):
        assert looked(nvml, holder.pid, within=within) == {"dead": [holder.pid], "users": {}, "state": "quarantined"}


def test_whose_a_hidden_process_is_the_runtime_alone_can_tell(tmp_path: Path) -> None:
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").symlink_to("/proc/self/ns/pid")
    owners = Owners(tmp_path)
    here = Address("127.0.0.1", 8000)
    ours = Fact("chatglm-01", CONTAINER, Phase.RUNNING, here, here, pid=os.getpid())
    assert owners.sight(os.getpid()) is Sight.HIDDEN
    assert owners.of(os.getpid(), [ours]) == "chatglm-01"
    assert owners.of(os.getppid(), [ours]) is None
    assert owners.sight(os.getppid()) is not Sight.SEEN, "so nobody calls it a stranger's"
