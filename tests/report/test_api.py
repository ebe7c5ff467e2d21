"""Every request of docs/control-api.md against the real server on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from hasupervisor.model import OperationState, State
from hasupervisor.report import answers
from hasupervisor.report import api as api_module
from hasupervisor.report.desk import Failed, Invalid, Refused, ReplayAsked, Unavailable
from tests.report import schema
from tests.report.cards import WITH_GPUS
from tests.report.clerk import Clerk
from tests.report.example import SNAPSHOT, judged
from tests.report.schema import conforms
from tests.report.serving import lines_of, me, problem, served, until


async def test_the_status_is_the_document_and_one_instance_can_be_kept() -> None:
    async with served() as ha:
        answer = await ha.client.get("/v1/status")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert conforms(answer.json(), schema.STATUS)
        one = (await ha.client.get("/v1/status?name=chatglm-02")).json()
        assert [instance["name"] for instance in one["instances"]] == ["chatglm-02"]


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("chatglm-2", "there is no instance chatglm-2; did you mean chatglm-02?"),
        ("3", "there is no instance 3; did you mean chatglm-03?"),
        ("x", "there is no instance x; there are chatglm-01, chatglm-02, chatglm-03"),
    ],
)
async def test_an_instance_that_does_not_exist_is_404_with_what_there_is(name: str, detail: str) -> None:
    async with served() as ha:
        for method, target in [
            ("GET", f"/v1/status?name={name}"),
            ("GET", f"/v1/instances/{name}/explain"),
            ("GET", f"/v1/instances/{name}/logs"),
            ("POST", f"/v1/instances/{name}/restart"),
            ("POST", f"/v1/instances/{name}/drain"),
            ("POST", f"/v1/instances/{name}/undrain"),
        ]:
            found = await problem(await ha.client.request(method, target), 404)
            assert (found["title"], found["detail"], found["hint"]) == ("Not found", detail, "chatglm-hactl status")
        assert ha.clerk.told == []


async def test_the_version_says_who_answers() -> None:
    async with served() as ha:
        found = (await ha.client.get("/v1/version")).json()
    assert found == {"version": "0.1.0", "api": 1, "pid": os.getpid(), "started": "2026-11-24T02:02:11.123Z"}


async def test_an_explanation_has_the_instances_own_history() -> None:
    async with served() as ha:
        ha.clerk.add("serving -> backoff: exited 1")
        ha.clerk.add("other", subject="chatglm-01")
        found = (await ha.client.get("/v1/instances/chatglm-02/explain")).json()
    assert conforms(found, schema.EXPLANATION)
    assert [line["sentence"] for line in found["history"]] == ["serving -> backoff: exited 1"]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "body", "told"),
    [
        ("/v1/scale", {"n": 4}, ("scale", 4, False)),
        ("/v1/scale", {"n": 9, "force": True}, ("scale", 9, True)),
        ("/v1/restart", None, ("restart", None, False)),
        ("/v1/restart", {"force": True}, ("restart", None, True)),
        ("/v1/instances/chatglm-01/restart", {}, ("restart", "chatglm-01", False)),
        ("/v1/instances/chatglm-01/drain", {"force": True}, ("drain", "chatglm-01", True)),
        ("/v1/instances/chatglm-01/undrain", None, ("undrain", "chatglm-01")),
        ("/v1/instances/chatglm-01/undrain", {}, ("undrain", "chatglm-01")),
    ],
)
async def test_a_long_command_answers_202_with_its_operation_and_who_asked(
    target: str, body: dict[str, Any] | None, told: tuple[Any, ...]
) -> None:
    async with served() as ha:
        answer = await ha.client.post(target, json=body) if body is not None else await ha.client.post(target)
        assert answer.status_code == 202, answer.text
        assert conforms(answer.json(), schema.OPERATION)
        assert answer.json()["by"] == me()
        assert ha.clerk.told == [(*told, me())]


async def test_a_dry_run_answers_200_and_begins_nothing() -> None:
    async with served() as ha:
        answer = await ha.client.post("/v1/scale", json={"n": 5, "dry_run": True})
        assert answer.status_code == 200
        assert conforms(answer.json(), schema.DRY_RUN)
        assert answer.json()["steps"] == ["start chatglm-04", "start chatglm-05"]
        assert len(ha.clerk.snapshot.operations) == 1


async def test_what_the_desk_refuses_is_409_with_the_next_command() -> None:
    async with served() as ha:
        found = await problem(await ha.client.post("/v1/scale", json={"n": 7}), 409)
    assert found == {
        "type": "about:blank",
        "title": "Refused",
        "status": 409,
        "detail": "7 is above service.max = 6",
        "hint": "chatglm-hactl scale 7 --force",
        "problems": [],
    }


@pytest.mark.parametrize(
    ("error", "status", "title"),
    [
        (Refused("paused by alice", "chatglm-hactl resume"), 409, "Refused"),
        (Invalid("2 things are wrong", None, ["a.toml:1: x", "a.toml:2: y"]), 422, "Invalid configuration"),
        (Unavailable("the daemon has just started", "chatglm-hactl status"), 503, "Unavailable"),
        (Failed("nginx would not reload", "chatglm-hactl nginx test", ["unknown directive"]), 500, "Failed"),
    ],
)
async def test_each_way_of_declining_has_its_status(error: Exception, status: int, title: str) -> None:
    with capture_logs() as logged:
        async with served(Clerk(fail=error)) as ha:
            found = await problem(await ha.client.post("/v1/config/reload"), status)
            again = await problem(await ha.client.get("/v1/nginx"), status)
    assert found == again
    assert (found["title"], found["detail"]) == (title, str(error))
    assert found["problems"] == list(error.problems)  # type: ignore[attr-defined]
    assert logged == []


async def test_a_defect_is_500_without_its_inside_and_is_logged_with_the_word_bug() -> None:
    with capture_logs() as logged:
        async with served(Clerk(fail=ZeroDivisionError("secret"))) as ha:
            found = await problem(await ha.client.get("/v1/status"), 500)
            assert "secret" not in str(found)
            found = await problem(await ha.client.post("/v1/scale", json={"n": 3}), 500)
            assert found["title"] == "Defect"
            ha.clerk.fail = None
            assert (await ha.client.get("/v1/status")).status_code == 200
    assert [(line["event"], line["path"]) for line in logged] == [
        ("BUG: a request failed", "/v1/status"),
        ("BUG: a request failed", "/v1/scale"),
    ]
    assert all(line["exc_info"] for line in logged)


async def test_the_autoscaler_is_shown_and_switched() -> None:
    async with served() as ha:
        found = (await ha.client.get("/v1/autoscale")).json()
        assert conforms(found, {**schema.AUTOSCALE_WHOLE, "mode": {"auto"}})
        assert found["inputs"] == {"qps": 8.123}
        found = (await ha.client.post("/v1/autoscale", json={"enabled": False})).json()
        assert conforms(found, {**schema.AUTOSCALE_WHOLE, "mode": {"manual"}})
        assert ha.clerk.told == [("autoscale", False, me())]


async def test_a_replay_is_streamed_line_by_line_and_ends_with_its_total() -> None:
    asked = {"trace": [[0, 1.5, 0.5], [60, 3, 0.5]], "policy": "concurrency", "set": {"slots": 4}}
    async with served() as ha:
        answered = await ha.client.post("/v1/autoscale/replay", json=asked)
        rows = [json.loads(line) for line in answered.text.splitlines()]
        assert conforms(rows[0], schema.REPLAY_ROW)
        assert conforms(rows[-1], schema.REPLAY_TOTAL)
        trace = ((0.0, 1.5, 0.5), (60.0, 3.0, 0.5))
        assert ha.clerk.told == [("replay", ReplayAsked(None, trace, "concurrency", {"slots": 4.0}))]


async def test_a_trace_out_of_order_is_not_understood() -> None:
    async with served() as ha:
        for trace in ([[60, 1, 1], [0, 1, 1]], [], [[0, -1, 1]], [[0, 1]]):
            answered = await ha.client.post("/v1/autoscale/replay", json={"trace": trace})
            assert answered.status_code == 400
        assert ha.clerk.told == []


async def test_pause_and_resume() -> None:
    async with served() as ha:
        found = (await ha.client.post("/v1/pause", json={"for_s": 600, "reason": "driver\x1b[2J\nnew"})).json()
        assert conforms(found, schema.PAUSED)
        assert (found["reason"], found["until"]) == ("driver [2J new", "2026-11-24T03:12:11.123Z")
        assert (await ha.client.get("/v1/status")).json()["paused"] == found
        assert (await ha.client.post("/v1/resume")).json() == {"was_paused": True}
        assert (await ha.client.post("/v1/resume")).json() == {"was_paused": False}
        found = (await ha.client.post("/v1/pause")).json()
        assert (found["reason"], found["until"], found["by"]) == ("", None, me())


async def test_nginx_and_the_configuration() -> None:
    async with served() as ha:
        assert (await ha.client.get("/v1/nginx")).json() == {
            "mode": "own",
            "dir": "/var/lib/chatglm-ha/nginx",
            "generation": 41,
            "live_generation": 41,
            "ok": True,
            "reason": None,
            "files": {"upstream.conf": "# 负载\n", "gateway.conf": ""},
        }
        tested = (await ha.client.post("/v1/nginx/test")).json()
        assert tested == {"ok": True, "output": "nginx: configuration file test is successful"}
        assert (await ha.client.post("/v1/nginx/reload")).json() == {"ok": True, "generation": 42, "output": ""}
        assert (await ha.client.get("/v1/config")).json() == {
            "path": "/etc/chatglm-ha/config.toml",
            "config": {"health": {"interval": 2.0}},
        }
        changed = (await ha.client.post("/v1/config/reload")).json()
        assert changed == {"changed": ["health.interval: 2.0 -> 1.0"]}
        assert ha.clerk.told == [("reload", me()), ("config reload", me())]


# --- operations -------------------------------------------------------------------------------------------------------


async def test_operations_are_listed_the_newest_first_and_shown_one_by_one() -> None:
    async with served() as ha:
        for _ in range(60):
            await ha.client.post("/v1/restart")
        found = (await ha.client.get("/v1/operations")).json()["operations"]
        assert len(found) == 50
        assert [one["id"] for one in found[:2]] == ["op-68", "op-67"]
        assert all(conforms(one, schema.OPERATION) for one in found)
        assert (await ha.client.get("/v1/operations/op-7")).json()["kind"] == "scale"
        missing = await problem(await ha.client.get("/v1/operations/op-999"), 404)
        assert (missing["detail"], missing["hint"]) == ("there is no operation op-999", "chatglm-hactl operations")
        await problem(await ha.client.delete("/v1/operations/op-999"), 404)
        await problem(await ha.client.get("/v1/operations/op-999?watch=1"), 404)


async def test_an_operation_can_be_cancelled() -> None:
    async with served() as ha:
        found = (await ha.client.delete("/v1/operations/op-7")).json()
        assert conforms(found, schema.OPERATION)
        assert found["state"] == "cancelled"
        assert ha.clerk.told == [("cancel", "op-7", me())]


async def test_watching_an_operation_shows_each_move_once_and_ends_with_it() -> None:
    async with served() as ha, ha.client.stream("GET", "/v1/operations/op-7?watch=1") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = answer.aiter_lines()
        assert "chatglm-03: loads" in await anext(lines)
        ha.clerk.move()  # a cycle that moves nothing
        ha.clerk.move(_says("2 of 3 serving"))
        assert "2 of 3 serving" in await anext(lines)
        ha.clerk.end("op-7", OperationState.DONE)
        last = await anext(lines)
        assert conforms(lines_of(last)[0], schema.OPERATION)
        assert '"done"' in last
        assert [line async for line in lines] == []


def _says(sentence: str) -> Any:
    def change(snapshot: Any) -> Any:
        return replace(snapshot, operations=tuple(replace(o, sentence=sentence) for o in snapshot.operations))

    return change


async def test_an_operation_that_has_ended_is_shown_once_to_who_watches_it() -> None:
    async with served() as ha:
        ha.clerk.end("op-7", OperationState.FAILED)
        found = lines_of((await ha.client.get("/v1/operations/op-7?watch=1")).text)
    assert [one["state"] for one in found] == ["failed"]


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_when_the_daemon_stops_streams_end_whole_and_at_once() -> None:
    async with served() as ha:
        ha.clerk.add("only")
        async with ha.client.stream("GET", "/v1/history?follow=1") as answer:
            lines = answer.aiter_lines()
            assert "only" in await anext(lines)
            async with asyncio.timeout(1):
                ha.stopping.set()
                assert [line async for line in lines] == []
                await ha.task
        assert ha.clerk.following == 0


async def test_an_answer_under_way_is_finished_when_the_daemon_stops() -> None:
    async with served(Clerk(slow=0.3)) as ha:
        asked = asyncio.create_task(ha.client.post("/v1/nginx/test"))
        await until(lambda: ha.clerk.testing == 1, "the request has arrived")
        ha.stopping.set()
        assert (await asked).json()["ok"] is True
        async with asyncio.timeout(1):
            await ha.task


async def test_what_takes_too_long_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasupervisor.report.server.STOP_DEADLINE", 0.3)
    with capture_logs() as logged:
        async with served(Clerk(slow=60)) as ha:
            asked = asyncio.create_task(ha.client.post("/v1/nginx/test"))
            _, writer = await asyncio.open_unix_connection(ha.path)  # follows, and never reads
            writer.write(b"GET /v1/history?follow=1 HTTP/1.1\r\nHost: ha\r\n\r\n")
            await until(lambda: ha.clerk.following == 1, "the follower is there")
            for number in range(500):
                ha.clerk.add("x" * 10_000 + str(number))
            async with asyncio.timeout(2):
                ha.stopping.set()
                await ha.task
            with pytest.raises(httpx.RemoteProtocolError):
                await asked
            writer.close()
        assert (ha.clerk.following, ha.clerk.testing) == (0, 0)
    assert logged == []


async def test_an_answer_that_does_not_come_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "DEADLINE", 0.1)
    async with served(Clerk(slow=5)) as ha:
        found = await problem(await ha.client.post("/v1/nginx/test"), 503)
    assert found["detail"] == "no answer in 0.1 s; what was begun goes on"


async def test_a_client_that_leaves_does_not_stop_its_command() -> None:
    async with served(Clerk(slow=0.2)) as ha:
        body = b'{"n": 4}'
        head = b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nContent-Length: %d\r\n\r\n" % len(body)
        await ha.raw(head + body, then_close=True)
        await until(lambda: len(ha.clerk.told) == 1, "the command has arrived")
        assert ha.clerk.told == [("scale", 4, False, me())]


async def test_the_requests_are_those_of_the_description() -> None:
    """Each line of the table in docs/control-api.md is answered by something else than 404 and 405."""
    page = Path(__file__).parents[2].joinpath("docs", "control-api.md").read_text()
    described = re.findall(r"^\| `(GET|POST|DELETE) (/v1\S*)` \|", page, re.MULTILINE)
    assert len(described) >= 20
    async with served(Clerk(snapshot=WITH_GPUS)) as ha:
        for method, path in described:
            target = path.replace("{name}", "chatglm-01").replace("{id}", "op-7").replace("{gpu}", "0")
            answer = await ha.client.request(method, target)
            assert answer.status_code in (200, 202, 400), f"{method} {path}: {answer.text}"
            assert answer.status_code != 400 or answer.json()["detail"].endswith("is missing"), answer.text


async def test_a_name_with_odd_characters_is_just_another_name() -> None:
    odd = replace(SNAPSHOT, instances=(judged("模型 %2f-01", State.SERVING),))
    async with served(Clerk(snapshot=odd, output=["x"])) as ha:
        assert (await ha.client.get("/v1/instances/%E6%A8%A1%E5%9E%8B%20%252f-01/logs")).text == "x\n"


def test_the_patience_of_a_stream_is_shorter_than_that_of_the_tool() -> None:
    assert answers.PATIENCE < 5
