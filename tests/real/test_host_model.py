"""Two real models behind a real nginx, as `make run` has them: killed one by one, and both at once, under prompts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.real.daemon import PATIENT, Daemon, daemon, one
from tests.real.pressure import pressure

ONE, TWO = "chatglm-01", "chatglm-02"
FIRST_START_S = 120.0  # the embedded model is trained on the first start: 12 s here
LOAD_S = 60.0


@pytest.fixture(scope="module")
def running(port_range: Callable[[int], range]) -> Iterator[Daemon]:
    """The embedded default, with the model built at its first start; nobody waits in nginx while nobody serves."""
    own = {"nginx": {"hold": 0.0}}
    with daemon(port_range(20), PATIENT, {"health": {"timeout": 5.0, "start_timeout": FIRST_START_S}}, own) as host:
        host.configure({"process": {"env": {"MODEL_CACHE": str(host.folder / "models"), "DRILL": "1"}}})
        host.start()
        host.wait_until_green(within=FIRST_START_S)
        yield host


@pytest.fixture
def host(running: Daemon) -> Iterator[Daemon]:
    running.put_right()
    yield running
    running.assert_no_defects()


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def test_both_models_answer_readable_chinese_on_both_ways_of_asking(host: Daemon) -> None:
    for instance in host.status()["instances"]:
        answer = httpx.post(f"http://{instance['endpoint']}/", json={"prompt": "你好", "history": []}, timeout=60.0)
        assert (answer.status_code, is_chinese(answer.json()["response"])) == (200, True)
    said = host.post("你是谁？").json()
    assert is_chinese(said["response"])
    print(f"你是谁？ -> {said['response']}")
    model = httpx.get(f"{host.gateway}/v1/models", timeout=60.0).json()["data"][0]["id"]
    question = {"model": model, "messages": [{"role": "user", "content": "你好"}]}
    chat = httpx.post(f"{host.gateway}/v1/chat/completions", json=question, timeout=60.0)
    assert chat.status_code == 200
    assert is_chinese(chat.json()["choices"][0]["message"]["content"])


def test_a_killed_model_costs_no_answer_and_serves_again(host: Daemon) -> None:
    victim = host.instance(TWO)
    with pressure(host.gateway, 4.0) as load:
        os.kill(victim["pid"], signal.SIGKILL)
        host.wait_for(
            lambda status: (i := one(status, TWO))["state"] == "serving" and i["restarts"] == victim["restarts"] + 1,
            "serves anew",
            LOAD_S,
        )
        load.wait_for_more(1.0)
    assert load.result.failures == []
    told = host.hactl("explain", TWO)
    assert told.code == 0
    for words in ("killed by signal 9", "out of the gateway", "loading -> serving"):
        assert words in told.out


def test_a_model_that_a_drill_makes_sick_is_restarted_and_costs_no_answer(host: Daemon) -> None:
    before = host.instance(TWO)
    ran = host.hactl("drill", "sick", TWO, "--yes", "--json", "--rate", "5")
    assert ran.code == 0, f"{ran.out}\n{ran.err}\n{host.log()[-3000:]}"
    load, until = ran.document["load"], ran.document["until"]
    print(f"sick: {load}, {until}")
    assert (ran.document["state"], ran.document["findings"]) == ("done", [])
    assert (load["failed"], load["failures"]) == (0, [])
    assert load["sent"] == load["answered"] > 5
    assert 0 < until["out_of_rotation_s"] < until["serving_again_s"]
    assert host.instance(TWO)["pid"] != before["pid"]


def test_nobody_can_make_a_model_sick_through_the_gateway(host: Daemon) -> None:
    for instance in host.status()["instances"]:
        assert httpx.get(f"http://{instance['endpoint']}/drill", timeout=10.0).json() == {"faults": ["sick"]}
    # Whatever a client says of where it comes from: nginx says it too, and the spelling of the path is the instance's.
    for path in ("/drill", "//drill", "/./drill", "/%64rill", "/v1/../drill"):
        for headers in ({}, {"X-Forwarded-For": ""}, {"Connection": "X-Forwarded-For, close"}):
            for method in ("GET", "POST"):
                told = httpx.request(
                    method, f"{host.gateway}{path}", json={"fault": "sick"}, headers=headers, timeout=10.0
                )
                assert told.status_code == 404, (method, path, headers, told.text)
    assert [host.post().status_code for _ in range(6)] == [200] * 6


def test_while_nobody_serves_users_are_told_when_to_come_back(host: Daemon) -> None:
    for instance in host.status()["instances"]:
        os.kill(instance["pid"], signal.SIGKILL)
    status = host.wait_for(lambda status: status["serving"] == 0 and status, "nobody serves")
    assert status["health"] == "red"
    assert host.hactl("check").code == 2
    host.wait_for(lambda status: not any(i["routed"] for i in status["instances"]), "nobody is routed")
    refused = host.post()
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.json()["error"]["type"] == "unavailable"
    health = httpx.get(f"{host.gateway}/health", timeout=10.0)
    assert (health.status_code, health.json()["serving"]) == (503, 0)

    after = host.wait_until_green(within=2 * LOAD_S)
    assert [instance["last_failure"]["reason"] for instance in after["instances"]] == ["killed by signal 9"] * 2
    assert host.post().status_code == 200
    health = httpx.get(f"{host.gateway}/health", timeout=10.0)
    assert (health.status_code, health.json()) == (200, {"status": "healthy", "serving": 2})
