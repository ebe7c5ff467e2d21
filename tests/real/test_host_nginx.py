"""A mistake made by hand in nginx's files: nothing is reloaded, everybody is served on, status says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from hasupervisor.act.nginx import process
from tests.real.daemon import PATIENT, Daemon, as_processes, daemon, one
from tests.real.gatewaying import private_nginx
from tests.real.pressure import pressure

MISTAKE = "server { lisen 1; }\n"


@dataclass(frozen=True, slots=True)
class Gated:
    """A host, the pid file of its nginx, and a file that nginx includes and a person has not written yet."""

    host: Daemon
    pid_file: Path
    by_hand: Path

    def workers(self) -> frozenset[int] | None:
        master = process.read_pid(self.pid_file)
        assert master is not None
        return process.workers(master)


@pytest.fixture(params=["own", "system"])
def gated(
    request: pytest.FixtureRequest, standin_server: Path, port_range: Callable[[int], range], tmp_path: Path
) -> Iterator[Gated]:
    with ExitStack() as stack:
        host = stack.enter_context(daemon(port_range(20), PATIENT, as_processes(standin_server)))
        if request.param == "own":
            gated = Gated(host, host.nginx / "nginx.pid", host.nginx / "conf.d" / "by-hand.conf")
        else:
            include = f"include {host.nginx}/gateway.conf;\n"
            nginx = stack.enter_context(private_nginx(tmp_path / "nginx", include))
            host.nginx.mkdir()
            (host.nginx / "gateway.conf").touch()
            nginx.start()
            host.configure({"nginx": {"mode": "system", "binary": str(nginx.binary)}})
            gated = Gated(host, nginx.pid_file, nginx.conf_d / "by-hand.conf")
        host.start()
        host.wait_until_green()
        yield gated


def test_a_syntax_error_by_hand_changes_nothing_that_runs_and_is_over_once_it_is_removed(gated: Gated) -> None:
    host = gated.host
    upstream, generation, workers = host.upstream(), host.generation(), gated.workers()
    with pressure(host.gateway) as load:
        gated.by_hand.write_text(MISTAKE)
        broken = host.wait_for(lambda status: not status["nginx"]["ok"] and status, "nginx's words")
        assert 'unknown directive "lisen"' in broken["nginx"]["reason"]
        assert str(gated.by_hand) in broken["nginx"]["reason"]
        assert (broken["health"], broken["serving"]) == ("yellow", 2)
        problem = next(problem for problem in broken["problems"] if problem["subject"] == "nginx")
        assert problem["hint"] == "chatglm-hactl nginx test"
        check, test, reload = host.hactl("check"), host.hactl("nginx", "test"), host.hactl("nginx", "reload")
        assert (check.code, test.code, reload.code) == (1, 1, 1)
        for told in (check, test, reload):
            assert 'unknown directive "lisen"' in told.out + told.err

        # Nobody can join or leave meanwhile; who dies is passed over, and serves again at the same place.
        victim = broken["instances"][0]
        os.kill(victim["pid"], signal.SIGKILL)
        host.wait_for(lambda status: one(status, victim["name"])["restarts"] > victim["restarts"], "is started anew")
        assert host.hactl("scale", "3", "--no-wait").code == 0
        waiting = host.wait_for(
            lambda status: len(status["instances"]) == 3 and (s := status)["serving"] == 2 and s, "a third one"
        )
        joins = host.wait_for(
            lambda status: (i := one(status, waiting["instances"][2]["name"])) and "joins" in i["reason"] and i,
            "the third is proven, and waits for nginx",
        )
        assert (joins["state"], joins["routed"]) == ("loading", False)
        assert host.upstream() == upstream
        assert host.generation() == generation
        assert gated.workers() == workers

        gated.by_hand.unlink()
        host.wait_until_green(3)
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert host.generation() > generation
    assert host.hactl("check").code == 0
