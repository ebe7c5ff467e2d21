"""Loads: POSTs that leave on time whatever comes back, each with a body of its own, and streams.

Each request is a connection of its own on a bare asyncio protocol, about 0.3 ms of CPU: the machine is the contenders'.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

TAILS = '你好世界 the quick brown fox «ümläut» "quoted" \\back\\ \n\t'
GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when it was sent (seconds since the load began), what came of it, and how long that took.

    `what` is "ok", a status ("502"), or a miss: "refused", "reset", "cut" (ended before it was complete),
    "altered" (the answer is not to what was sent), "timeout" (nothing within the client's patience).
    """

    number: str
    sent_at: float
    took: float
    what: str
    told_to_retry: bool = False  # a status with a Retry-After


@dataclass(slots=True)
class Load:
    """A load that runs, or what became of it."""

    began: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)
    late: float = 0.0  # seconds that the latest departure was behind its time: the load's own honesty

    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began


@asynccontextmanager
async def posting(port: int, rate: float, patience: float, prefix: str) -> AsyncIterator[Load]:
    """`rate` POSTs a second while the block runs; at its end, waits until each has been answered or given up."""
    load, over = Load(), asyncio.Event()
    sender = asyncio.create_task(_send(load, port, rate, patience, prefix, over))
    try:
        yield load
    finally:
        over.set()
        async with asyncio.timeout(patience + GIVE_UP_S):
            await sender


async def _send(load: Load, port: int, rate: float, patience: float, prefix: str, over: asyncio.Event) -> None:
    chance = random.Random(prefix)
    tasks: set[asyncio.Task[None]] = set()
    number = 0
    while not over.is_set():
        due = load.began + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        load.late = max(load.late, time.monotonic() - due)
        task = asyncio.create_task(_one(load, port, f"{prefix}-{number}", patience, chance))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    if tasks:
        await asyncio.gather(*tasks)


async def _one(load: Load, port: int, number: str, patience: float, chance: random.Random) -> None:
    prompt = f"{number} " + "".join(chance.choices(TAILS, k=chance.randint(10, 2000)))
    body = json.dumps({"prompt": prompt, "history": []}, ensure_ascii=False).encode()
    sent_at = load.now()
    answer, miss = await _exchange(port, _request("/", body), patience)
    what, told = judge(answer, miss, prompt)
    load.outcomes.append(Outcome(number, sent_at, load.now() - sent_at, what, told))


def judge(answer: bytes, miss: str | None, prompt: str) -> tuple[str, bool]:
    """What came of a request, and whether it was told when to come again."""
    if miss is not None:
        return miss, False
    status, fields, payload = parse(answer)
    if status != "200":
        return status, "retry-after" in fields
    if payload is None:
        return "cut", False
    try:
        said = json.loads(payload)
        whole = said["response"].endswith(f" answers: {prompt}") and said["history"][0][0] == prompt
    except (ValueError, LookupError, AttributeError, TypeError):
        whole = False
    return ("ok" if whole else "altered"), False


def parse(answer: bytes) -> tuple[str, dict[str, str], bytes | None]:
    """Status, headers, and the body; None for a body that has not arrived whole. "cut": not even the headers have."""
    header, separator, payload = answer.partition(b"\r\n\r\n")
    if not separator:
        return "cut", {}, None
    first, *lines = header.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    status = first.split(" ")[1]
    if fields.get("transfer-encoding", "").lower() == "chunked":
        return status, fields, dechunked(payload)
    length = fields.get("content-length")
    whole = length is None or len(payload) >= int(length)
    return status, fields, payload if whole else None


def dechunked(payload: bytes) -> bytes | None:
    """The content of a chunked body, or None if its last chunk is missing."""
    content = b""
    while True:
        size, separator, rest = payload.partition(b"\r\n")
        if not separator:
            return None
        length = int(size.split(b";")[0], 16)
        if length == 0:
            return content
        if len(rest) < length + 2:
            return None
        content, payload = content + rest[:length], rest[length + 2 :]


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class _Client(asyncio.Protocol):
    """Sends one request, and gathers what comes until the other side closes the connection."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.received = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            if exc is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(exc)


async def _exchange(port: int, request: bytes, patience: float) -> tuple[bytes, str | None]:
    """All that came back until the connection ended, and why there is no answer in it, if that is known."""
    transport: asyncio.Transport | None = None
    client = _Client(request)
    try:
        async with asyncio.timeout(patience):
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
            await client.ended
    except TimeoutError:
        return bytes(client.received), "timeout"
    except ConnectionRefusedError:
        return b"", "refused"
    except OSError:
        return bytes(client.received), "reset"
    finally:
        if transport is not None:
            transport.abort()
    return bytes(client.received), None


@dataclass(frozen=True, slots=True)
class Stream:
    """How one stream ended.

    `what` is "complete", "error" (cut, reset, or a status: a client sees that), "silence" (ended as if it were
    complete, or nothing came any more within the client's patience).
    """

    name: str  # the instance that made it; empty: none had begun
    what: str
    took: float


async def stream(port: int, seconds: float, patience: float) -> Stream:
    """Asks for a stream of so many seconds, in 20 pieces."""
    message = {"role": "user", "content": f"sleep {seconds}"}
    body = json.dumps({"model": "standin", "messages": [message], "stream": True, "n_chunks": 20}).encode()
    began = time.monotonic()
    answer, miss = await _exchange(port, _request("/v1/chat/completions", body), patience)
    return Stream(_name_of(answer), _how_it_ended(answer, miss), time.monotonic() - began)


def _how_it_ended(answer: bytes, miss: str | None) -> str:
    status, fields, payload = parse(answer)
    if miss == "timeout":
        return "silence"
    if miss is not None or status != "200" or (payload is None and "transfer-encoding" in fields):
        return "error"
    return "complete" if payload is not None and b"[DONE]" in payload else "silence"


def _name_of(answer: bytes) -> str:
    _, found, rest = answer.partition(b'"name": "')
    return rest.partition(b'"')[0].decode() if found else ""
