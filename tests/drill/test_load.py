"""The load of a drill against small servers: what counts as answered, shed and failed, and in which dialect it asks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from hasupervisor.drill import load as module
from hasupervisor.drill.load import NOT_CONNECTED, Asker, Load, NotAnswered
from hasupervisor.drill.order import Order
from tests.drill.test_judgement import ORDER
from tests.observe.servers import Handler, answering, free_address, http, saying, serving
from tests.real.waiting import eventually

GOOD = {"response": "你好！", "history": []}


@asynccontextmanager
async def asking(handler: Handler, **changes: object) -> AsyncIterator[Asker]:
    """An asker whose gateway is this handler."""
    async with serving(handler) as address:
        order: Order = replace(ORDER, gateway=f"http://{address}", **changes)  # type: ignore[arg-type]
        asker = Asker(order)
        try:
            yield asker
        finally:
            await asker.close()


async def run_until(load: Load, condition: Callable[[], bool]) -> None:
    """The load until the condition holds, and until all of it has ended."""
    running = asyncio.create_task(load.run())
    await eventually(condition, "enough was sent")
    load.stop()
    await running
    await eventually(lambda: load.open == 0, "all has ended")


async def test_answers_are_counted_with_the_slowest_of_them() -> None:
    async with asking(answering(200, GOOD)) as asker:
        load = Load(asker, 200.0)
        await run_until(load, lambda: load.tally.sent >= 10)
    tally = load.tally
    assert tally.sent == tally.answered >= 10
    assert (tally.failed, tally.shed, tally.failures) == (0, 0, ())
    assert tally.slowest > 0


async def test_what_is_not_a_good_answer_is_a_failure_in_words() -> None:
    cases = {
        answering(500, {"error": "poisoned"}): "answered 500: ",
        answering(200, {"response": ""}): "its answer is empty",
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"): "cut: ",
        answering(503, {}): "answered 503",
    }
    for handler, words in cases.items():
        async with asking(handler) as asker:
            load = Load(asker, 200.0)
            await run_until(load, lambda load=load: load.tally.sent >= 2)  # type: ignore[misc]
        ((what, count),) = load.tally.failures
        assert what.startswith(words)
        assert count == load.tally.sent == load.tally.failed


async def test_nobody_who_listens_is_a_failure_of_its_own() -> None:
    asker = Asker(replace(ORDER, gateway=f"http://{free_address()}"))
    assert await asker.ask() == (NOT_CONNECTED, 0, False)
    await asker.close()


async def test_patience_has_an_end() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with asking(silent, patience=0.2) as asker:
        assert (await asker.ask())[0] == "no answer in 0.2 s"


async def test_told_to_come_again_is_no_failure_during_a_spike_and_one_otherwise() -> None:
    full = saying(http(503, b"{}").replace(b"\r\n\r\n", b"\r\nRetry-After: 5\r\n\r\n", 1))
    for sheds in (True, False):
        async with asking(full) as asker:
            load = Load(asker, 200.0)
            load.sheds = sheds
            await run_until(load, lambda load=load: load.tally.sent >= 2)  # type: ignore[misc]
        assert (load.tally.shed > 0, load.tally.failed > 0) == (sheds, not sheds)


async def test_requests_leave_on_time_whatever_comes_back() -> None:
    opened = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await opened.wait()
        writer.write(http(200, json.dumps(GOOD).encode()))

    async with asking(late) as asker:
        load = Load(asker, 100.0)
        running = asyncio.create_task(load.run())
        await eventually(lambda: load.open >= 10, "ten are under way at once")
        opened.set()
        load.stop()
        await running
        await eventually(lambda: load.open == 0, "all are answered")
    assert load.tally.answered == load.tally.sent


async def test_a_load_that_nobody_answers_does_not_eat_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 3)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with asking(silent) as asker:
        load = Load(asker, 200.0)
        running = asyncio.create_task(load.run())
        await eventually(lambda: load.tally.failed >= 2, "more than may be open")
        assert load.open == 3
        assert load.tally.failures[0][0] == "not sent: 3 are under way"
        await load.close()
        await running
    assert load.open == 0


async def test_the_dialect_is_found_out_before_the_load_begins() -> None:
    asked: list[str] = []

    async def openai(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(" ".join(head.split()[:2]))
        assert f"host: {ORDER.host}" in head.lower()
        length = int(found[1]) if (found := re.search(r"(?i)content-length: (\d+)", head)) else 0
        body = json.loads(await reader.readexactly(length)) if length else {}
        if head.startswith("GET /v1/models "):
            writer.write(http(200, json.dumps({"data": [{"id": "glm"}]}).encode()))
        elif head.startswith("POST /v1/chat/completions ") and body.get("model") == "glm":
            writer.write(http(200, json.dumps({"choices": [{"message": {"content": "你好"}}]}).encode()))
        else:
            writer.write(http(404, b"{}"))
        await writer.drain()

    async with asking(openai) as asker:
        await asker.settle()
        assert (await asker.ask())[0] == ""
    assert asked == ["POST /", "GET /v1/models", *["POST /v1/chat/completions"] * 2]


async def test_a_gateway_that_does_not_answer_well_is_told_before_there_is_any_fault() -> None:
    async with asking(answering(401, {"error": "no key"})) as asker:
        with pytest.raises(NotAnswered, match="answered 401"):
            await asker.settle()
