"""An open-loop load of POSTs: requests leave on time whatever comes back, and every one is accounted for."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

MAX_AT_ONCE = 2000  # a load that nobody answers must not eat the machine


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that was not answered 2xx in full: seconds since the load began, and what happened instead."""

    sent_at: float
    ended_at: float
    outcome: str


@dataclass(slots=True)
class LoadResult:
    """What became of a load. `outcomes` counts statuses ("200", "502") and misses ("refused", "reset", "cut", ...)."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)  # the "name" in the answers
    failures: list[Failure] = field(default_factory=list)
    slowest: float = 0.0  # seconds, of the answered ones
    late: float = 0.0  # seconds that the latest departure was behind its time: the load's own honesty

    @property
    def ok(self) -> int:
        return self.sent - len(self.failures)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} x {outcome}" for outcome, count in self.outcomes.most_common())
        return f"{self.sent} sent, {len(self.failures)} failed ({counts}), slowest {self.slowest:.2f} s"


async def post_load(
    url: str,
    rate: float,
    seconds: float,
    *,
    body: dict[str, Any] | None = None,
    timeout: float = 60.0,
    until: asyncio.Event | None = None,
    into: LoadResult | None = None,
) -> LoadResult:
    """Sends `rate` POSTs a second to `url` for `seconds`, or until `until` is set; returns when all have ended.

    Each is a connection of its own. One that takes longer than `timeout` seconds counts as "timeout". `into` is filled
    as they end, for whoever wants to look on.
    """
    result = LoadResult() if into is None else into
    target = urlsplit(url)
    raw = json.dumps({"prompt": "你好", "history": []} if body is None else body).encode()
    request = (
        f"POST {target.path or '/'} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
    ).encode() + raw
    began = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if not await _wait_until(due, until):
            break
        result.sent += 1
        result.late = max(result.late, time.monotonic() - due)
        if len(tasks) >= MAX_AT_ONCE:
            result.outcomes["not sent: too many open"] += 1
            result.failures.append(Failure(due - began, due - began, "not sent: too many open"))
            continue
        host, port = target.hostname or "127.0.0.1", target.port or 80
        task = asyncio.create_task(_one(result, host, port, request, timeout, began))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.gather(*tasks)
    return result


async def _wait_until(due: float, until: asyncio.Event | None) -> bool:
    pause = max(0.0, due - time.monotonic())
    if until is None:
        await asyncio.sleep(pause)
        return True
    try:
        await asyncio.wait_for(until.wait(), pause)
    except TimeoutError:
        return True
    return not until.is_set()


async def _one(result: LoadResult, host: str, port: int, request: bytes, timeout: float, began: float) -> None:
    sent_at = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            outcome, name = await _exchange(host, port, request)
    except TimeoutError:
        outcome, name = "timeout", ""
    ended_at = time.monotonic()
    result.outcomes[outcome] += 1
    if outcome.startswith("2"):
        result.slowest = max(result.slowest, ended_at - sent_at)
        result.answered_by[name] += 1
    else:
        result.failures.append(Failure(sent_at - began, ended_at - began, outcome))


async def _exchange(host: str, port: int, request: bytes) -> tuple[str, str]:
    """One request and its whole answer: (status or miss, name of who answered)."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return "refused", ""
    except OSError as error:
        return f"no connection: {error}", ""
    try:
        writer.write(request)
        await writer.drain()
        answer = await reader.read(-1)
    except ConnectionError:
        return "reset", ""
    finally:
        writer.close()
    return _judge(answer)


def _judge(answer: bytes) -> tuple[str, str]:
    header, separator, payload = answer.partition(b"\r\n\r\n")
    if not separator:
        return ("empty" if not answer else "cut"), ""
    status = header.split(b" ", 2)[1].decode()
    fields = dict(line.lower().split(b": ", 1) for line in header.split(b"\r\n")[1:] if b": " in line)
    if fields.get(b"transfer-encoding") == b"chunked":
        return (status, "") if payload.endswith(b"0\r\n\r\n") else ("cut", "")
    if len(payload) < int(fields.get(b"content-length", b"0")):
        return "cut", ""
    try:
        return status, str(json.loads(payload).get("name", ""))
    except (ValueError, AttributeError):
        return status, ""
