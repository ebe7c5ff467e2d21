"""`POST /` as the published api.py has it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from model_api.legacy import parse
from tests.model.running import ModelServer


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    server = ModelServer(
        tmp_path_factory.mktemp("legacy") / "log", {"MODEL_CACHE": str(model_cache), "MAX_CONTEXT": "300"}
    )
    server.wait_ready()
    yield server
    server.stop()
    server.check_log()


def test_an_answer_has_the_published_fields_and_is_readable_chinese(server: ModelServer) -> None:
    response = server.ask("你好")
    body = response.json()
    assert response.status_code == 200
    assert set(body) == {"response", "history", "status", "time"}
    assert body["status"] == 200
    assert body["history"] == [["你好", body["response"]]]
    assert len(body["response"]) > 5
    assert body["response"].startswith("你好！我是内置的小型 GLM 模型")
    assert abs((datetime.now() - datetime.strptime(body["time"], "%Y-%m-%d %H:%M:%S")).total_seconds()) < 10


def test_a_conversation_of_three_turns_round_trips_its_history_and_the_model_reads_all_of_it(
    server: ModelServer,
) -> None:
    history: list[list[str]] = []
    for turn, question in enumerate(("你好", "讲个故事", "谢谢"), start=1):
        before = server.metric("model_api_prompt_tokens_total")
        body = server.client.post(f"{server.url}/", json={"prompt": question, "history": history}).json()
        read = server.metric("model_api_prompt_tokens_total") - before
        assert read == tokens_of_dialogue(server, history, question)
        assert body["history"] == [*history, [question, body["response"]]]
        history = body["history"]
        assert len(history) == turn
    assert all(answer for _, answer in history)


def tokens_of_dialogue(server: ModelServer, history: list[list[str]], question: str) -> int:
    """As the other API counts the same dialogue, spelt as roles."""
    pairs = [(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
    messages = [{"role": role, "content": text} for role, text in [*pairs, ("user", question)]]
    body = {"messages": messages, "max_tokens": 1}
    answer = server.client.post(f"{server.url}/v1/chat/completions", json=body).json()
    return int(answer["usage"]["prompt_tokens"])


def test_no_history_and_null_are_an_empty_one_and_unknown_fields_are_ignored(server: ModelServer) -> None:
    for extra in ({}, {"history": None}, {"history": []}, {"do_sample": False, "x": {}}):
        response = server.client.post(f"{server.url}/", json={"prompt": "ping", **extra})
        assert response.json()["history"] == [["ping", "pong"]]


def test_a_body_without_a_content_type_is_read_as_curl_sends_it(server: ModelServer) -> None:
    body = b'{"prompt":"ping","history":[]}'
    for content_type in ("application/x-www-form-urlencoded", "text/plain"):
        response = server.client.post(f"{server.url}/", content=body, headers={"content-type": content_type})
        assert response.json()["response"] == "pong"


def test_max_length_counts_the_prompt_and_the_answer(server: ModelServer) -> None:
    whole = server.ask("count").json()["response"]
    short = server.ask("count", max_length=12).json()["response"]
    assert whole.startswith(short)
    assert 0 < len(short) < len(whole)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (2048, 0.7, 0.95)),
        ({"max_length": None, "top_p": None, "temperature": None}, (2048, 0.7, 0.95)),
        ({"max_length": 0, "top_p": 0, "temperature": 0}, (2048, 0.7, 0.95)),
        ({"max_length": False, "top_p": 0.0, "temperature": False}, (2048, 0.7, 0.95)),
        ({"max_length": 64, "top_p": 1, "temperature": 0.01}, (64, 1, 0.01)),
        ({"max_length": 64.0}, (64, 0.7, 0.95)),
    ],
)
def test_what_is_empty_means_the_published_default(body: dict[str, object], expected: tuple[float, ...]) -> None:
    question = parse({"prompt": "x", **body})
    assert (question.max_length, question.top_p, question.temperature) == expected


MALFORMED: list[tuple[bytes | str, str]] = [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("你好", "not JSON"),
    (b'{"prompt": "\xff\xfe"}', "not UTF-8"),
    ("[]", "must be a JSON object, not a list"),
    ('"你好"', "must be a JSON object, not a str"),
    ("null", "must be a JSON object"),
    ("{}", "prompt: is missing"),
    ('{"prompt": null}', "prompt: must be a string"),
    ('{"prompt": 5}', "prompt: must be a string"),
    ('{"prompt": ["你好"]}', "prompt: must be a string"),
    ('{"prompt": ""}', "prompt: must not be empty"),
    ('{"prompt": " \\n "}', "prompt: must not be empty"),
    ('{"prompt": "\\ud800"}', "prompt: holds half of a surrogate pair"),
    ('{"prompt": "x", "history": "y"}', "history: must be a list"),
    ('{"prompt": "x", "history": {"a": "b"}}', "history: must be a list"),
    ('{"prompt": "x", "history": ["a", "b"]}', "history[0]: must be a pair of strings"),
    ('{"prompt": "x", "history": [["a", "b"], ["c"]]}', "history[1]: must be a pair of strings"),
    ('{"prompt": "x", "history": [["a", "b", "c"]]}', "history[0]: must be a pair"),
    ('{"prompt": "x", "history": [["a", null]]}', "history[0]: must be a pair"),
    ('{"prompt": "x", "history": [["a", "\\udfff"]]}', "history[0]: holds half of a surrogate pair"),
    ('{"prompt": "x", "max_length": "long"}', "max_length: must be a number"),
    ('{"prompt": "x", "max_length": -5}', "max_length: must be from 1 to 2147483647"),
    ('{"prompt": "x", "max_length": 10.5}', "max_length: must be a whole number"),
    ('{"prompt": "x", "max_length": 1e999}', "max_length: must be from 1 to 2147483647"),
    ('{"prompt": "x", "top_p": 1.5}', "top_p: must be from 0 to 1"),
    ('{"prompt": "x", "top_p": true}', "top_p: must be a number"),
    ('{"prompt": "x", "temperature": -1}', "temperature: must be from 0 to 100"),
    ('{"prompt": "x", "temperature": NaN}', "NaN is no JSON number"),
    ('{"prompt": "x", "temperature": {}}', "temperature: must be a number"),
    ('{"prompt": "x", "temperature": ' + "9" * 5000 + "}", "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"prompt": "' + "你" * 400 + '"}', "which leaves none of this server's context (300) for an answer"),
    ('{"prompt": "你好你好", "max_length": 3}', "which leaves none of max_length (3) for an answer"),
]


@pytest.mark.parametrize(("body", "words"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_body_gets_422_and_says_why(server: ModelServer, body: bytes | str, words: str) -> None:
    response = server.client.post(f"{server.url}/", content=body if isinstance(body, bytes) else body.encode())
    assert response.status_code == 422, response.text
    assert words in response.json()["error"]
    assert response.json()["status"] == 422


def test_a_body_beyond_the_limit_gets_413_and_the_connection_is_not_cut(server: ModelServer) -> None:
    response = httpx.post(f"{server.url}/", content=b'{"prompt": "' + b"x" * (3 << 20) + b'"}', timeout=30)
    assert response.status_code == 413
    assert "longer than 1048576 bytes" in response.json()["error"]


def test_other_paths_and_methods_are_told_in_the_same_shape(server: ModelServer) -> None:
    assert server.client.get(f"{server.url}/").status_code == 405
    response = server.client.get(f"{server.url}/nowhere")
    assert response.status_code == 404
    assert response.json()["error"] == "GET /nowhere: Not Found"
