"""Three real models behind a real nginx: hostile requests cost nobody anything but their own senders an answer."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from tests.real.daemon import PATIENT, Daemon, daemon
from tests.real.hostile import KINDS

FIRST_START_S = 120.0  # the embedded model is trained on the first start: 12 s here
INSTANCES, STREAMS, EACH = 3, 12, 10
# At temperature 2 nearly every token has text: a stream that is alive shows it.
STORY = {"prompt": "讲个故事", "max_tokens": 4000, "ignore_eos": True, "stream": True, "temperature": 2}


@pytest.fixture(scope="module")
def host(port_range: Callable[[int], range]) -> Iterator[Daemon]:
    patient = {
        "service": {"instances": INSTANCES},
        "health": {"timeout": 5.0, "start_timeout": FIRST_START_S},
    }
    with daemon(port_range(20), PATIENT, patient) as host:
        env = {"MODEL_CACHE": str(host.folder / "models"), "OMP_NUM_THREADS": "1"}
        host.configure({"process": {"env": env}})
        host.start()
        host.wait_until_green(INSTANCES, within=FIRST_START_S)
        yield host


@dataclass
class Streams:
    """The streams of other users: pieces that came, and what ended a stream that nobody ended."""

    pieces: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    whole: int = 0


@contextmanager
def streams(url: str) -> Iterator[Streams]:
    """Twelve users who read one endless answer after another through the gateway, until the block ends."""
    result, over = Streams(), threading.Event()

    def read(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                try:
                    _read_one(client, url, number, result, over)
                except (AssertionError, httpx.HTTPError) as error:
                    result.broken.append(f"{type(error).__name__}: {error}")

    readers = [threading.Thread(target=read, args=(number,)) for number in range(STREAMS)]
    for reader in readers:
        reader.start()
    try:
        yield result
    finally:
        over.set()
        for reader in readers:
            reader.join()


def _read_one(client: httpx.Client, url: str, number: int, result: Streams, over: threading.Event) -> None:
    with client.stream("POST", f"{url}/v1/completions", json=STORY) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            if line == "data: [DONE]":
                result.whole += 1
                return
            if line:
                assert "error" not in json.loads(line.removeprefix("data: ")), line
                result.pieces[number] += 1
            if over.is_set():
                return
    raise AssertionError("the stream broke off")


@contextmanager
def watched(host: Daemon) -> Iterator[list[str]]:
    """What was seen of instances that do not serve or are not routed, looked at all the time."""
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            status = host.status()
            seen.extend(f"{i['name']}: {i['state']}" for i in status["instances"] if not i["routed"])

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield seen
    finally:
        over.set()
        looker.join()


def test_three_hundred_hostile_requests_break_no_stream_and_take_no_instance_out_of_rotation(host: Daemon) -> None:
    assert len(KINDS) == 30
    before = {instance["name"]: (instance["pid"], instance["restarts"]) for instance in host.status()["instances"]}
    statuses: Counter[int] = Counter()

    def send(kind: str) -> None:
        path, body = KINDS[kind]
        answer = httpx.post(host.gateway + path, content=body, timeout=120)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400, 408, 422), (kind, answer.status_code, answer.text)
        if answer.status_code != 200:
            assert answer.headers["x-should-retry"] == "false", kind

    with watched(host) as seen, streams(host.gateway) as foreign, ThreadPoolExecutor(4) as pool:
        host.wait_for(lambda _: len(foreign.pieces) == STREAMS, "all streams to begin", within=60.0)
        list(pool.map(send, [kind for _ in range(EACH) for kind in KINDS]))
        came = dict(foreign.pieces)
        host.wait_for(
            lambda _: all(foreign.pieces[number] > count for number, count in came.items()), "all streams to go on"
        )
    print(f"{statuses.total()} hostile requests: {dict(statuses)}; {sum(foreign.pieces.values())} pieces of streams")
    assert foreign.broken == []
    assert seen == []
    after = {instance["name"]: (instance["pid"], instance["restarts"]) for instance in host.status()["instances"]}
    assert after == before
