"""Whose a process is: seen on real processes, and on the forms that cgroups have."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hasupervisor.model import Address, Fact, Phase
from hasupervisor.observe.owners import Owners, containers_in

SLEEPS = "import signal; print('up', flush=True); signal.pause()"
HAS_A_WORKER = (
    "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); "
    "print(p.pid, flush=True); p.wait()"
)
HERE = Address("127.0.0.1", 8000)
ID = "3f1c9a" + "0" * 58


def fact(name: str, pid: int | None, runtime_id: str = "") -> Fact:
    return Fact(name, runtime_id or f"{pid}@1", Phase.RUNNING, HERE, HERE, pid=pid)


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """The pids of a main process and of its worker."""
    main = subprocess.Popen([sys.executable, "-c", HAS_A_WORKER], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    worker = int(main.stdout.readline())
    yield main.pid, worker
    subprocess.run(["kill", str(worker)], check=False)
    main.wait(timeout=10)
    main.stdout.close()


def test_a_worker_is_its_instances_and_anybody_else_is_foreign(family: tuple[int, int]) -> None:
    main, worker = family
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE) as foreign:
        owners = Owners()
        known = owners.learn([worker, foreign.pid], [fact("chatglm-01", None), fact("chatglm-02", main)])
        foreign.kill()
    assert known == {worker: "chatglm-02"}
    assert owners.of(main, [fact("chatglm-02", main)]) == "chatglm-02"


def test_one_that_has_gone_stays_whose_it_was_for_as_long_as_the_driver_lists_it() -> None:
    owners = Owners()
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE) as process:
        instances = [fact("chatglm-01", process.pid)]
        owners.learn([process.pid], instances)
        process.send_signal(signal.SIGKILL)
    assert owners.of(process.pid, []) == "chatglm-01"
    assert owners.learn([process.pid], []) == {process.pid: "chatglm-01"}
    owners.learn([], instances)
    assert owners.of(process.pid, []) is None


@pytest.mark.parametrize(
    "text",
    [
        f"12:devices:/docker/{ID}\n0::/system.slice/containerd.service\n",
        f"0::/system.slice/docker-{ID}.scope\n",
        f"0::/../../docker/{ID}/payload\n",
    ],
)
def test_a_container_is_found_in_every_form_of_cgroup(text: str) -> None:
    assert containers_in(text) == {ID}


def test_other_cgroups_name_no_container() -> None:
    assert containers_in(f"0::/user.slice/session-3.scope\n1::/x/{ID}0\n") == frozenset()
