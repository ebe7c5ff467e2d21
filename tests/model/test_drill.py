"""The hook of `chatglm-hactl drill sick`: there for whoever started the server so, and for nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.model.conftest import StartServer
from tests.model.running import ModelServer, wait_for

SICK = {"fault": "sick", "for_s": 100}


@pytest.fixture(scope="module")
def drilled(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server that offers the hook, and wants a key of everybody else."""
    env = {"MODEL_CACHE": str(model_cache), "DRILL": "1", "API_KEY": "secret"}
    server = ModelServer(tmp_path_factory.mktemp("drill") / "log", env)
    server.client.headers["Authorization"] = "Bearer secret"
    server.wait_ready()
    yield server
    server.stop()
    server.check_log()


@pytest.fixture
def server(drilled: ModelServer) -> ModelServer:
    """It, well."""
    assert tell(drilled, {"fault": None}).status_code == 200
    return drilled


def tell(server: ModelServer, body: object, **headers: str) -> httpx.Response:
    """POST /drill, as the daemon sends it: without a key."""
    return httpx.post(f"{server.url}/drill", json=body, headers=headers, timeout=10)


def test_there_is_no_hook_unless_the_server_was_started_with_it(start_server: StartServer) -> None:
    server = start_server()
    assert server.client.get(f"{server.url}/drill").status_code == 404
    assert tell(server, SICK).status_code == 404
    assert server.ask("ping").json()["response"] == "pong"


def test_a_sick_server_answers_every_prompt_with_500_and_its_health_as_before(server: ModelServer) -> None:
    assert httpx.get(f"{server.url}/drill", timeout=10).json() == {"faults": ["sick"]}
    told = tell(server, SICK)
    assert (told.status_code, told.json()) == (200, {"faults": ["sick"]})
    for _ in range(5):
        plain, chat = server.ask("ping"), server.chat("ping")
        assert (plain.status_code, chat.status_code) == (500, 500)
    assert plain.json()["error"] == "told by a drill to answer every prompt with an error"
    assert (chat.json()["error"]["type"], chat.json()["error"]["code"]) == ("server_error", "drill")
    completion = server.client.post(f"{server.url}/v1/completions", json={"prompt": "ping"})
    assert completion.status_code == 500
    assert server.client.get(f"{server.url}/v1/models").status_code == 200
    assert server.client.get(f"{server.url}/health").status_code == 200
    assert server.health()["status"] == "healthy"


def test_it_is_well_again_when_it_is_told_so(server: ModelServer) -> None:
    tell(server, SICK)
    assert server.ask("ping").status_code == 500
    assert tell(server, {"fault": None}).status_code == 200
    assert server.ask("ping").json()["response"] == "pong"


def test_it_is_well_again_by_itself_when_its_time_is_over(server: ModelServer) -> None:
    tell(server, {"fault": "sick", "for_s": 0.5})
    assert server.ask("ping").status_code == 500
    wait_for(lambda: server.ask("ping").status_code == 200, "the drill to end by itself", patience=5)


def test_what_has_come_through_a_proxy_is_told_that_there_is_nothing(server: ModelServer) -> None:
    through = {"X-Forwarded-For": "203.0.113.7"}
    assert httpx.get(f"{server.url}/drill", headers=through, timeout=10).status_code == 404
    refused = tell(server, SICK, **through)
    assert (refused.status_code, refused.json()["error"]) == (404, "POST /drill: Not Found")
    assert server.ask("ping").json()["response"] == "pong"


@pytest.mark.parametrize("content", [b"", b"sick", b"\xff\xfe", b"[" * 4000, b"[" * 5000])
def test_what_is_no_json_is_told_so_and_changes_nothing(server: ModelServer, content: bytes) -> None:
    refused = httpx.post(f"{server.url}/drill", content=content, timeout=10)
    assert refused.status_code == (422 if len(content) < 4096 else 413)
    assert refused.json()["error"]
    assert server.ask("ping").json()["response"] == "pong"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "a JSON object with"),
        ({}, "a JSON object with"),
        ({"fault": "explode"}, "fault: 'explode' cannot be made here"),
        ({"fault": "sick", "for_s": "long"}, "for_s: must be a number of seconds"),
        ({"fault": "sick", "for_s": True}, "for_s: must be a number of seconds"),
        ({"fault": "sick", "for_s": 0}, "for_s: must be a number of seconds"),
        ({"fault": "sick", "for_s": 1e9}, "more than 0 and at most 3600"),
    ],
)
def test_a_wrong_order_is_told_what_was_meant_and_changes_nothing(
    server: ModelServer, body: object, words: str
) -> None:
    refused = tell(server, body)
    assert refused.status_code == 422
    assert words in refused.json()["error"]
    assert server.ask("ping").json()["response"] == "pong"
