"""A daemon as its socket shows it: a real HTTP server on a Unix socket that speaks docs/control-api.md and no more.

The tool's requests are held to that page too: an unknown path, parameter or body key is answered 404 or 400.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.ctl import documents, drills
from tests.ctl.documents import Document

STREAM_DEADLINE_S = 20.0  # a watch without an end would hang a test's last thread


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Document


@dataclass(frozen=True)
class Text:
    """A plain answer, piece by piece."""

    pieces: list[bytes]


@dataclass(frozen=True)
class Raw:
    """Bytes that are sent as they are, then the connection is closed."""

    sent: bytes


@dataclass(frozen=True)
class Held:
    """Bytes that are sent as they are, after which nothing comes and the connection stays."""

    sent: bytes


@dataclass
class State:
    """What the stand-in daemon has to say; tests change it while it serves."""

    status: Document = field(default_factory=documents.status)
    gpus: Document = field(default_factory=lambda: documents.gpus(documents.gpu(0)))
    operations: list[Document] = field(default_factory=list)  # every move of op-7 so far
    drills: list[Document] = field(default_factory=list)  # every move of drill-3 so far
    plan: Document = field(default_factory=lambda: drills.PLAN)
    history: list[Document] = field(default_factory=lambda: list(documents.HISTORY))
    logs: dict[str, bytes] = field(default_factory=dict)
    instead: dict[str, tuple[int, Document] | Raw | Held | Text] = field(default_factory=dict)  # path -> answer
    requests: list[Request] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def move(self, *operations: Document) -> None:
        with self.changed:
            self.operations.extend(operations)
            self.changed.notify_all()

    def drill(self, *moves: Document) -> None:
        with self.changed:
            self.drills.extend(moves)
            self.changed.notify_all()

    def happen(self, *entries: Document) -> None:
        with self.changed:
            self.history.extend(entries)
            self.changed.notify_all()

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]


class StandIn:
    """Serves `state` on the socket between `start` and `stop`; `stop` breaks every connection, as a crash does."""

    def __init__(self, path: Path, state: State | None = None) -> None:
        self.path = path
        self.state = state or State()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = _Server(str(self.path), self.state)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        server.stopped.set()
        with server.state.changed:
            server.state.changed.notify_all()
        server.shutdown()
        server.server_close()
        server.break_connections()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, _Handler)
        self.state = state
        self.stopped = threading.Event()
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def break_connections(self) -> None:
        for connection in self._connections:
            with suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone in the middle is no event; anything else would be the stand-in's own mistake."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _BadRequest(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        request = Request(self.command, url.path, dict(parse_qsl(url.query, keep_blank_values=True)), body)
        self.server.state.requests.append(request)
        try:
            answer = self.server.state.instead.get(url.path) or self._route(request)
        except _BadRequest as error:
            answer = 400, documents.problem(400, str(error))
        if isinstance(answer, Raw):
            self.wfile.write(answer.sent)
            self.close_connection = True
        elif isinstance(answer, Held):
            self.wfile.write(answer.sent)
            self.server.stopped.wait(STREAM_DEADLINE_S)
        elif isinstance(answer, Text):
            self._stream(iter(answer.pieces), "text/plain; charset=utf-8")
        elif isinstance(answer, tuple):
            self._send(*answer)
        else:
            self._stream(answer, "application/x-ndjson")

    def _route(self, request: Request) -> tuple[int, Document] | Text | Iterator[bytes]:
        state, parts = self.server.state, request.path.removeprefix("/v1/").split("/")
        match request.method, parts:
            case "GET", ["status"]:
                self._only(request, query={"name"})
                return self._status(request.query.get("name"))
            case "GET", ["instances", name, "logs"]:
                self._only(request, query={"n", "follow", "last_failure"})
                return self._logs(name, request.query)
            case "GET", ["history"]:
                self._only(request, query={"since", "n", "follow"})
                return self._history(request.query)
            case "GET", ["operations"]:
                self._only(request)
                return 200, {"operations": state.operations[-1:]}
            case "GET", ["operations", "op-7"] if state.operations:
                self._only(request, query={"watch"})
                watched = request.query.get("watch") == "1"
                return self._watch(state.operations) if watched else (200, state.operations[-1])
            case "GET", ["drill"]:
                self._only(request)
                return 200, {"drills": state.drills[-1:]}
            case "GET", ["drill", "drill-3"] if state.drills:
                self._only(request, query={"watch"})
                return self._watch(state.drills) if request.query.get("watch") == "1" else (200, state.drills[-1])
            case "DELETE", ["drill", "drill-3"] if state.drills:
                self._only(request)
                state.drill(drills.drill("it was called off", "cancelled", findings=["it was called off"]))
                return 200, state.drills[-1]
            case "DELETE", ["operations", "op-7"] if state.operations:
                self._only(request)
                state.move(documents.operation("called off by alice (uid 1000)", "cancelled"))
                return 200, state.operations[-1]
            case "POST", _:
                return self._command(request, parts)
        found = self._plain(request)
        return found or (404, documents.problem(404, f"there is no {request.path}", hint="chatglm-hactl status"))

    def _plain(self, request: Request) -> tuple[int, Document] | None:
        self._only(request)
        answers: dict[str, Callable[[], Document]] = {
            "/v1/version": lambda: documents.VERSION,
            "/v1/instances/chatglm-02/explain": lambda: documents.EXPLANATION,
            "/v1/autoscale": lambda: self.server.state.status["autoscale"] | {"mode": self.server.state.status["mode"]},
            "/v1/gpus": lambda: self.server.state.gpus,
            "/v1/nginx": lambda: documents.NGINX,
            "/v1/config": lambda: documents.CONFIG,
        }
        return (200, answers[request.path]()) if request.path in answers else None

    def _command(self, request: Request, parts: list[str]) -> tuple[int, Document]:
        state = self.server.state
        begun = 202, state.operations[0] if state.operations else {}
        match parts:
            case ["scale"]:
                self._only(request, body={"n", "force", "dry_run"})
                return (200, documents.DRY_RUN) if request.body.get("dry_run") else begun
            case ["restart"] | ["instances", "chatglm-02", "restart" | "drain"]:
                self._only(request, body={"force"})
                return begun
            case ["instances", "chatglm-02", "undrain"]:
                self._only(request)
                return begun
            case ["drill"]:
                self._only(request, body={"fault", "name", "rate", "seconds", "force", "dry_run"})
                return (200, state.plan) if request.body.get("dry_run") else (202, state.drills[0])
            case ["autoscale"]:
                self._only(request, body={"enabled"})
                state.status = state.status | {"mode": "auto" if request.body["enabled"] else "manual"}
                return 200, state.status["autoscale"] | {"mode": state.status["mode"]}
            case ["pause"]:
                self._only(request, body={"for_s", "reason"})
                return 200, documents.PAUSED | {"reason": request.body.get("reason")}
            case ["resume"]:
                self._only(request)
                return 200, {"was_paused": state.status["paused"] is not None}
            case ["gpus", which, "quarantine"]:
                self._only(request, body={"reason"})
                reason = f"{request.body.get('reason') or 'no reason given'}; by alice (uid 1000), until it is cleared"
                return self._card(which, state="quarantined", reason=reason, memory_available_bytes=None)
            case ["gpus", which, "clear"]:
                self._only(request)
                return self._card(which)
            case ["nginx", "test"]:
                self._only(request)
                return 200, {"ok": True, "output": "nginx: configuration file /etc/nginx/nginx.conf test is successful"}
            case ["nginx", "reload"]:
                self._only(request)
                return 200, {"ok": True, "generation": 42, "output": ""}
            case ["config", "reload"]:
                self._only(request)
                return 200, {"changed": ["health.interval: 2.0 -> 1.0"]}
        return 404, documents.problem(404, f"there is no {request.path}", hint="chatglm-hactl status")

    def _only(
        self, request: Request, *, query: frozenset[str] | set[str] = frozenset(), body: set[str] | None = None
    ) -> None:
        strange = (set(request.query) - query) | (set(request.body) - (body or set()))
        if strange:
            raise _BadRequest(f"unknown: {', '.join(sorted(strange))}")

    def _card(self, which: str, **changes: Any) -> tuple[int, Document]:
        for card in self.server.state.gpus["gpus"]:
            if which in (card["uuid"], str(card["index"])):
                card.update(changes)
                return 200, card
        return 404, documents.problem(404, f"there is no GPU {which}; there is 0", hint="chatglm-hactl gpu list")

    def _status(self, name: str | None) -> tuple[int, Document]:
        status = self.server.state.status
        if name is None:
            return 200, status
        kept = [one for one in status["instances"] if one["name"] == name]
        if not kept:
            return 404, documents.problem(404, f"there is no instance {name}", hint="chatglm-hactl status")
        return 200, status | {"instances": kept}

    def _logs(self, name: str, query: dict[str, str]) -> tuple[int, Document] | Text:
        output = self.server.state.logs.get("last_failure" if query.get("last_failure") else name)
        if output is None:
            return 404, documents.problem(404, f"there is no instance {name}", hint="chatglm-hactl status")
        lines = output.splitlines(keepends=True)
        return Text(lines[max(len(lines) - int(query.get("n", "100")), 0) :])

    def _watch(self, moves: list[Document]) -> Iterator[bytes]:
        """Where it stands, and then each move until it ends."""
        told = len(moves) - 1
        while True:
            for move in moves[told:]:
                yield json.dumps(move).encode() + b"\n"
                told += 1
                if move["state"] != "running":
                    return
            if not self._wait(lambda told=told: len(moves) > told):  # type: ignore[misc]
                return

    def _history(self, query: dict[str, str]) -> Iterator[bytes]:
        state = self.server.state
        since = float(query.get("since", "0"))
        entries = [one for one in state.history if documents.unix(one["at"]) >= since][-int(query.get("n", "50")) :]
        told = len(state.history)
        while True:
            for entry in entries:
                yield json.dumps(entry).encode() + b"\n"
            if query.get("follow") != "1" or not self._wait(
                lambda told=told: len(state.history) > told  # type: ignore[misc]
            ):
                return
            entries, told = state.history[told:], len(state.history)

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Whether it came true; a stopped server breaks off without ending the answer, as a killed daemon does."""
        with self.server.state.changed:
            self.server.state.changed.wait_for(
                lambda: condition() or self.server.stopped.is_set(), timeout=STREAM_DEADLINE_S
            )
        if self.server.stopped.is_set():
            raise ConnectionAbortedError
        return condition()

    def _send(self, number: int, document: Document) -> None:
        body = json.dumps(document).encode()
        self.send_response(number)
        self.send_header("Content-Type", "application/problem+json" if number >= 400 else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, pieces: Iterator[bytes], kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
