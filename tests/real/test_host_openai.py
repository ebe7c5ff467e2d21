"""OpenAI's own client against real models behind the real gateway: what it is told, and what its death frees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest

from tests.real.daemon import PATIENT, Daemon, daemon

T = TypeVar("T")

FIRST_START_S = 120.0  # the embedded model is trained on the first start: 12 s here
KEY = "secret-of-the-tests"
USER: list[Any] = [{"role": "user", "content": "你好"}]
STORY: list[Any] = [{"role": "user", "content": "讲个故事"}]
ENDLESS = {"ignore_eos": True}
ENDLESS_TOKENS = 8000  # half a minute of the tiny model's work

CLIENT = """
import sys

import openai

url, key, body = sys.argv[1], sys.argv[2], {"ignore_eos": True}
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)
said = [{"role": "user", "content": "你好"}]
print("asks", flush=True)
for chunk in client.chat.completions.create(
    model="glm", messages=said, max_tokens=8000, stream=sys.argv[3] == "stream", extra_body=body
):
    print("streams", flush=True)
"""


@pytest.fixture(scope="module")
def host(port_range: Callable[[int], range]) -> Iterator[Daemon]:
    """Two embedded models that want a key, behind nginx."""
    patient = {"health": {"timeout": 5.0, "start_timeout": FIRST_START_S}}
    with daemon(port_range(20), PATIENT, patient) as host:
        env = {"MODEL_CACHE": str(host.folder / "models"), "MODEL_NAME": "glm", "API_KEY": KEY}
        host.configure({"process": {"env": env}})
        host.start()
        host.wait_until_green(within=FIRST_START_S)
        yield host


@pytest.fixture(scope="module")
def client(host: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{host.gateway}/v1", api_key=KEY, max_retries=0, timeout=60)


def instances(host: Daemon) -> list[str]:
    """Where each instance answers itself."""
    return [f"http://{instance['endpoint']}" for instance in host.status()["instances"]]


def inside(url: str) -> int:
    """Requests that an instance decodes or keeps waiting."""
    progress = httpx.get(f"{url}/health", timeout=10.0).json()["progress"]
    return int(progress["in_flight"]) + int(progress["queued"])


def counted(url: str, sample: str) -> float:
    """A sample of an instance's /metrics; 0 where it is not there yet."""
    lines = httpx.get(f"{url}/metrics", timeout=10.0).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == sample)


def asked(code: int) -> str:
    return f'model_api_requests_total{{code="{code}",endpoint="/v1/chat/completions"}}'


def test_the_one_model_is_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["glm"]
    assert client.models.retrieve("glm").owned_by == "chatglm-ha"


def test_a_chat_is_answered_in_readable_chinese_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="glm", messages=USER, temperature=0)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert (choice.message.content or "").startswith("你好！我是")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says_and_ends_with_the_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="glm", messages=STORY, temperature=0)
    *pieces, last = client.chat.completions.create(
        model="glm", messages=STORY, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert len(pieces) > 5
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_stream_comes_piece_by_piece_while_the_model_is_still_at_work(host: Daemon, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="glm", messages=USER, max_tokens=ENDLESS_TOKENS, stream=True, extra_body=ENDLESS
    )
    pieces = iter(stream)
    assert next(pieces).choices[0].delta.role == "assistant"
    assert next(pieces).choices[0].delta.content
    assert [inside(url) for url in instances(host)].count(1) == 1  # nothing of it was held back till its end
    stream.close()


def test_stop_strings_end_an_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="glm", messages=STORY, temperature=0, stop="守护")
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (
        "从前有一只小猫，它住在机房里，每天",
        "stop",
    )
    stream = client.chat.completions.create(
        model="glm", messages=STORY, temperature=0, stop=["no such", "守护着显"], stream=True
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in stream) == "从前有一只小猫，它住在机房里，每天"


def test_the_same_seed_gives_the_same_text_whichever_instance_answers(host: Daemon, client: openai.OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="glm",
            messages=STORY,
            seed=seed,
            temperature=2,
            top_p=1,
            max_tokens=40,
            extra_body={**ENDLESS, "top_k": 0},
        )
        return answer.choices[0].message.content

    before = [counted(url, asked(200)) for url in instances(host)]
    texts = {say(1) for _ in range(6)}
    after = [counted(url, asked(200)) for url in instances(host)]
    assert len(texts) == 1
    assert all(now > then for then, now in zip(before, after, strict=True)), "one instance gave all the answers"
    assert any(say(seed) not in texts for seed in range(2, 6))


def test_errors_reach_the_client_as_what_they_are(host: Daemon, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist here") as unknown:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert isinstance(unknown.value.body, dict)
    assert (unknown.value.body["code"], unknown.value.body["param"]) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature: Input should be less than or equal to 2") as wrong:
        client.chat.completions.create(model="glm", messages=USER, temperature=2.5)
    assert isinstance(wrong.value.body, dict)
    assert (wrong.value.body["type"], wrong.value.body["param"]) == ("invalid_request_error", "temperature")
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as long:
        client.chat.completions.create(model="glm", messages=USER, max_tokens=1_000_000)
    assert isinstance(long.value.body, dict)
    assert long.value.body["code"] == "context_length_exceeded"
    stranger = openai.OpenAI(base_url=f"{host.gateway}/v1", api_key="a-guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed") as locked:
        stranger.models.list()
    assert isinstance(locked.value.body, dict)
    assert locked.value.body["code"] == "invalid_api_key"


def test_a_failure_in_a_stream_is_an_error_that_the_client_sees(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="glm",
        messages=USER,
        max_tokens=ENDLESS_TOKENS,
        stream=True,
        extra_body={**ENDLESS, "timeout": 0.5},
    )
    with pytest.raises(openai.APIError, match="not finished by its deadline"):
        list(stream)


@pytest.mark.parametrize("how", ["stream", "whole"])
def test_a_killed_client_frees_its_slot_within_200_ms(host: Daemon, tmp_path: Path, how: str) -> None:
    """From SIGKILL to the instance's own word: past the client's kernel, nginx, and the step that was under way."""
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    urls = instances(host)
    wait_for(lambda: not any(map(inside, urls)), "nobody is inside")
    gone = sum(counted(url, asked(499)) for url in urls)
    taken = [killed(host, script, how, urls) for _ in range(3)]
    print(f"{how}: from SIGKILL to the free slot {[f'{1000 * seconds:.0f} ms' for seconds in taken]}")
    assert max(taken) < 0.2
    assert sum(counted(url, asked(499)) for url in urls) == gone + len(taken)


def killed(host: Daemon, script: Path, how: str, urls: list[str]) -> float:
    """Seconds from the SIGKILL of a client, which an instance is at work for, to the end of that work."""
    command = [sys.executable, str(script), f"{host.gateway}/v1", KEY, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "asks\n"
            if how == "stream":
                assert client.stdout.readline() == "streams\n"
            mine = wait_for(lambda: next((url for url in urls if inside(url)), ""), "an instance is at work")
            with httpx.Client() as looking:  # one connection: what is timed is the slot, not the looking
                url = f"{mine}/health"
                assert progress(looking, url)["in_flight"] == 1
                os.kill(client.pid, signal.SIGKILL)
                began = time.monotonic()
                wait_for(lambda: progress(looking, url)["in_flight"] == 0, "the slot is free")
                return time.monotonic() - began
        finally:
            client.kill()


def progress(client: httpx.Client, url: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.get(url).text)["progress"]
    return found


def wait_for(look: Callable[[], T], what: str, within: float = 30.0) -> T:
    """The first true result of `look`."""
    deadline = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.002)
    return found
