"""A stand-in model server: keeps CONTRACT 3 with the standard library alone, and can be told to be sick in many ways.

    HOST=127.0.0.1 PORT=8000 python tests/real/standin/server.py [NAME]

Environment: HOST, PORT, NAME (default: the argument, else the host's name), SERVICE_S 0.05 (seconds of work a request),
SLOTS 8 (requests worked on at once, the others queue), LOAD_S 0 (seconds of "loading" at the start), HEALTH
progress | opaque (no JSON) | plain (JSON without progress), GRACE 30 (seconds after SIGTERM), MODE ok.

With DRILL=1 it has the hook of docs/drills.md: GET /drill names the faults, POST /drill {"fault": "sick", "for_s": S}
makes it "err", {"fault": null} ends that; a request that came through a proxy is told 404.

The work of a request is SERVICE_S, or what its prompt says: "sleep 20" takes 20 s, "burn 8" computes for 8 s, and the
event loop answers nobody meanwhile.
`POST /standin {"mode": MODE, "for_s": S}` changes it at run time; after `for_s` it is ok again. Modes:

    ok         healthy
    sick       GET /health says unhealthy (with "reason"), prompts are answered
    loading    GET /health says loading
    err        prompts get 500, health is fine
    empty      prompts get 200 with an empty answer
    overload   prompts get 503
    health500  GET /health gets 500, prompts are answered
    slow       prompts take "service_s" (default 5), health takes "health_s" (default 0)
    stall      health is answered, but the work stands still: no tokens, no answers
    mute       connections are accepted, nothing is ever answered; undone by "for_s"
    reset      connections are closed without an answer
    refuse     the port is closed for "for_s"
    hang       the event loop blocks (SIGTERM is not heard either): for "for_s", else until it is killed
    exit       the process exits with "code" (default 3)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

TOKENS_PER_S = 20.0  # what a working request makes, so that progress is visible in every second


class BadRequest(Exception):
    """What was sent is not a request that this server knows."""


@dataclass
class Work:
    """What runs and what was done, from which progress is told."""

    running: dict[int, float] = field(default_factory=dict)  # request number -> monotonic start
    queued: int = 0
    done_tokens: int = 0
    answered: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    frozen_at: float | None = None  # with "stall": when the work stopped moving

    def tokens(self) -> int:
        now = self.frozen_at or time.monotonic()
        return self.done_tokens + sum(int(max(0.0, now - began) * TOKENS_PER_S) for began in self.running.values())

    def progress(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "in_flight": len(self.running),
            "queued": self.queued,
            "steps": self.tokens(),
            "tokens": self.tokens(),
            "step_running_s": round(now - self.frozen_at, 3) if self.frozen_at and self.running else 0.0,
            "idle_s": 0.0 if self.running else round(now - self.idle_since, 3),
        }


@dataclass
class Mode:
    name: str = "ok"
    service_s: float = 0.05
    health_s: float = 0.0
    reason: str = "told to be sick"
    code: int = 3


class Server:
    def __init__(self, env: dict[str, str], name: str) -> None:
        self.name = name
        self.host, self.port = env.get("HOST", "127.0.0.1"), int(env.get("PORT", "8000"))
        self.service_s = float(env.get("SERVICE_S", "0.05"))
        self.has_hook = env.get("DRILL") == "1"
        self.health_form = env.get("HEALTH", "progress")
        self.grace = float(env.get("GRACE", "30"))
        self.loaded_at = time.monotonic() + float(env.get("LOAD_S", "0"))
        self.slots = asyncio.Semaphore(int(env.get("SLOTS", "8")))
        self.mode = Mode(env.get("MODE", "ok"), self.service_s)
        self.mode_ends: asyncio.TimerHandle | None = None
        self.work = Work()
        self.numbers = 0
        self.stopping = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.moving = asyncio.Event()  # cleared while the work stands still
        self.moving.set()
        self.listener: asyncio.Server | None = None
        self.connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        await self.listen()
        print(f"{self.name}: listening on {self.host}:{self.port}", flush=True)
        await self.stopping.wait()
        print(f"{self.name}: stopping, {len(self.work.running)} in flight, {self.work.queued} queued", flush=True)
        self.close_listener()
        with contextlib.suppress(TimeoutError):  # what is still unanswered then is cut
            await asyncio.wait_for(self.idle.wait(), self.grace)
        for task in self.connections:
            task.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)
        print(f"{self.name}: stopped", flush=True)

    async def listen(self) -> None:
        self.listener = await asyncio.start_server(self.connected, self.host, self.port, backlog=1024)

    def close_listener(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            # Suppressed: a client that leaves, or sends what is not a request, is no business of a stand-in.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, BadRequest, asyncio.CancelledError):
                while await self.one_request(reader, writer):
                    pass
        finally:
            self.connections.discard(task)
            writer.close()

    async def one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False when the connection is to be closed after it."""
        method, path, headers, body = await read_request(reader)
        if self.mode.name == "mute" and path != "/standin":
            await asyncio.Event().wait()
        if self.mode.name == "reset" and path != "/standin":
            return False
        keep = headers.get("connection", "keep-alive").lower() != "close" and not self.stopping.is_set()
        keep = keep and not body.get("stream")
        if method == "POST" and path in ("/", "/v1/chat/completions"):
            await self.prompt(writer, path, body, keep)
        elif method == "POST" and path == "/standin":
            await respond(writer, 200, {"mode": body.get("mode", "ok"), "name": self.name}, keep)
            self.set_mode(body)
        elif path == "/drill" and self.has_hook and "x-forwarded-for" not in headers:
            if method == "POST":
                self.set_mode({"mode": "err" if body.get("fault") == "sick" else "ok", "for_s": body.get("for_s")})
            await respond(writer, 200, {"faults": ["sick"]}, keep)
        elif method == "GET" and path == "/health":
            await self.health(writer, keep)
        elif method == "GET" and path == "/metrics":
            await respond_text(writer, 200, f"standin_tokens_total {self.work.tokens()}\n", keep)
        else:
            await respond(writer, 404, {"error": f"no such thing: {method} {path}"}, keep)
        return keep

    # --- being told how to be ----------------------------------------------------------------------------------------

    def set_mode(self, told: dict[str, Any]) -> None:
        name, seconds = str(told.get("mode", "ok")), told.get("for_s")
        if self.mode_ends is not None:
            self.mode_ends.cancel()
            self.mode_ends = None
        if name == "exit":
            print(f"{self.name}: told to exit", flush=True)
            os._exit(int(told.get("code", 3)))
        if name == "hang":
            time.sleep(float(seconds) if seconds is not None else 1e9)
            return
        default_s = 5.0 if name == "slow" else self.service_s
        self.mode = Mode(
            name=name,
            service_s=float(told.get("service_s", default_s)),
            health_s=float(told.get("health_s", 0.0)),
            reason=str(told.get("reason", "told to be sick")),
        )
        self.freeze(name == "stall")
        if name == "refuse":
            self.close_listener()
            seconds = 5.0 if seconds is None else seconds
        if seconds is not None:
            self.mode_ends = asyncio.get_running_loop().call_later(float(seconds), self.recover)

    def freeze(self, frozen: bool) -> None:
        if frozen:
            self.work.frozen_at = time.monotonic()
            self.moving.clear()
        else:
            self.work.frozen_at = None
            self.moving.set()

    def recover(self) -> None:
        self.mode = Mode("ok", self.service_s)
        self.freeze(False)
        if self.listener is None and not self.stopping.is_set():
            self.relisten = asyncio.ensure_future(self.listen())

    # --- answering ---------------------------------------------------------------------------------------------------

    async def health(self, writer: asyncio.StreamWriter, keep: bool) -> None:
        if self.mode.health_s:
            await asyncio.sleep(self.mode.health_s)
        if self.mode.name == "health500":
            return await respond(writer, 500, {"error": "told to fail"}, keep)
        if time.monotonic() < self.loaded_at or self.mode.name == "loading":
            return await respond(writer, 503, {"status": "loading", "name": self.name}, keep)
        if self.mode.name == "sick":
            sick = {"status": "unhealthy", "reason": self.mode.reason, "name": self.name}
            return await respond(writer, 503, sick, keep)
        if self.health_form == "opaque":
            return await respond_text(writer, 200, "fine\n", keep)
        said: dict[str, Any] = {"status": "healthy", "model": "standin", "name": self.name}
        if self.health_form == "progress":
            said |= {"progress": self.work.progress()}
        return await respond(writer, 200, said, keep)

    async def prompt(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any], keep: bool) -> None:
        text = prompt_of(body)
        refused = {"err": (500, "told to err"), "overload": (503, "told to be overloaded")}.get(self.mode.name)
        if time.monotonic() < self.loaded_at:
            refused = (503, "loading")
        if refused is not None:
            return await respond(writer, refused[0], {"error": refused[1], "name": self.name}, keep)
        self.work.queued += 1
        self.idle.clear()
        try:
            await self.slots.acquire()
        finally:
            self.work.queued -= 1
        self.numbers += 1
        number = self.numbers
        self.work.running[number] = time.monotonic()
        try:
            answer = "" if self.mode.name == "empty" else f"{self.name} answers: {text}"
            seconds = seconds_of(text, self.mode.service_s)
            if path != "/" and body.get("stream"):
                await self.stream(writer, answer, seconds, int(body.get("n_chunks", 10)))
            else:
                await self.labour(seconds, text)
                await respond(writer, 200, self.answer(path, text, answer), keep)
            self.work.answered += 1
        finally:
            began = self.work.running.pop(number)
            self.work.done_tokens += int((time.monotonic() - began) * TOKENS_PER_S) + 1
            if not self.work.running:
                self.work.idle_since = time.monotonic()
            self.slots.release()
            if not self.work.running and not self.work.queued:
                self.idle.set()

    async def labour(self, seconds: float, text: str = "") -> None:
        if text.startswith("burn "):
            burn(seconds)
            return
        await asyncio.sleep(seconds)
        await self.moving.wait()

    def answer(self, path: str, text: str, answer: str) -> dict[str, Any]:
        who = {"name": self.name, "hostname": socket.gethostname(), "pid": os.getpid()}
        if path == "/":
            return {"response": answer, "history": [[text, answer]], "status": 200, **who}
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return {"id": "standin", "object": "chat.completion", "model": "standin", "choices": [choice], **who}

    async def stream(self, writer: asyncio.StreamWriter, answer: str, seconds: float, chunks: int) -> None:
        writer.write(head(200, "text/event-stream", "Transfer-Encoding: chunked", keep=False))
        size = max(1, -(-len(answer) // chunks))
        for index in range(chunks):
            delta = {"content": answer[index * size : (index + 1) * size]}
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if index == chunks - 1 else None}
            event = {"id": "standin", "object": "chat.completion.chunk", "choices": [choice], "name": self.name}
            await self.labour(seconds / chunks)
            writer.write(chunk(f"data: {json.dumps(event)}\n\n"))
            await writer.drain()
        writer.write(chunk("data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


# --- HTTP, as much as is needed -------------------------------------------------------------------------------------


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], dict[str, Any]]:
    """Method, path without its query, headers by lower-case name, and the JSON body ({} where there is none)."""
    first = (await reader.readuntil(b"\r\n")).decode("latin-1").split()
    if len(first) != 3:
        raise BadRequest(f"not a request line: {first}")
    headers: dict[str, str] = {}
    while (line := (await reader.readuntil(b"\r\n")).decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    try:
        parsed = json.loads(body) if body else {}
    except ValueError:
        parsed = {}
    return first[0], first[1].partition("?")[0], headers, parsed if isinstance(parsed, dict) else {}


def head(status: int, content_type: str, framing: str, keep: bool) -> bytes:
    reason = {200: "OK", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}[status]
    connection = "keep-alive" if keep else "close"
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n{framing}\r\nConnection: {connection}\r\n\r\n"
    ).encode()


def chunk(text: str) -> bytes:
    raw = text.encode()
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


async def respond(writer: asyncio.StreamWriter, status: int, body: dict[str, Any], keep: bool) -> None:
    raw = json.dumps(body, ensure_ascii=False).encode()
    writer.write(head(status, "application/json", f"Content-Length: {len(raw)}", keep) + raw)
    await writer.drain()


async def respond_text(writer: asyncio.StreamWriter, status: int, text: str, keep: bool) -> None:
    raw = text.encode()
    writer.write(head(status, "text/plain; charset=utf-8", f"Content-Length: {len(raw)}", keep) + raw)
    await writer.drain()


def prompt_of(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return str(messages[-1].get("content", ""))
    return str(body.get("prompt", ""))


def seconds_of(text: str, default: float) -> float:
    word, _, rest = text.partition(" ")
    try:
        return float(rest) if word in ("sleep", "burn") else default
    except ValueError:
        return default


def burn(seconds: float) -> None:
    """Uses a whole CPU, as a computation does that holds the interpreter's lock."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def main() -> None:
    env = dict(os.environ)
    name = env.get("NAME") or (sys.argv[1] if len(sys.argv) > 1 else socket.gethostname())
    asyncio.run(serve(env, name))


async def serve(env: dict[str, str], name: str) -> None:
    await Server(env, name).run()


if __name__ == "__main__":
    main()
