"""What answers mean: a table for each row of the contract, and no bytes that break the reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasupervisor.model import Miss, Progress, Said
from hasupervisor.observe.answers import (
    Dialect,
    Health,
    counter_value,
    first_model,
    prompt_fault,
    prompt_question,
    read_health,
)
from hasupervisor.observe.exchange import Answer, Missed

PROGRESS = {"in_flight": 1, "queued": 2, "steps": 3, "tokens": 4, "step_running_s": 0.5, "idle_s": 0}


def told(status: int, body: object) -> Answer:
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (told(200, {"status": "healthy"}), Health(Said.HEALTHY)),
        (told(200, {"status": "Healthy", "gpu_memory_gb": 3.1}), Health(Said.HEALTHY)),
        (told(204, b""), Health(Said.HEALTHY)),
        (told(200, b""), Health(Said.HEALTHY)),
        (told(200, b"fine\n"), Health(Said.HEALTHY)),
        (told(200, b"\xff\xfe\x00{"), Health(Said.HEALTHY)),
        (told(200, b"[" * 60000), Health(Said.HEALTHY)),
        (told(200, b'{"status": "unhealthy"'), Health(Said.HEALTHY)),  # no JSON
        (told(200, []), Health(Said.HEALTHY)),
        (told(200, {}), Health(Said.HEALTHY)),
        (told(200, {"status": "ok"}), Health(Said.HEALTHY)),  # llama.cpp
        (told(200, {"status": 1}), Health(Said.HEALTHY)),
        (Answer(200, b'{"status": "unhealthy"}' + b" " * 99, whole=False), Health(Said.HEALTHY)),
        (told(200, {"status": "unhealthy", "reason": "GPU lost"}), Health(Said.UNHEALTHY, "GPU lost")),
        (told(503, {"status": "unhealthy", "reason": "显存不足"}), Health(Said.UNHEALTHY, "显存不足")),
        (told(503, {"status": "unhealthy"}), Health(Said.UNHEALTHY)),
        (told(503, {"status": "unhealthy", "reason": None}), Health(Said.UNHEALTHY)),
        (told(503, {"status": "unhealthy", "reason": {"a": 1}}), Health(Said.UNHEALTHY, '{"a": 1}')),
        (told(503, {"status": "unhealthy", "reason": "a\n\x1b[31mb\tc"}), Health(Said.UNHEALTHY, "a [31mb c")),
        (told(503, {"status": "unhealthy", "reason": "x" * 999}), Health(Said.UNHEALTHY, "x" * 199 + "…")),
        (told(503, {"status": "loading"}), Health(Said.LOADING)),
        (told(200, {"status": "loading"}), Health(Said.LOADING)),
        (
            told(200, {"status": "healthy", "progress": PROGRESS}),
            Health(Said.HEALTHY, "", Progress(1, 2, 3, 4, 0.5, 0)),
        ),
        (told(503, {"status": "loading", "progress": {}}), Health(Said.LOADING, "", Progress())),
        (told(200, {"status": "healthy", "progress": [1]}), Health(Said.HEALTHY)),
        (
            told(200, b'{"progress": {"steps": NaN, "tokens": 1e999, "queued": -4, "in_flight": true, "idle_s": "x"}}'),
            Health(Said.HEALTHY, "", Progress()),
        ),
        (told(200, b'{"progress": {"steps": 1' + b"0" * 400 + b"}}"), Health(Said.HEALTHY, "", Progress())),
    ],
)
def test_an_answer_that_the_contract_knows_is_understood(answer: Answer, health: Health) -> None:
    assert read_health(answer) == health


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (told(500, {"status": "healthy"}), 'answered 500: {"status": "healthy"}'),
        (told(500, {"status": "unhealthy"}), 'answered 500: {"status": "unhealthy"}'),
        (told(503, b""), "answered 503"),
        (told(503, {"status": "healthy"}), 'answered 503: {"status": "healthy"}'),
        (Answer(503, b'{"status": "loading"}', whole=False), 'answered 503: {"status": "loading"}'),
        (told(404, b"<html>\r\n not\x00 here"), "answered 404: <html> not here"),
        (told(301, b""), "answered 301"),
        (told(429, b"x" * 5000), "answered 429: " + "x" * 199 + "…"),
        (told(200, {"status": "error"}), "answered 200 with \"status\": 'error'"),
        (told(200, {"status": "starting"}), "answered 200 with \"status\": 'starting'"),
    ],
)
def test_anything_else_is_a_failure_in_words(answer: Answer, words: str) -> None:
    with pytest.raises(Missed) as missed:
        read_health(answer)
    assert missed.value.miss is Miss.ERROR_STATUS
    assert str(missed.value) == words


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["status", "reason", "progress", "steps"]), inner),
    max_leaves=12,
)


@settings(deadline=None)  # a busy machine is no defect
@given(st.integers(100, 599), st.binary() | JSON.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_no_answer_breaks_the_reader(status: int, body: bytes, whole: bool) -> None:
    answer = Answer(status, body, whole)
    words = ""
    try:
        words = read_health(answer).reason
        usable = True
    except Missed as missed:
        words = str(missed)
        usable = False
    assert words.isprintable()
    assert usable <= (200 <= status < 300 or status == 503)
    for dialect in (Dialect.CHATGLM, Dialect.OPENAI):
        assert prompt_fault(dialect, answer).isprintable()
    assert isinstance(first_model(answer), str)


def test_the_chatglm_prompt_is_the_contracts_to_the_letter() -> None:
    question = prompt_question(Dialect.CHATGLM, "你好")
    assert (question.method, question.path) == ("POST", "/")
    assert json.loads(question.body) == {"prompt": "你好", "history": []}


def test_the_openai_prompt_is_short_and_names_a_model_only_where_one_is_known() -> None:
    question = prompt_question(Dialect.OPENAI, "你好")
    assert (question.method, question.path) == ("POST", "/v1/chat/completions")
    asked = json.loads(question.body)
    assert asked.pop("max_tokens") <= 32
    assert asked == {"messages": [{"role": "user", "content": "你好"}], "stream": False}
    assert json.loads(prompt_question(Dialect.OPENAI, "你好", "glm").body)["model"] == "glm"


def completion(**message: object) -> object:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}}]}


@pytest.mark.parametrize(
    ("dialect", "answer", "fault"),
    [
        (Dialect.CHATGLM, told(200, {"response": "你好👋", "history": [], "status": 200}), ""),
        (Dialect.CHATGLM, told(200, {"response": " \n"}), "its answer is empty"),
        (Dialect.CHATGLM, told(200, {"response": None}), "its answer has no text"),
        (Dialect.CHATGLM, told(200, {"answer": "x"}), "its answer has no text"),
        (Dialect.CHATGLM, told(200, b"hello"), "its answer is not a JSON object"),
        (Dialect.CHATGLM, told(500, b"CUDA error: an illegal"), "answered 500: CUDA error: an illegal"),
        (Dialect.CHATGLM, told(201, {"response": "x"}), 'answered 201: {"response": "x"}'),
        (Dialect.OPENAI, told(200, completion(content="hello")), ""),
        (Dialect.OPENAI, told(200, completion(content=None, reasoning_content="hm")), ""),
        (Dialect.OPENAI, told(200, completion(content="", reasoning="hm")), ""),
        (Dialect.OPENAI, told(200, {"choices": [{"text": "hello"}]}), ""),
        (Dialect.OPENAI, told(200, completion(content="")), "its answer is empty"),
        (Dialect.OPENAI, told(200, completion(content=None)), "its answer has no text"),
        (Dialect.OPENAI, told(200, {"choices": []}), "its answer has no text"),
        (Dialect.OPENAI, told(200, {"choices": ["x"]}), "its answer has no text"),
    ],
)
def test_a_prompts_answer_is_good_when_it_is_200_and_has_a_text(dialect: Dialect, answer: Answer, fault: str) -> None:
    assert prompt_fault(dialect, answer) == fault


def test_the_first_model_of_a_list_is_named() -> None:
    assert first_model(told(200, {"object": "list", "data": [{"id": "glm-4"}, {"id": "other"}]})) == "glm-4"
    assert (
        first_model(told(404, b""))
        == first_model(told(200, {"data": []}))
        == first_model(told(200, {"data": [1]}))
        == ""
    )


PAGE = b"""# HELP vllm:generation_tokens_total Number
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total_created{engine="0"} 1.7e9
vllm:generation_tokens_total{engine="0",model_name="a b"} 120.0
vllm:generation_tokens_total{engine="1",model_name="}"} 3 1795506328000
plain_total 7
odd_total NaN
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vllm:generation_tokens_total", 123.0),
        ("plain_total", 7.0),
        ("plain", None),
        ("absent", None),
        ("odd_total", 0.0),
    ],
)
def test_a_counter_is_summed_over_its_labels(name: str, value: float | None) -> None:
    assert counter_value(name, Answer(200, PAGE)) == value
    assert counter_value(name, Answer(500, PAGE)) is None
