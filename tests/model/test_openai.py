"""OpenAI's API, asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.model.running import ModelServer, wait_for

USER = [{"role": "user", "content": "你好"}]
STORY: list[Any] = [{"role": "user", "content": "讲个故事"}]


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    keys = tmp_path_factory.mktemp("openai") / "keys"
    keys.write_text("secret-1\nsecret-2\n")
    env = {"MODEL_CACHE": str(model_cache), "MODEL_NAME": "glm", "API_KEY_FILE": str(keys), "MAX_CONTEXT": "4000"}
    server = ModelServer(keys.with_name("log"), env)
    server.wait_ready()
    yield server
    server.stop()
    server.check_log()


@pytest.fixture(scope="module")
def client(server: ModelServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret-2", max_retries=0, timeout=60)


def test_the_one_model_is_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["glm"]
    assert client.models.retrieve("glm").object == "model"


def test_a_chat_is_answered_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="glm", messages=USER, temperature=0)  # type: ignore[arg-type]
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "glm"
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content is not None
    assert choice.message.content.startswith("你好！我是")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 5


def test_a_stream_carries_the_same_text_a_role_first_a_reason_last_and_the_usage_if_asked(
    client: openai.OpenAI,
) -> None:
    whole = client.chat.completions.create(model="glm", messages=STORY, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="glm", messages=STORY, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].choices[0].delta.role == "assistant"
    *pieces, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in pieces)
    assert len(pieces) > 5


def test_without_the_option_a_stream_has_no_usage_and_ends_with_done(server: ModelServer) -> None:
    body = {"messages": STORY, "stream": True}
    response = server.client.post(
        f"{server.url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer secret-1"}
    )
    events = response.text.split("\n\n")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events[-2:] == ["data: [DONE]", ""]
    assert not any("usage" in event for event in events)


def test_stop_strings_end_an_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="glm", messages=STORY, temperature=0, stop="守护")
    assert whole.choices[0].message.content == "从前有一只小猫，它住在机房里，每天"
    assert whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model="glm", messages=STORY, temperature=0, stop=["no such", "守护着显"], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "从前有一只小猫，它住在机房里，每天"


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="glm",
            messages=STORY,
            seed=seed,
            temperature=2,
            top_p=1,
            max_tokens=40,
            extra_body={"ignore_eos": True, "top_k": 0},
        )
        return answer.choices[0].message.content

    first = say(1)
    assert say(1) == first
    assert any(say(seed) != first for seed in range(2, 6))


def test_max_tokens_is_kept_under_both_names_and_says_length(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = client.chat.completions.create(model="glm", messages=STORY, **limit)  # type: ignore[call-overload]
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_system_assistant_and_tool_messages_and_content_in_parts_are_taken(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "1", "content": "22 °C"},
        {"role": "user", "content": "谢谢"},
    ]
    assert client.chat.completions.create(model="glm", messages=messages).choices[0].message.content


def test_completions_continue_text_or_ids_and_keep_their_space(client: openai.OpenAI) -> None:
    text = client.completions.create(model="glm", prompt="<|user|>\nping<|assistant|>", temperature=0)
    assert text.choices[0].text == "\npong"
    assert text.id.startswith("cmpl-")
    assert text.object == "text_completion"
    ids = client.completions.create(model="glm", prompt=[4, 7], max_tokens=5, extra_body={"ignore_eos": True})
    assert ids.usage is not None
    assert (ids.usage.prompt_tokens, ids.usage.completion_tokens) == (2, 5)
    stream = client.completions.create(model="glm", prompt=["<|user|>\nping<|assistant|>"], temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "\npong"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role: Input should be 'system'"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: must not be empty"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content: Input should be a valid string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
    ({"temperature": -0.1}, "temperature: Input should be greater than or equal to 0"),
    ({"temperature": 2.1}, "temperature: Input should be less than or equal to 2"),
    ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ({"top_p": 2}, "top_p: Input should be less than or equal to 1"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": 5000}, "maximum context length is 4000 tokens"),
    ({"stop": 5}, "stop: Input should be a valid string"),
    ({"stop": ["x"] * 17}, "stop: at most 16 strings"),
    ({"seed": "x"}, "seed: Input should be a valid integer"),
    ({"n": 2}, "n: 2 is not supported"),
    ({"logprobs": True}, "logprobs: True is not supported"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: "),
    ({"response_format": {"type": "json_object"}}, "response_format: "),
    ({"presence_penalty": 0.5}, "presence_penalty: 0.5 is not supported"),
    ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty: Input should be greater than or equal to 0.01"),
]


@pytest.mark.parametrize(("body", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_parameter_is_a_bad_request_that_names_it(
    client: openai.OpenAI, body: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(**{"model": "glm", "messages": USER, **body})
    assert words in str(told.value)
    assert isinstance(told.value.body, dict)
    assert told.value.body["type"] == "invalid_request_error"
    assert told.value.body["code"]


def test_harmless_spellings_of_nothing_are_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="glm",
        messages=USER,  # type: ignore[arg-type]
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        user="somebody",
        stop=[],
    )
    assert answer.choices[0].message.content


def test_ids_outside_the_vocabulary_are_refused_before_they_reach_a_gpu(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="token ids must be under"):
        client.completions.create(model="glm", prompt=[5, 10_000_000])
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.completions.create(model="glm", prompt=[-1])


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist here"):
        client.chat.completions.create(model="gpt-4", messages=USER)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_wrong_key_is_refused_everywhere_but_at_health_and_metrics(server: ModelServer) -> None:
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        stranger.chat.completions.create(model="glm", messages=USER)  # type: ignore[arg-type]
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    assert server.ask().status_code == 401
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200


def test_a_timeout_in_the_body_ends_the_request_with_408_which_nobody_tries_again(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(
            model="glm",
            messages=USER,  # type: ignore[arg-type]
            max_tokens=3900,
            extra_body={"ignore_eos": True, "timeout": 0.2},
        )
    assert told.value.status_code == 408
    assert "not finished by its deadline" in str(told.value)


def test_a_timeout_in_a_stream_is_an_error_that_the_client_sees(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="glm",
        messages=USER,  # type: ignore[arg-type]
        max_tokens=3900,
        stream=True,
        extra_body={"ignore_eos": True, "timeout": 0.3},
    )
    with pytest.raises(openai.APIError, match="not finished by its deadline"):
        list(stream)


def test_a_client_that_leaves_a_stream_frees_its_row_within_200_ms(server: ModelServer, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="glm",
        messages=USER,  # type: ignore[arg-type]
        max_tokens=3900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert server.progress()["in_flight"] == 1
    stream.close()
    wait_for(lambda: server.progress()["in_flight"] == 0, "the row to be free", patience=0.2)
