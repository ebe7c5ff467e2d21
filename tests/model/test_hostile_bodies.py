"""Bodies made to hurt: what they cost the other users, what they are told, and who asks again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from model_api.bodies import DEEPEST, LONGEST_NUMBER, most_items, to_object
from model_api.problems import Unanswerable
from tests.model.running import ModelServer

MEGABYTE = 1_040_000
HELD_S = 0.05  # for which a body may hold up everybody else
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("hostile")
    keys = folder / "keys"
    keys.write_text("plain\nschlüssel-钥匙\n")
    server = ModelServer(folder / "log", {"MODEL_CACHE": str(model_cache), "API_KEY_FILE": str(keys)})
    server.wait_ready()
    server.client.headers["Authorization"] = "Bearer plain"
    yield server
    server.stop()
    server.check_log()


def listed(item: bytes) -> bytes:
    """A megabyte of one item over and over, in a list."""
    return b"[" + (item + b",") * (MEGABYTE // (len(item) + 1)) + item + b"]"


USER = b'{"messages":[{"role":"user","content":"x"}],'
HEAVY: dict[str, tuple[str, bytes]] = {
    "numbers for a prompt": (COMPLETIONS, b'{"prompt":' + listed(b"5.5") + b"}"),
    "lists for a prompt": (COMPLETIONS, b'{"prompt":' + listed(b"[]") + b"}"),
    "negative ids": (COMPLETIONS, b'{"prompt":' + listed(b"-1") + b"}"),
    "ids that could be a prompt": (COMPLETIONS, b'{"prompt":' + listed(b"123456789012345678901") + b"}"),
    "long numbers": (COMPLETIONS, b'{"prompt":' + listed(b"9" * 4000) + b"}"),
    "numbers for messages": (CHAT, b'{"messages":' + listed(b"1") + b"}"),
    "empty messages": (CHAT, b'{"messages":' + listed(b"{}") + b"}"),
    "short messages": (CHAT, b'{"messages":' + listed(b'{"role":"user","content":"x"}') + b"}"),
    "numbers for parts": (CHAT, b'{"messages":[{"role":"user","content":' + listed(b"1") + b"}]}"),
    "parts of text": (CHAT, b'{"messages":[{"role":"user","content":' + listed(b'{"type":"text","text":"x"}') + b"}]}"),
    "numbers for stops": (CHAT, USER + b'"stop":' + listed(b"1") + b"}"),
    "tools": (CHAT, USER + b'"tools":' + listed(b"1") + b"}"),
    "many names": (CHAT, USER + b",".join(b'"k%d":1' % number for number in range(95_000)) + b"}"),
    "escapes without an end": (CHAT, b'{"x":"' + b'\\"' * (MEGABYTE // 2)),
    "escapes": (CHAT, b'{"messages":[{"role":"user","content":"' + b"\\n" * (MEGABYTE // 2) + b'"}]}'),
    "one long text": (CHAT, b'{"messages":[{"role":"user","content":"' + b"ab " * (MEGABYTE // 3) + b'"}]}'),
    "depth": (CHAT, b'{"messages":' + b"[" * MEGABYTE),
    "a history": ("/", b'{"prompt":"x","history":' + listed(b'["",""]') + b"}"),
    "a history of text": ("/", b'{"prompt":"x","history":[["' + b"x y " * (MEGABYTE // 4) + b'",""]]}'),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_a_megabyte_of_anything_holds_health_up_for_50_ms_at_most(server: ModelServer, kind: str) -> None:
    """The least of five measurements: other work on this machine disturbs one, a body that holds the loop up all."""
    path, body = HEAVY[kind]
    waits = [held(server, path, body) for _ in range(3)]
    if min(waits) > HELD_S:
        waits += [held(server, path, body) for _ in range(2)]
    print(f"{kind}: /health waited at worst {[f'{1000 * wait:.0f} ms' for wait in waits]}")
    assert min(waits) <= HELD_S


def held(server: ModelServer, path: str, body: bytes) -> float:
    """The longest that GET /health was held up while a body was dealt with, in seconds; the body is refused."""
    waits: list[float] = []
    over = threading.Event()

    def look() -> None:
        with httpx.Client() as client:
            while not over.is_set() or not waits:
                waits.append(server.look_takes(client))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        answer = server.client.post(server.url + path, content=body)
    finally:
        over.set()
        looking.join()
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["x-should-retry"] == "false"
    assert len(answer.content) < 1000
    return max(waits)


def test_a_key_of_a_message_that_is_nested_deep_is_refused_and_costs_no_log(server: ModelServer) -> None:
    before = len(server.log)
    for depth in (40, 300, 500, 900, 5000):
        nested = b"[" * depth + b"]" * depth
        body = b'{"messages":[{"role":"user","content":"x","foo":' + nested + b"}]}"
        answer = server.client.post(server.url + CHAT, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert len(server.log) == before


def test_unknown_names_are_told_in_a_header_each_time_and_once_in_the_log(server: ModelServer) -> None:
    told = [server.chat("ping", temprature=1, max_tokens=1, stream=stream) for stream in (False, True, False)]
    assert [answer.headers["x-ignored-parameters"] for answer in told] == ["temprature"] * 3
    assert server.log.count("temprature") == 1
    odd = server.chat("ping", max_tokens=1, **{"a\r\nb: c": 1, "键": 2})
    assert odd.headers["x-ignored-parameters"] == "?, ?"
    assert "x-ignored-parameters" not in server.chat("ping", max_tokens=1, user="somebody").headers


@pytest.mark.parametrize("more", [{"top_k": 10**30}, {"repetition_penalty": 1e-40}, {"n": 2}, {"timeout": 0.1}])
def test_openais_client_asks_once_for_what_would_fail_again(server: ModelServer, more: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="plain", max_retries=2)
    before = server.metric("model_api_requests_total")
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(
            model="chatglm-tiny",
            messages=[{"role": "user", "content": "你好"}],
            max_tokens=8000,
            extra_body={"ignore_eos": True, **more},
        )
    assert told.value.status_code == (408 if "timeout" in more else 400)
    assert server.metric("model_api_requests_total") == before + 1


def test_a_key_of_other_letters_is_known_and_a_wrong_one_is_told_how_to_ask(server: ModelServer) -> None:
    def status(key: bytes) -> httpx.Response:
        return httpx.get(f"{server.url}/v1/models", headers=[(b"Authorization", b"Bearer " + key)])

    assert status("schlüssel-钥匙".encode()).status_code == 200
    wrong = status("schlüssel".encode())
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")


def test_a_slash_too_many_is_no_redirect_to_where_a_client_says(server: ModelServer) -> None:
    for path in (CHAT + "/", "/health/"):
        answer = server.client.post(server.url + path, json={}, headers={"Host": "evil.example"})
        assert answer.status_code == 404
        assert "location" not in answer.headers


# --- the shape of JSON, alone ---------------------------------------------------------------------------------------


def refused(body: bytes, items: int = 1000) -> str:
    with pytest.raises(Unanswerable) as told:
        to_object(body, items, invalid=400)
    return told.value.problem.words


def test_marks_inside_of_strings_are_text() -> None:
    body = b'{"a":"' + b'[{,:\\"\\\\' * 500 + b'","b":"\\\\"}'
    assert len(to_object(body, 20, invalid=400)) == 2


def test_depth_items_and_numbers_are_bounded() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * depth + b"]" * depth + b"}"

    assert to_object(nested(DEEPEST - 1), 1000, invalid=400)
    assert "nested too deeply" in refused(nested(DEEPEST))
    assert to_object(b'{"a":[' + b"1," * 90 + b"1]}", 100, invalid=400)
    assert "more than 100 values" in refused(b'{"a":[' + b"1," * 100 + b"1]}", 100)
    assert to_object(b'{"a":' + b"9" * LONGEST_NUMBER + b"}", 100, invalid=400)
    assert "a number of more than" in refused(b'{"a":' + b"9" * (LONGEST_NUMBER + 1) + b"}")
    assert "not UTF-8" in refused('{"a":1}'.encode("utf-16"))


def test_a_context_full_of_ids_or_of_short_messages_has_not_too_many_items() -> None:
    for context in (300, 8192, 131_072, 1_000_000):
        assert most_items(context) > context + 1000
    assert most_items(8192) > 8192 // 3 * 10
