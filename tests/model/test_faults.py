"""What breaks in a running server, and that it ends as it should: in a real process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.model.running import ModelServer, wait_for

LONG = "你好" * 60
Faulty = Callable[..., ModelServer]


@pytest.fixture
def faulty(model_cache: Path, tmp_path: Path) -> Iterator[Faulty]:
    servers: list[ModelServer] = []

    def start(fault: str, **env: str) -> ModelServer:
        script = str(Path(__file__).with_name("faulty_server.py"))
        server = ModelServer(tmp_path / "log", {"MODEL_CACHE": str(model_cache), **env}, command=(script, fault))
        servers.append(server)
        server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop()
        server.check_log()


def test_a_poisoned_device_ends_the_process_within_a_second_with_the_reason_as_its_last_line(faulty: Faulty) -> None:
    server = faulty("poisoned")
    assert server.ask("ping").json()["response"] == "pong"
    began = time.monotonic()
    with pytest.raises(httpx.HTTPError):  # the connection breaks: whoever proxies it can ask another instance
        server.ask(LONG)
    assert server.wait(5) == 70
    assert time.monotonic() - began < 1
    expected = "model_api: fatal: the device is lost: AcceleratorError: CUDA error: device-side assert triggered"
    assert server.last_line == expected


def test_memory_that_runs_out_fails_the_request_that_needs_it_and_nobody_else(faulty: Faulty) -> None:
    server = faulty("out_of_memory")
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(server.chat, "讲个故事", ignore_eos=True, max_tokens=2000) for _ in range(5)]
        wait_for(lambda: server.progress()["in_flight"] == 5, "the others to run")
        failed = server.ask(LONG)
        assert [other.result().json()["usage"]["completion_tokens"] for other in others] == [2000] * 5
    assert failed.status_code == 503
    assert failed.json()["error"] == "there is not enough memory for a request of this length"
    assert failed.headers["retry-after"]
    assert server.health()["status"] == "healthy"
    assert server.metric("model_api_out_of_memory_total") >= 1


def test_a_server_that_fails_every_request_says_that_it_is_sick_until_one_succeeds(faulty: Faulty) -> None:
    server = faulty("out_of_memory")
    for _ in range(3):
        assert server.ask(LONG).status_code == 503
    response = server.client.get(f"{server.url}/health")
    assert response.status_code == 503
    assert response.json()["status"] == "unhealthy"
    assert "the last 3 requests failed: there is not enough memory" in response.json()["reason"]
    assert server.ask("ping").status_code == 200
    assert server.health()["status"] == "healthy"


def test_a_hung_step_shows_in_the_progress_while_health_still_answers(faulty: Faulty) -> None:
    server = faulty("hung", MAX_WAIT="1", GRACE="0")
    with ThreadPoolExecutor() as pool:
        hung = pool.submit(server.ask, LONG)
        progress = wait_for(lambda: (p := server.progress())["step_running_s"] > 0.3 and p, "the step's age to grow")
        assert (progress["in_flight"], progress["idle_s"]) == (1, 0.0)
        steps = progress["steps"]
        # The wait for a place is timed by the web side, which a hung step cannot stop.
        assert hung.result().status_code == 503
        refused = server.ask("ping")
        assert refused.json()["error"] == "no place became free in 1 s"
        assert server.progress()["steps"] == steps
        assert server.progress()["step_running_s"] > 1
    server.terminate()
    assert server.wait(10) == 0
