"""The autoscaler on a real host: from two to what a load needs and back, and not one request is lost on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.real.daemon import PATIENT, Daemon, Document, Settings, as_processes, daemon, on_docker
from tests.real.dockerd import Engine
from tests.real.pressure import pressure

SLOTS = {"SERVICE_S": "0.5", "SLOTS": "4"}  # 8 requests a second and instance
OUTGROWN_S = 100.0  # sixty samples of a second until the lessons of the load are outgrown, then a step every four
RATE = 24.0  # what four of them carry at three quarters of what they can, and two do not

QUICK: Settings = {
    "service": {"instances": 2, "min": 2, "max": 6},
    "autoscale": {
        "enabled": True,
        "policy": "thresholds",
        "sample": 1.0,
        "evaluate": 1.0,
        "up_samples": 3,
        "down_samples": 4,
        "up_response_time_ms": 900,
        "down_response_time_ms": 800,
        "up_connections": 5,
        "down_connections": 3,
    },
}


@pytest.fixture
def processes(standin_server: Path) -> Settings:
    return as_processes(standin_server, SLOTS)


@pytest.fixture
def containers(engine: Engine, standin_image: str) -> Iterator[Settings]:
    yield on_docker(engine, standin_image, SLOTS)
    engine.remove_everything()


@pytest.fixture
def host(request: pytest.FixtureRequest, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, request.getfixturevalue(request.param), QUICK) as host:
        host.start()
        host.wait_until_green()
        yield host


def steps(host: Daemon) -> list[Document]:
    return [e for e in host.history() if e["subject"] == "autoscale" and e["event"] == "scale"]


def is_back(status: Document) -> bool:
    return bool(status["desired"] == status["serving"] == len(status["instances"]) == 2)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("host", ["containers"], indirect=True)
def test_a_load_that_needs_more_gets_more_and_they_go_after_it_without_a_lost_request(host: Daemon) -> None:
    with pressure(host.gateway, RATE) as load:
        host.wait_for(lambda status: status["serving"] >= 4, "as many serve as the load needs", within=40.0)
        shown = host.hactl("autoscale", "status")
    assert load.result.failures == []
    assert load.result.sent > 50
    assert "thresholds" in shown.out
    assert "concurrency" in shown.out
    host.wait_for(is_back, "two again", within=OUTGROWN_S)
    taken = steps(host)
    up = [step for step in taken if int(step["sentence"][5]) > int(step["sentence"][0])]
    assert len(up) >= 2
    assert all(step["by"] == "autoscaler" for step in taken)
    assert all("ms response time" in step["sentence"] or "connections" in step["sentence"] for step in taken)
    assert host.metrics()['chatglm_ha_scale_decisions_total{direction="down",reason="idle"}'] == len(taken) - len(up)
    told = {name: value for name, value in host.metrics().items() if name.startswith("chatglm_ha_http_requests_total")}
    assert sum(value for name, value in told.items() if 'code="200"' in name) >= load.result.sent


@pytest.mark.timeout(120)
@pytest.mark.parametrize("host", ["processes"], indirect=True)
def test_a_lesson_holds_the_count_after_the_daemon_was_killed(host: Daemon) -> None:
    with pressure(host.gateway, RATE):
        host.wait_for(lambda status: status["serving"] >= 3, "more serve", within=40.0)
        host.kill()
        host.start()
        host.wait_for(lambda status: status["serving"] >= 3, "the next daemon has seen them", within=20.0)
    held = host.wait_for(_held, "a lesson holds the count", within=30.0)
    assert "were too few for" in held


@pytest.mark.timeout(120)
def test_users_who_give_up_are_an_overload_though_the_others_are_answered_in_time(
    standin_server: Path, port_range: Callable[[int], range]
) -> None:
    one_a_second = as_processes(standin_server, {"SERVICE_S": "1", "SLOTS": "1", "HEALTH": "opaque"})
    patient: Settings = {"autoscale": {"up_response_time_ms": 60_000, "up_connections": 1000}}
    with daemon(port_range(20), PATIENT, one_a_second, QUICK, patient) as host:
        host.start()
        host.wait_until_green()
        with ThreadPoolExecutor(16) as users:
            over = threading.Event()
            asking = [users.submit(_ask_until, over, host.gateway) for _ in range(16)]
            try:
                host.wait_for(lambda status: status["serving"] >= 3, "one more serves", within=60.0)
            finally:
                over.set()
        given_up = sum(user.result() for user in asking)
        (first, *_) = steps(host)
    print(f"{given_up} gave up; {first['sentence']}")
    assert given_up > 10
    assert "% of the requests turned away over 3 s, above 10" in first["sentence"]


def _ask_until(over: threading.Event, gateway: str, patience_s: float = 1.8) -> int:
    """How often this user gave up."""
    given_up = 0
    while not over.is_set():
        try:
            httpx.post(f"{gateway}/", json={"prompt": "hi"}, timeout=patience_s)
        except httpx.TimeoutException:
            given_up += 1
    return given_up


def _held(status: Document) -> str | None:
    sentence: str = status["autoscale"]["sentence"]
    return sentence if "one less would do, but" in sentence else None
