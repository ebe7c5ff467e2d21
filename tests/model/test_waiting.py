"""Waiting is what happens in the queue: reading a prompt is work, and both are told as what they are."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.model.conftest import LONG, Faulty
from tests.model.running import ModelServer, wait_for

READING_S = 1.5  # what the slow server needs for LONG


def gaps_over_a_second(server: ModelServer) -> float:
    """How many tokens came more than a second after the one before, as the metrics have it."""
    text = server.client.get(f"{server.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    name = "model_api_time_per_token_seconds"
    return float(lines[f"{name}_count"]) - float(lines[f'{name}_bucket{{le="1.0"}}'])


def test_an_idle_server_answers_whatever_max_wait_says_and_a_long_prompt_has_not_waited(faulty: Faulty) -> None:
    server = faulty("slow", MAX_WAIT="0", MAX_BATCH="1")
    before = server.metric("model_api_queue_wait_seconds_sum")
    assert server.chat("ping", max_tokens=3).status_code == 200
    assert server.chat(LONG, max_tokens=1).status_code == 200
    assert server.metric("model_api_queue_wait_seconds_sum") - before < READING_S / 2
    with ThreadPoolExecutor() as pool:
        busy = pool.submit(server.chat, LONG, max_tokens=1)
        wait_for(lambda: server.progress()["in_flight"] == 1, "the place to be taken")
        refused = server.chat("ping", max_tokens=3)  # nobody is to wait here
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "full")
        assert busy.result().status_code == 200


def test_retry_after_counts_the_reading_of_prompts_and_who_has_begun_is_answered(faulty: Faulty) -> None:
    server = faulty("slow", MAX_BATCH="1", MAX_WAIT="4")
    assert server.chat(LONG, max_tokens=1).status_code == 200
    began = time.monotonic()

    def ask() -> tuple[float, httpx.Response]:
        response = server.chat(LONG, max_tokens=1)
        return time.monotonic() - began, response

    with ThreadPoolExecutor(8) as pool:
        answers = [asked.result() for asked in [pool.submit(ask) for _ in range(8)]]
    answered = sorted(seconds for seconds, response in answers if response.status_code == 200)
    refused = [(seconds, response) for seconds, response in answers if response.status_code == 503]
    # One reads and two can begin within the four seconds; whoever is told to wait longer is told so at once.
    assert 2 <= len(answered) <= 4
    assert refused
    for seconds, response in refused:
        assert response.json()["error"]["code"] == "full"
        told, real = int(response.headers["retry-after"]), answered[-1] - seconds
        assert real / 2 <= told <= 2 * real + 1, (told, real)


def test_a_long_prompt_that_makes_a_stream_wait_shows_in_the_time_between_its_tokens(faulty: Faulty) -> None:
    server = faulty("slow")
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(server.chat, "讲个故事", max_tokens=2000, ignore_eos=True)
        wait_for(lambda: server.progress()["tokens"] > 100, "the stream to run")
        before = gaps_over_a_second(server)
        assert server.chat(LONG, max_tokens=1).status_code == 200
        assert stream.result().status_code == 200
    assert gaps_over_a_second(server) > before
