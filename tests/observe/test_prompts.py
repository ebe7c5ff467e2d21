"""The synthetic prompt: when it is asked, of whom, and what of its end is counted."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import structlog.testing

from hasupervisor.model import Said
from hasupervisor.observe.answers import Dialect
from tests.observe.servers import Handler, answering, http, serving
from tests.observe.standin import standin
from tests.observe.test_probes import QUICK, running, watching
from tests.real.waiting import eventually

OFTEN = replace(QUICK, inference_interval=0.3)


class Model:
    """A model server of the test's own: counts prompts by path and answers each as told."""

    def __init__(self, **answers: tuple[int, object]) -> None:
        self.answers = {"/": (404, {}), "/v1/chat/completions": (404, {}), "/v1/models": (404, {})} | {
            {"chatglm": "/", "openai": "/v1/chat/completions", "models": "/v1/models"}[name]: answer
            for name, answer in answers.items()
        }
        self.prompts: list[tuple[str, dict[str, object]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def handler(self) -> Handler:
        return self._handle

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split("\r\n")[0].split(" ")
        if path == "/health":
            writer.write(http(200, b'{"status": "healthy"}'))
            return
        lengths = [int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(lengths[0]) if lengths else b""
        if method == "POST":
            self.prompts.append((path, json.loads(body)))
            await self.gate.wait()
        status, answer = self.answers[path]
        writer.write(http(status, json.dumps(answer).encode()))
        await writer.drain()


CHATGLM = (200, {"response": "你好👋"})
OPENAI = (200, {"choices": [{"message": {"content": "hello"}}]})


async def test_an_instance_is_prompted_once_when_it_comes_up() -> None:
    model = Model(chatglm=CHATGLM)
    async with (
        serving(model.handler) as address,
        watching([running(address)], replace(QUICK, interval=0.05)) as watched,
    ):
        view = await watched.until(lambda v: v.prompt_ok)
        assert view.prompted_at is not None
        assert (view.prompt_failures, view.prompt_error) == (0, "")
        await watched.until(lambda v: v.successes >= 10)
    assert model.prompts == [("/", {"prompt": "你好", "history": []})]


async def test_an_instance_that_loads_is_not_prompted() -> None:
    async with standin() as server:
        await server.tell(mode="loading")
        async with watching([server.fact]) as watched:
            watched.probes.ask("chatglm-01")
            await watched.until(lambda v: v.said is Said.LOADING)
            await server.tell(mode="loading")
            assert watched.view().prompted_at is None
            await server.tell(mode="ok")
            await watched.until(lambda v: v.prompt_ok)


async def test_an_idle_instance_is_prompted_again_and_a_busy_or_unknown_one_is_not() -> None:
    idle: dict[str, bool | None] = {"chatglm-01": True}
    model = Model(chatglm=CHATGLM)
    async with serving(model.handler) as address, watching([running(address)], OFTEN, idle.get) as watched:
        await eventually(lambda: len(model.prompts) >= 3)
        for state in (False, None):
            idle["chatglm-01"] = state
            settled = len(model.prompts) + 1  # one may be on its way
            seen = watched.view().successes
            await watched.until(lambda v, seen=seen: v.successes > seen + 5)  # type: ignore[misc]
            assert len(model.prompts) <= settled
        idle["chatglm-01"] = True
        count = len(model.prompts)
        await eventually(lambda: len(model.prompts) > count)


async def test_an_instance_that_reports_work_of_its_own_is_not_prompted_at_intervals() -> None:
    async with standin() as server, watching([server.fact], OFTEN) as watched:
        await watched.until(lambda v: v.prompt_ok)
        working = asyncio.ensure_future(server.prompt("sleep 30"))
        await watched.until(lambda v: v.progress is not None and v.progress.in_flight == 1)
        prompted_at = watched.view().prompted_at
        seen = watched.view().successes
        await watched.until(lambda v: v.successes > seen + 5)
        assert watched.view().prompted_at == prompted_at
        working.cancel()


async def test_the_first_prompt_of_a_life_waits_for_users_work_but_not_for_knowledge() -> None:
    idle: dict[str, bool | None] = {"chatglm-01": False}
    async with standin() as server, watching([server.fact], QUICK, idle.get) as watched:
        await watched.until(lambda v: v.successes >= 3)
        assert watched.view().prompted_at is None
        idle["chatglm-01"] = None
        await watched.until(lambda v: v.prompt_ok)


async def test_one_that_is_asked_for_comes_soon_and_to_a_busy_instance_too() -> None:
    async with standin() as server, watching([server.fact], QUICK, lambda name: False) as watched:
        await watched.until(lambda v: v.successes)
        assert watched.view().prompted_at is None
        asked_at = time.monotonic()
        watched.probes.ask("chatglm-01")
        watched.probes.ask("nobody")
        await watched.until(lambda v: v.prompt_ok)
        assert time.monotonic() - asked_at < 1.0


async def test_being_asked_again_and_again_makes_one_prompt_at_a_time_and_one_a_second() -> None:
    model = Model(chatglm=(500, {}))
    async with serving(model.handler) as address, watching([running(address)]) as watched:
        began = time.monotonic()
        while watched.view().prompt_failures < 3:
            watched.probes.ask("chatglm-01")
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 10.0
        assert time.monotonic() - began > 2.0
        assert len(model.prompts) == 3


async def test_a_failed_prompt_says_why_and_counts_in_a_row() -> None:
    async with standin() as server, watching([server.fact], OFTEN) as watched:
        await watched.until(lambda v: v.prompt_ok)
        await server.tell(mode="empty")
        view = await watched.until(lambda v: v.prompt_failures >= 2)
        assert (view.prompt_ok, view.prompt_error) == (False, "its answer is empty")
        await server.tell(mode="err")
        await watched.until(lambda v: v.prompt_error.startswith("answered 500: "))
        assert watched.view().failures == 0
        await server.tell(mode="ok")
        view = await watched.until(lambda v: v.prompt_ok)
        assert (view.prompt_failures, view.prompt_error) == (0, "")


async def test_a_prompt_without_an_answer_is_a_failure_of_an_idle_instance() -> None:
    settings = replace(QUICK, inference_timeout=0.5)
    async with standin() as server:
        await server.tell(mode="stall")
        async with watching([server.fact], settings) as watched:
            view = await watched.until(lambda v: v.prompt_failures)
            assert view.prompt_error == "no answer to it in 0.5 s"
            assert view.failures == 0


async def test_a_prompt_that_users_work_held_up_is_not_counted() -> None:
    idle = {"chatglm-01": True}
    model = Model(chatglm=CHATGLM)
    model.gate.clear()
    settings = replace(QUICK, inference_timeout=0.8)
    async with serving(model.handler) as address, watching([running(address)], settings, idle.get) as watched:
        await eventually(lambda: model.prompts)
        idle["chatglm-01"] = False  # a user comes while the prompt is out
        seen = watched.view().successes
        await watched.until(lambda v: v.successes > seen + 5)
        assert (watched.view().prompted_at, watched.view().prompt_failures) == (None, 0)
        model.gate.set()
        idle["chatglm-01"] = True
        await watched.until(lambda v: v.prompt_ok)


async def test_a_prompt_without_an_answer_is_no_evidence_where_others_may_have_work_there() -> None:
    model = Model(chatglm=CHATGLM)
    model.gate.clear()
    settings = replace(QUICK, inference_timeout=0.3)
    async with serving(model.handler) as address, watching([running(address)], settings, lambda name: None) as watched:
        await eventually(lambda: len(model.prompts) >= 2)
        assert (watched.view().prompted_at, watched.view().prompt_failures) == (None, 0)
        model.gate.set()
        await watched.until(lambda v: v.prompt_ok)


async def test_where_connections_cannot_be_seen_the_instances_own_report_tells_whether_it_is_idle() -> None:
    settings = replace(OFTEN, inference_timeout=0.5)
    async with standin() as server, watching([server.fact], settings, lambda name: None) as watched:
        first = await watched.until(lambda v: v.prompt_ok)
        await watched.until(lambda v: v.prompted_at != first.prompted_at)  # it says that it is idle, and is asked again
        await server.tell(mode="stall")
        view = await watched.until(lambda v: v.prompt_failures)
        assert view.prompt_error == "no answer to it in 0.5 s"


async def test_a_full_queue_is_no_fault_of_a_busy_instance_but_an_error_is() -> None:
    model = Model(chatglm=(503, {"error": "queue full"}))
    async with serving(model.handler) as address, watching([running(address)], QUICK, lambda name: False) as watched:
        await watched.until(lambda v: v.successes)
        watched.probes.ask("chatglm-01")
        await eventually(lambda: model.prompts)
        seen = watched.view().successes
        await watched.until(lambda v: v.successes > seen + 2)
        assert watched.view().prompted_at is None
        model.answers["/"] = (500, {"error": "CUDA error"})
        watched.probes.ask("chatglm-01")
        view = await watched.until(lambda v: v.prompt_failures == 1)
        assert view.prompt_error == 'answered 500: {"error": "CUDA error"}'


async def test_the_openai_dialect_is_found_remembered_and_named_the_model() -> None:
    model = Model(openai=OPENAI, models=(200, {"data": [{"id": "glm-4-9b"}]}))
    async with serving(model.handler) as address, watching([running(address)], OFTEN) as watched:
        await watched.until(lambda v: v.prompt_ok)
        await eventually(lambda: len(model.prompts) >= 3)
    assert [path for path, _ in model.prompts[:3]] == ["/", "/v1/chat/completions", "/v1/chat/completions"]
    assert model.prompts[1][1]["model"] == "glm-4-9b"
    assert model.prompts[1][1]["messages"] == [{"role": "user", "content": "你好"}]


async def test_a_dialect_that_is_set_is_the_only_one_tried() -> None:
    model = Model(openai=OPENAI)
    settings = replace(QUICK, dialect=Dialect.OPENAI, prompt="ping")
    async with serving(model.handler) as address, watching([running(address)], settings) as watched:
        await watched.until(lambda v: v.prompt_ok)
        assert [path for path, _ in model.prompts] == ["/v1/chat/completions"]
        assert "model" not in model.prompts[0][1]
        watched.probes.reconfigure(replace(settings, dialect=Dialect.CHATGLM))
        watched.probes.ask("chatglm-01")
        view = await watched.until(lambda v: v.prompt_failures)
        assert view.prompt_error == "answered 404: {}"


async def test_a_server_that_knows_no_prompt_at_all_is_told_so() -> None:
    async with serving(Model().handler) as address, watching([running(address)]) as watched:
        view = await watched.until(lambda v: v.prompt_failures)
        assert view.prompt_error == f"{address} takes neither POST / nor POST /v1/chat/completions"


async def test_a_server_that_wants_a_key_is_believed_its_health_and_that_is_said_once() -> None:
    model = Model(chatglm=(401, {"error": {"message": "a key is needed"}}))
    with structlog.testing.capture_logs() as lines:
        async with serving(model.handler) as address, watching([running(address)], OFTEN) as watched:
            view = await watched.until(lambda v: v.prompt_ok)
            await eventually(lambda: len(model.prompts) >= 3)
    assert view.prompt_failures == 0
    assert len([line for line in lines if "wants an API key" in line["event"]]) == 1


async def test_health_is_asked_on_while_a_prompt_is_out() -> None:
    async with (
        standin() as server,
        watching([server.fact], replace(QUICK, prompt="sleep 2", inference_timeout=5.0)) as watched,
    ):
        await watched.until(lambda v: v.progress is not None and v.progress.in_flight == 1)
        seen = watched.view().successes
        view = await watched.until(lambda v: v.successes > seen + 3)
        assert view.prompted_at is None


async def test_other_settings_do_not_prompt_those_that_have_just_been_prompted() -> None:
    handler = answering(200, {"status": "healthy", "response": "hi"})
    async with serving(handler) as address, watching([running(address)]) as watched:
        view = await watched.until(lambda v: v.prompt_ok)
        watched.probes.reconfigure(replace(QUICK, interval=0.05, inference_interval=300.0))
        seen = view.successes
        await watched.until(lambda v: v.successes > seen + 5)
        assert watched.view().prompted_at == view.prompted_at
