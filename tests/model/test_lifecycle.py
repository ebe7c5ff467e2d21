"""From the socket to the exit: loading, serving, draining."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.model.conftest import StartServer
from tests.model.running import ModelServer, wait_for

ENDLESS = {"ignore_eos": True, "max_tokens": 8000}


def test_health_answers_loading_before_the_model_is_there(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ready=False, MODEL_CACHE=str(tmp_path / "fresh"))
    response = server.client.get(f"{server.url}/health")
    assert response.status_code == 503
    assert response.json()["status"] == "loading"
    assert response.json()["progress"]["in_flight"] == 0
    assert server.client.get(f"{server.url}/health/live").status_code == 200
    assert server.client.get(f"{server.url}/health/ready").status_code == 503
    refused = server.ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "still loading" in refused.json()["error"]
    server.wait_ready()


def test_health_of_a_serving_server_has_what_a_supervisor_reads(start_server: StartServer) -> None:
    server = start_server(MODEL_NAME="glm")
    before = server.health()
    assert (before["status"], before["model"], before["gpu_memory_gb"], before["warnings"]) == (
        "healthy",
        "glm",
        None,
        [],
    )
    assert server.ask("count").status_code == 200
    after = server.health()
    assert after["progress"]["tokens"] - before["progress"]["tokens"] > 10
    assert after["progress"]["steps"] - before["progress"]["steps"] > 10
    assert set(after["progress"]) == {"in_flight", "queued", "steps", "tokens", "step_running_s", "idle_s"}
    wait_for(lambda: server.progress()["idle_s"] > 0.3, "an idle server to say so")
    assert server.client.get(f"{server.url}/health/ready").status_code == 200


def test_two_servers_that_start_at_once_on_an_empty_cache_build_one_model(
    start_server: StartServer, tmp_path: Path
) -> None:
    cache = tmp_path / "shared"
    servers = [start_server(ready=False, MODEL_CACHE=str(cache)) for _ in range(2)]
    for server in servers:
        server.wait_ready()
        assert server.ask().json()["response"].startswith("你好！")
    models = list(cache.glob("tiny-glm-*"))
    assert len(models) == 1
    assert not list(cache.glob(".building-*"))
    assert sum("built the embedded model" in server.log for server in servers) == 1
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in models[0].iterdir())
    assert models[0].stat().st_mode & 0o055 == 0o055


def test_sigterm_while_loading_exits_0_at_once(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ready=False, MODEL_CACHE=str(tmp_path / "fresh"))
    assert server.url
    server.terminate()
    assert server.wait(5) == 0


def test_sigterm_on_an_idle_server_exits_0(start_server: StartServer) -> None:
    server = start_server()
    server.terminate()
    assert server.wait(5) == 0
    assert "drained" in server.log


def test_draining_refuses_new_work_and_finishes_what_it_took(start_server: StartServer) -> None:
    server = start_server(MAX_BATCH="1")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.chat, "讲个故事", max_tokens=3000, ignore_eos=True)
        wait_for(lambda: server.progress()["in_flight"] == 1, "the request to run")
        waiting = pool.submit(server.ask)
        wait_for(lambda: server.progress()["queued"] == 1, "the second request to wait")
        server.terminate()
        health = wait_for(lambda: (h := server.health())["status"] == "unhealthy" and h, "the draining to show")
        assert health["reason"] == "draining: 2 requests to finish"
        refused = server.ask()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "shutting down" in refused.json()["error"]
        openai_refused = server.chat()
        assert openai_refused.status_code == 503
        assert openai_refused.json()["error"]["code"] == "draining"
        assert running.result().json()["usage"]["completion_tokens"] == 3000
        assert waiting.result().json()["response"].startswith("你好！")
    assert server.wait(10) == 0


def test_a_second_sigterm_cuts_off_what_runs_and_tells_the_client(start_server: StartServer) -> None:
    server = start_server()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.chat, **ENDLESS)
        wait_for(lambda: server.progress()["in_flight"] == 1, "the request to run")
        server.terminate()
        wait_for(lambda: "draining" in server.log, "the draining to begin")
        began = time.monotonic()
        server.terminate()
        assert server.wait(5) == 3
        assert time.monotonic() - began < 2
        answer = running.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the server is shutting down"
    assert "told twice: cutting off 1 requests" in server.log


def test_the_grace_period_ends_what_is_not_finished(start_server: StartServer) -> None:
    server = start_server(GRACE="0.5")
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=_stream_body(), timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.terminate()
        rest = list(lines)
    assert server.wait(5) == 3
    assert '"message": "the server is shutting down"' in rest[-2]
    assert "data: [DONE]" not in rest
    assert "0.5 s of grace are over: cutting off 1 requests" in server.log


def _stream_body() -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "你好"}], "stream": True, **ENDLESS}


def test_sigterm_in_a_flood_answers_every_accepted_request(start_server: StartServer) -> None:
    server = start_server(MAX_BATCH="4", MAX_QUEUE="8")
    url = server.url
    answered: list[int] = []
    broken: list[tuple[float, str]] = []  # when it was sent, and what came of it

    def flood() -> None:
        with httpx.Client(timeout=30) as client:
            while True:
                sent = time.monotonic()
                try:
                    answered.append(client.post(f"{url}/", json={"prompt": "讲个故事", "history": []}).status_code)
                except httpx.HTTPError as error:
                    broken.append((sent, repr(error)))
                    return

    threads = [threading.Thread(target=flood) for _ in range(24)]
    for thread in threads:
        thread.start()
    wait_for(lambda: answered.count(200) > 20 and answered.count(503) > 20, "the flood to be at its height")
    terminated = time.monotonic()
    server.terminate()
    assert server.wait(20) == 0
    for thread in threads:
        thread.join(30)
    assert set(answered) == {200, 503}
    # Each client ends with the one request that met a closed port or a connection being closed: sent after SIGTERM, and
    # never taken. Whatever was sent before it has been answered.
    assert len(broken) == len(threads)
    assert [each for each in broken if each[0] <= terminated] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_drain(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    server.process.send_signal(number)
    assert server.wait(5) == 0


def test_metrics_are_in_prometheus_form_and_count_what_happened(start_server: StartServer) -> None:
    server: ModelServer = start_server()
    for _ in range(3):
        server.ask("ping")
    server.chat(**{"max_tokens": 0})
    text = server.client.get(f"{server.url}/metrics").text
    assert 'model_api_requests_total{code="200",endpoint="/"} 3.0' in text
    assert 'model_api_requests_total{code="400",endpoint="/v1/chat/completions"} 1.0' in text
    assert server.metric("model_api_generation_tokens_total") >= 6
    assert server.metric("model_api_time_to_first_token_seconds_count") >= 3
    assert server.metric("model_api_kv_tokens_budget") > 8000
    assert "model_api_in_flight 0.0" in text
    assert "你好" not in text
    assert "ping" not in text
