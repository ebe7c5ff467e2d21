"""More work than fits: who is refused, how fast, and what it costs the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from model_api.admission import Admission, Refused
from tests.model.conftest import StartServer
from tests.model.running import ModelServer, wait_for

FLOOD_S = 30.0
LONG = {"ignore_eos": True, "max_tokens": 8000}


# --- admission, alone ---------------------------------------------------------------------------------------------


def test_slots_and_queue_are_all_that_comes_in() -> None:
    admission = Admission(slots=2, queue=3, max_wait=60)
    for _ in range(5):
        admission.enter()
    with pytest.raises(Refused, match="5 requests are running or waiting"):
        admission.enter()
    admission.leave()
    admission.enter()
    assert admission.inside == 5


def test_retry_after_grows_with_the_backlog_and_with_the_length_of_answers() -> None:
    def told(inside: int, seconds: float) -> int:
        admission = Admission(slots=4, queue=100, max_wait=1e6)
        admission.enter()
        admission.leave(seconds)
        for _ in range(inside):
            admission.enter()
        return admission.retry_after()

    assert told(0, 10) == 1
    assert told(4, 10) == 3  # one place ahead of four, ten seconds each
    assert told(11, 10) == 20
    assert told(11, 30) == 60
    assert told(90, 300) == Admission.LONGEST


def test_nobody_is_let_in_to_wait_longer_than_may_be_waited() -> None:
    admission = Admission(slots=1, queue=10, max_wait=15)
    admission.enter()
    admission.leave(10)
    admission.enter()
    admission.enter()  # would wait 10 s
    with pytest.raises(Refused, match="would wait 20 s, longer than the 15 s allowed"):
        admission.enter()


# --- a real server ------------------------------------------------------------------------------------------------


def test_ten_requests_on_two_slots_and_two_places_are_four_answers_and_six_refusals(start_server: StartServer) -> None:
    server = start_server(MAX_BATCH="2", MAX_QUEUE="2")
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(server.chat, "讲个故事", ignore_eos=True, max_tokens=2000) for _ in range(10)]
        answers = [each.result() for each in asked]
    assert Counter(answer.status_code for answer in answers) == {200: 4, 503: 6}
    for refused in (answer for answer in answers if answer.status_code == 503):
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "full"
        assert refused.elapsed.total_seconds() < 1


def test_a_full_server_refuses_within_50_ms_and_health_answers_within_100(start_server: StartServer) -> None:
    server = start_server(MAX_BATCH="2", MAX_QUEUE="1")
    with streams(server, 3), httpx.Client() as client:
        wait_for(lambda: server.progress()["queued"] == 1, "the server to be full")
        refusals = [timed(client, "POST", f"{server.url}/", 503) for _ in range(60)]
        looks = [timed(client, "GET", f"{server.url}/health", 200) for _ in range(60)]
    # Medians: this machine's two cores also carry other work, which no server can answer for.
    assert statistics.median(refusals) < 0.05
    assert statistics.median(looks) < 0.1


def timed(client: httpx.Client, method: str, url: str, expected: int) -> float:
    began = time.monotonic()
    body = {"prompt": "你好", "history": []} if method == "POST" else None
    assert client.request(method, url, json=body).status_code == expected
    return time.monotonic() - began


@contextlib.contextmanager
def streams(server: ModelServer, number: int):  # type: ignore[no-untyped-def]
    """Keeps `number` endless streams open; those beyond the slots wait in the queue."""
    body = {"messages": [{"role": "user", "content": "你好"}], "stream": True, **LONG}

    async def hold(stop: asyncio.Event) -> None:
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", f"{server.url}/v1/chat/completions", json=body),
        ):
            await stop.wait()

    def run(ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        async def all_of_them() -> None:
            stop = asyncio.Event()
            tasks = [asyncio.create_task(hold(stop)) for _ in range(number)]
            ready.append((asyncio.get_running_loop(), stop))
            await stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(all_of_them())

    ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, ready)
        loop, stop = wait_for(lambda: ready and ready[0], "the streams to be asked for")  # type: ignore[misc]
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            running.result(30)


def test_a_request_that_waits_too_long_is_told_so(start_server: StartServer) -> None:
    server = start_server(MAX_BATCH="1", MAX_WAIT="0.4")
    with streams(server, 1):
        wait_for(lambda: server.progress()["in_flight"] == 1, "the slot to be taken")
        began = time.monotonic()
        refused = server.ask()
        assert 0.4 <= time.monotonic() - began < 2
    assert refused.status_code == 503
    assert refused.json()["error"] == "no place became free in 0.4 s"
    assert int(refused.headers["retry-after"]) >= 1
    assert server.metric("model_api_refused_total") == 1


def test_clients_that_leave_while_streaming_waiting_or_queued_free_their_places_at_once(
    start_server: StartServer,
) -> None:
    server = start_server(MAX_BATCH="2", MAX_QUEUE="2")

    async def leave_all() -> None:
        whole = {"messages": [{"role": "user", "content": "你好"}], **LONG}
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{server.url}/v1/chat/completions"
            bodies = [{**whole, "stream": True}, whole, whole, {**whole, "stream": True}]
            tasks = []
            for place, body in enumerate(bodies):
                tasks.append(asyncio.create_task(client.post(url, json=body)))
                await until(lambda place=place: inside(server) == place + 1)  # type: ignore[misc]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave_all())
    wait_for(lambda: inside(server) == 0, "all four places to be free", patience=0.2)
    assert server.ask("ping").json()["response"] == "pong"


def inside(server: ModelServer) -> int:
    progress = server.progress()
    return int(progress["in_flight"]) + int(progress["queued"])


async def until(look) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_flood_of_twenty_times_capacity_leaves_the_goodput_whole_and_the_memory_flat(
    start_server: StartServer,
) -> None:
    server = start_server(MAX_BATCH="2", MAX_QUEUE="4")
    flood = asyncio.run(Flood(server).run(FLOOD_S))
    print(flood.report())
    assert set(flood.statuses) == {200, 503}
    assert flood.statuses[503] > flood.statuses[200]
    assert flood.goodput >= 0.95
    assert statistics.median(flood.refusals) < 0.05
    assert max(flood.refusals) < 2  # the flooding clients wait for this machine's two cores as well
    assert flood.slowest_answer < 30
    assert flood.grown_kb < 20_000
    assert server.health()["status"] == "healthy"


@dataclass(frozen=True)
class Turn:
    """What a server did in some seconds: tokens made, seconds of processor time of its two busy threads."""

    seconds: float
    tokens: int
    loop: float
    engine: float


class Flood:
    """Six clients keep a server of 2 slots and 4 places full; now and then twenty times its capacity comes on top.

    The goodput is taken from the server's own processor time: the engine's thread makes tokens, the event loop's thread
    refuses, and they take turns at the interpreter's lock, so what one uses the other loses. Tokens a second would
    measure this machine's other work, and the flooding clients, along with it.
    """

    TURNS = 4
    CALM_S = 2.0  # of each turn of calm
    TOKENS = 1600  # of every answer: capacity is then about a request a second, as a large model's is
    FULL = 6

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._body = {
            "messages": [{"role": "user", "content": "你好"}],
            "ignore_eos": True,
            "max_tokens": self.TOKENS,
        }
        self.statuses: Counter[int] = Counter()
        self.refusals: list[float] = []  # seconds each took
        self.slowest_answer = 0.0
        self.turns: dict[str, list[Turn]] = {"calm": [], "flood": []}
        self.grown_kb = 0

    @property
    def goodput(self) -> float:
        """The engine's share of the server's processor time in the flood, over its share in calm."""
        share = {
            name: sum(turn.engine for turn in turns) / sum(turn.engine + turn.loop for turn in turns)
            for name, turns in self.turns.items()
        }
        return share["flood"] / share["calm"]

    def report(self) -> str:
        """In one line."""
        rates = {name: [round(turn.tokens / turn.seconds) for turn in turns] for name, turns in self.turns.items()}
        refused = f"refused in {1000 * statistics.median(self.refusals):.0f} ms, at most {max(self.refusals):.2f} s"
        slowest = f"answered in at most {self.slowest_answer:.1f} s"
        return (
            f"goodput {self.goodput:.3f}, {dict(self.statuses)}, {refused}, {slowest}, grown by {self.grown_kb} kB, "
            f"tokens/s {rates}"
        )

    async def run(self, seconds: float) -> Flood:
        """`seconds` of flood, with some of calm before each of its turns."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            stop = asyncio.Event()
            full = [asyncio.create_task(self._again_and_again(client, stop)) for _ in range(self.FULL)]
            await until(lambda: self._server.progress()["queued"] == self.FULL - 2)
            await asyncio.sleep(1.0)  # until all slots are at work
            before = resident(self._server)
            for _ in range(self.TURNS):
                await self._turn("calm", self.CALM_S)
                calm = self.turns["calm"][0]
                every = self.TOKENS * calm.seconds / (20 * calm.tokens)
                flooding = asyncio.create_task(self._flood(client, every, seconds / self.TURNS))
                await self._turn("flood", seconds / self.TURNS)
                await flooding
            self.grown_kb = resident(self._server) - before
            stop.set()
            await asyncio.gather(*full)
        return self

    async def _turn(self, name: str, seconds: float) -> None:
        began, tokens = time.monotonic(), self._server.progress()["tokens"]
        loop, engine = processor_times(self._server)
        await asyncio.sleep(seconds)
        now = processor_times(self._server)
        made = self._server.progress()["tokens"] - tokens
        self.turns[name].append(Turn(time.monotonic() - began, made, now[0] - loop, now[1] - engine))

    async def _flood(self, client: httpx.AsyncClient, every: float, seconds: float) -> None:
        tasks: list[asyncio.Task[int]] = []
        due = time.monotonic()
        end = due + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(client)))
            due += every
        await asyncio.gather(*tasks)

    async def _again_and_again(self, client: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if await self._ask(client) == 503:
                await asyncio.sleep(0.05)  # not as long as it was told: the server is to be kept full

    async def _ask(self, client: httpx.AsyncClient) -> int:
        began = time.monotonic()
        response = await client.post(f"{self._server.url}/v1/chat/completions", json=self._body)
        taken = time.monotonic() - began
        self.statuses[response.status_code] += 1
        if response.status_code == 200:
            self.slowest_answer = max(self.slowest_answer, taken)
        else:
            self.refusals.append(taken)
        return response.status_code


def resident(server: ModelServer) -> int:
    """Its resident memory in kB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def processor_times(server: ModelServer) -> tuple[float, float]:
    """Seconds that its event loop (the main thread) and its engine (the busiest other thread) have run."""
    times = {}
    for file in Path(f"/proc/{server.process.pid}/task").glob("*/stat"):
        fields = file.read_text().rsplit(")", 1)[1].split()
        times[int(file.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times.pop(server.process.pid), max(times.values())
