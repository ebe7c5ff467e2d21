"""What breaks in a running server, and that it ends as it should: in a real process."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from model_api.embedded import ensure_embedded
from tests.model.conftest import LONG, Faulty, StartServer
from tests.model.running import wait_for


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
    assert failed.status_code == 422
    assert "this model's maximum context length is" in failed.json()["error"]
    assert failed.headers["x-should-retry"] == "false"
    assert server.health()["status"] == "healthy"
    assert server.metric("model_api_out_of_memory_total") >= 1


def test_a_prompt_that_memory_cannot_hold_is_the_clients_error_and_the_real_context_is_told(faulty: Faulty) -> None:
    server = faulty("out_of_memory")
    told = server.client.get(f"{server.url}/v1/models").json()["data"][0]["max_model_len"]
    for _ in range(4):
        refused = server.chat(LONG, max_tokens=5)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    learned = server.client.get(f"{server.url}/v1/models").json()["data"][0]["max_model_len"]
    assert learned < len(LONG) < told
    assert f"maximum context length is {learned} tokens" in refused.json()["error"]["message"]
    assert server.metric("model_api_out_of_memory_total") == 1  # known from then on, and refused at the door
    assert server.health()["status"] == "healthy"


def test_a_query_of_death_is_answered_once_and_no_stream_and_no_health_suffers(faulty: Faulty) -> None:
    server = faulty("query_of_death", may_complain=True)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(server.chat, "讲个故事", ignore_eos=True, max_tokens=1500) for _ in range(5)]
        wait_for(lambda: server.progress()["in_flight"] == 5, "the others to run")
        for _ in range(4):
            with pytest.raises(openai.UnprocessableEntityError, match="makes a step of the model fail") as told:
                client.chat.completions.create(model="chatglm-tiny", messages=[{"role": "user", "content": LONG}])
            assert told.value.code == "step_failed"
            assert told.value.response.headers["x-should-retry"] == "false"
        assert [other.result().json()["usage"]["completion_tokens"] for other in others] == [1500] * 5
    assert server.metric("model_api_requests_total") == 9
    assert server.health()["status"] == "healthy"


def test_text_that_would_give_an_id_the_model_does_not_have_is_text_in_a_chat_or_refused_and_no_stream_suffers(
    model_cache: Path, start_server: StartServer, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(ensure_embedded(model_cache), directory, ignore=shutil.ignore_patterns("SHA256SUMS"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})  # and the embeddings do not grow
    tokenizer.save_pretrained(directory)
    server = start_server(MODEL_PATH=str(directory))
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(server.chat, "讲个故事", ignore_eos=True, max_tokens=1500)
        wait_for(lambda: server.progress()["in_flight"] == 1, "the stream to run")
        for _ in range(3):
            answers = [
                server.chat("hello <|extra|>", max_tokens=3),
                server.client.post(f"{server.url}/v1/completions", json={"prompt": "<|extra|>", "max_tokens": 3}),
                server.ask("<|extra|>"),
            ]
            # In a dialogue nothing that a user writes makes a special token; bare text may hold them.
            assert [response.status_code for response in answers] == [200, 400, 200]
            assert "token ids must be under" in answers[1].text
        assert stream.result().json()["usage"]["completion_tokens"] == 1500
    assert server.health()["status"] == "healthy"


def test_a_server_whose_every_step_fails_says_that_it_is_sick_after_a_single_request(faulty: Faulty) -> None:
    server = faulty("broken", may_complain=True)
    failed = server.ask(LONG)
    assert failed.status_code == 500
    assert "x-should-retry" not in failed.headers  # another instance may well answer it
    sick = wait_for(lambda: (h := server.health())["status"] == "unhealthy" and h, "the sickness to be told")
    assert "steps failed" in sick["reason"]
    assert "CUDNN_STATUS_NOT_INITIALIZED" in sick["reason"]
    assert server.client.get(f"{server.url}/health").status_code == 503


def test_a_hung_step_shows_in_the_progress_while_health_still_answers(faulty: Faulty) -> None:
    server = faulty("hung", MAX_WAIT="1", GRACE="0")
    with ThreadPoolExecutor() as pool:
        hung = pool.submit(httpx.post, f"{server.url}/", json={"prompt": LONG}, timeout=4)
        progress = wait_for(lambda: (p := server.progress())["step_running_s"] > 0.3 and p, "the step's age to grow")
        assert (progress["in_flight"], progress["idle_s"]) == (1, 0.0)
        steps = progress["steps"]
        # The wait for a place is timed by the web side, which a hung step cannot stop.
        refused = server.ask("ping")
        assert refused.status_code == 503
        assert refused.json()["error"] == "no place became free in 1 s"
        assert server.progress()["steps"] == steps
        assert server.progress()["step_running_s"] > 1
        with pytest.raises(httpx.ReadTimeout):  # its own work has begun: only its client says how long to wait for it
            hung.result()
    server.terminate()
    assert server.wait(10) == 0
