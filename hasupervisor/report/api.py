"""The control socket: every request of docs/control-api.md, answered from the desk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hasupervisor.model import Judged, Operation, OperationState
from hasupervisor.report import document, parameters, scaling
from hasupervisor.report.answers import (
    Application,
    Receive,
    Scope,
    Send,
    Stream,
    answer,
    decline,
    defect,
    encode,
    refuse,
)
from hasupervisor.report.api_gpus import GpuRequests
from hasupervisor.report.desk import (
    Declined,
    Desk,
    DrillAsked,
    DryRun,
    NoSuch,
    ReplayAsked,
    Unavailable,
    no_such_instance,
    no_such_operation,
)
from hasupervisor.report.parameters import Misunderstood
from hasupervisor.report.peer import UserNames
from hasupervisor.report.snapshot import Snapshot

API = 1

DEADLINE = 60.0
"""Seconds for an answer that is no stream; the longest is nginx's test and reload."""

EXPLAINED = 20
"""Lines of its history in the explanation of an instance."""

SHOWN_OPERATIONS = 50

LINES = "application/x-ndjson"
PLAIN = "text/plain"

_Line = TypeVar("_Line")

Endpoint = Callable[[Request], Awaitable[Response | Stream]]


def control_api(desk: Desk, stopping: asyncio.Event) -> Application:
    """The application behind the control socket. Streams end when `stopping` is set."""
    names = UserNames()
    ask, ask_gpus = _Requests(desk, stopping, names), GpuRequests(desk, names)
    once_looked = partial(_once_looked, desk)
    instance = "/v1/instances/{name}"
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v1/status", ask.status),
        ("GET", "/v1/version", ask.version),
        ("GET", f"{instance}/explain", ask.explain),
        ("GET", f"{instance}/logs", ask.logs),
        ("POST", f"{instance}/restart", once_looked(ask.restart)),
        ("POST", f"{instance}/drain", once_looked(ask.drain)),
        ("POST", f"{instance}/undrain", once_looked(ask.undrain)),
        ("POST", "/v1/scale", once_looked(ask.scale)),
        ("POST", "/v1/restart", once_looked(ask.restart)),
        ("GET", "/v1/autoscale", ask.autoscale),
        ("POST", "/v1/autoscale", ask.set_autoscale),
        ("POST", "/v1/autoscale/replay", ask.replay),
        ("POST", "/v1/pause", ask.pause),
        ("POST", "/v1/resume", ask.resume),
        ("GET", "/v1/operations", ask.operations),
        ("GET", "/v1/operations/{id}", ask.operation),
        ("DELETE", "/v1/operations/{id}", ask.cancel),
        ("POST", "/v1/drill", once_looked(ask.begin_drill)),
        ("GET", "/v1/drill", ask.drills),
        ("GET", "/v1/drill/{id}", ask.drill),
        ("DELETE", "/v1/drill/{id}", ask.call_off_drill),
        ("GET", "/v1/history", ask.history),
        ("GET", "/v1/gpus", ask_gpus.list),
        ("POST", "/v1/gpus/{gpu}/quarantine", once_looked(ask_gpus.quarantine)),
        ("POST", "/v1/gpus/{gpu}/clear", once_looked(ask_gpus.clear)),
        ("GET", "/v1/nginx", ask.nginx),
        ("POST", "/v1/nginx/test", ask.nginx_test),
        ("POST", "/v1/nginx/reload", ask.nginx_reload),
        ("GET", "/v1/config", ask.config),
        ("POST", "/v1/config/reload", ask.reload_config),
    ]
    paths = dict.fromkeys(path for _, path, _ in table)
    routes = [Route(path, _Resource({method: call for method, p, call in table if p == path})) for path in paths]
    handlers: dict[Any, Any] = {
        Declined: _declined,
        Misunderstood: _misunderstood,
        HTTPException: _http_exception,
        Exception: _defect,
    }
    application = Starlette(routes=routes, exception_handlers=handlers)
    application.router.redirect_slashes = False
    return application


def _once_looked(desk: Desk, call: Endpoint) -> Endpoint:
    """A command that is judged by how things stand: just after the daemon's start it waits until that has been seen."""

    async def waiting(request: Request) -> Response | Stream:
        await desk.looked()
        return await call(request)

    return waiting


class _Requests:
    """One method for each request."""

    def __init__(self, desk: Desk, stopping: asyncio.Event, names: UserNames) -> None:
        self._desk = desk
        self._stopping = stopping
        self._names = names

    # --- what is asked ------------------------------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        only = parameters.query(request, parameters.OneInstance).name
        snapshot = self._desk.status()
        if only is not None:
            _judged(snapshot, only)
        return answer(document.status(snapshot, only))

    async def version(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        snapshot = self._desk.status()
        started = document.timestamp(snapshot.started_wall)
        return answer({"version": snapshot.version, "api": API, "pid": os.getpid(), "started": started})

    async def explain(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        snapshot = self._desk.status()
        judged = _judged(snapshot, request.path_params["name"])
        lines = await self._desk.history(n=EXPLAINED, since_wall=None, subject=judged.record.name)
        return answer(document.explanation(judged, snapshot, lines))

    async def logs(self, request: Request) -> Response | Stream:
        wanted = parameters.query(request, parameters.Logs)
        judged = _judged(self._desk.status(), request.path_params["name"])
        if wanted.last_failure:
            return _last_words(judged, wanted)
        lines = self._desk.logs(judged.record.name, wanted.n, wanted.follow)
        return self._stream(_encoded(lines, lambda line: line.encode("utf-8", "replace") + b"\n"), PLAIN)

    async def autoscale(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        return answer(scaling.whole(self._desk.status()))

    async def replay(self, request: Request) -> Stream:
        wanted = await parameters.body(request, parameters.Replay, parameters.MOST_TRACE)
        lines = self._desk.replay(ReplayAsked(wanted.since, wanted.trace, wanted.policy, wanted.set))
        return self._stream(_encoded(lines, lambda line: encode(scaling.replay_line(line))), LINES)

    async def operations(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        newest_first = self._desk.status().operations[::-1][:SHOWN_OPERATIONS]
        return answer({"operations": [document.operation(operation) for operation in newest_first]})

    async def operation(self, request: Request) -> Response | Stream:
        watch = parameters.query(request, parameters.Watch).watch
        shown = self._operation(request.path_params["id"])
        return self._stream(self._watched(shown["id"]), LINES) if watch else answer(shown)

    async def drills(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        return answer({"drills": [dict(drill) for drill in await self._desk.drills()]})

    async def drill(self, request: Request) -> Response | Stream:
        watch = parameters.query(request, parameters.Watch).watch
        shown = await self._desk.drill(request.path_params["id"])
        if not watch:
            return answer(dict(shown))
        moves = self._desk.watch_drill(request.path_params["id"])
        return self._stream(_encoded(moves, lambda drill: encode(dict(drill))), LINES)

    async def history(self, request: Request) -> Stream:
        wanted = parameters.query(request, parameters.History)
        if wanted.follow:
            lines = self._desk.follow(n=wanted.n, since_wall=wanted.since)
        else:
            lines = _one_by_one(await self._desk.history(n=wanted.n, since_wall=wanted.since))
        return self._stream(_encoded(lines, lambda line: encode(document.entry(line))), LINES)

    async def nginx(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        gateway = self._desk.status().gateway
        on_disk = await self._desk.nginx_files()
        return answer(
            {
                "mode": on_disk.mode,
                "dir": on_disk.dir,
                "generation": gateway.generation,
                "live_generation": gateway.live_generation,
                "ok": gateway.ok,
                "reason": gateway.reason,
                "files": dict(on_disk.files),
            }
        )

    async def config(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        view = await self._desk.config()
        return answer({"path": view.path, "config": {name: dict(keys) for name, keys in view.config.items()}})

    # --- what is commanded --------------------------------------------------------------------------------------------

    async def scale(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Scale)
        by = await self._by(request)
        result = await self._desk.scale(wanted.n, force=wanted.force, dry_run=wanted.dry_run, by=by)
        return answer(document.dry_run(result)) if isinstance(result, DryRun) else _begun(result)

    async def restart(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Force)
        name = request.path_params.get("name")
        known = _judged(self._desk.status(), name).record.name if name is not None else None
        return _begun(await self._desk.restart(known, force=wanted.force, by=await self._by(request)))

    async def drain(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Force)
        name = _judged(self._desk.status(), request.path_params["name"]).record.name
        return _begun(await self._desk.drain(name, force=wanted.force, by=await self._by(request)))

    async def undrain(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        name = _judged(self._desk.status(), request.path_params["name"]).record.name
        return _begun(await self._desk.undrain(name, by=await self._by(request)))

    async def cancel(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        shown = self._operation(request.path_params["id"])
        return answer(document.operation(await self._desk.cancel(shown["id"], by=await self._by(request))))

    async def begin_drill(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Drill)
        if wanted.name is not None and wanted.fault not in parameters.FAULTS_OF_INSTANCES:
            raise Misunderstood([f"name: {wanted.fault} is not an instance's fault, so it takes no name"])
        asked = DrillAsked(wanted.fault, wanted.name, wanted.rate, wanted.seconds, wanted.force)
        if wanted.dry_run:
            return answer(document.drill_plan(await self._desk.plan_drill(asked)))
        return answer(dict(await self._desk.begin_drill(asked, by=await self._by(request))), 202)

    async def call_off_drill(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        called_off = await self._desk.call_off_drill(request.path_params["id"], by=await self._by(request))
        return answer(dict(called_off))

    async def set_autoscale(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Autoscale)
        await self._desk.set_autoscale(wanted.enabled, by=await self._by(request))
        return answer(scaling.whole(self._desk.status()))

    async def pause(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Pause)
        pause = await self._desk.pause(wanted.for_s, wanted.reason, by=await self._by(request))
        return answer(document.paused(pause) or {})

    async def resume(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        return answer({"was_paused": await self._desk.resume(by=await self._by(request))})

    async def nginx_test(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        result = await self._desk.nginx_test()
        return answer({"ok": result.ok, "output": result.output})

    async def nginx_reload(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        result = await self._desk.nginx_reload(by=await self._by(request))
        return answer({"ok": True, "generation": result.generation, "output": result.output})

    async def reload_config(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        return answer({"changed": list(await self._desk.reload_config(by=await self._by(request)))})

    # --- what they have in common -------------------------------------------------------------------------------------

    async def _by(self, request: Request) -> str:
        return await self._names.describe(request.state.peer)

    def _stream(self, pieces: AsyncGenerator[bytes, None], media_type: str) -> Stream:
        return Stream(pieces, media_type, self._stopping)

    def _operation(self, operation_id: str) -> document.Document:
        found = next((o for o in self._desk.status().operations if o.id == operation_id), None)
        if found is None:
            raise no_such_operation(operation_id)
        return document.operation(found)

    async def _watched(self, operation_id: str) -> AsyncGenerator[bytes, None]:
        """The operation now, and again each time it has moved, until it has ended."""
        last: document.Document | None = None
        while True:
            shown = self._operation(operation_id)
            if shown != last:
                yield encode(shown)
            if shown["state"] != OperationState.RUNNING:
                return
            last = shown
            await self._desk.moved()


class _Resource:
    """What is at one path, by method."""

    def __init__(self, calls: Mapping[str, Endpoint]) -> None:
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = await self._answer(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response | Stream:
        call = self._calls.get(request.method)
        if call is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._calls)})
        if request.method != "GET":
            parameters.query(request, parameters.Nothing)
        try:
            async with asyncio.timeout(DEADLINE) as limit:
                return await call(request)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable(f"no answer in {DEADLINE:g} s; what was begun goes on", "chatglm-hactl history") from None


def _judged(snapshot: Snapshot, name: str) -> Judged:
    for judged in snapshot.instances:
        if judged.record.name == name:
            return judged
    raise no_such_instance(name, [judged.record.name for judged in snapshot.instances])


def _begun(operation: Operation) -> Response:
    return answer(document.operation(operation), 202)


def _last_words(judged: Judged, wanted: parameters.Logs) -> Response:
    name, failure = judged.record.name, judged.record.last_failure
    if wanted.follow:
        raise Misunderstood(["follow: the output of a life that has ended does not go on"])
    if failure is None:
        raise NoSuch(f"{name} has not failed", f"chatglm-hactl logs {name}")
    if not failure.tail.strip():
        raise NoSuch(f"the last failure of {name} ({failure.reason}) left no output", f"chatglm-hactl explain {name}")
    lines = failure.tail.splitlines()
    kept = lines[max(0, len(lines) - wanted.n) :]
    return Response("".join(f"{line}\n" for line in kept).encode("utf-8", "replace"), media_type=PLAIN)


async def _one_by_one(lines: Iterable[_Line]) -> AsyncIterator[_Line]:
    for line in lines:
        yield line


async def _encoded(lines: AsyncIterator[_Line], encoded: Callable[[_Line], bytes]) -> AsyncGenerator[bytes, None]:
    """Closes `lines` when it is closed itself: a follower that nobody reads any more must end."""
    try:
        async for line in lines:
            yield encoded(line)
    finally:
        close = getattr(lines, "aclose", None)
        if close is not None:
            await close()


async def _declined(_: Request, error: Declined) -> Response:
    return decline(error)


async def _misunderstood(_: Request, error: Misunderstood) -> Response:
    problems = error.problems if len(error.problems) > 1 else ()
    return refuse(error.status, str(error), problems=problems)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    if error.status_code == 404:
        return refuse(404, f"there is nothing at {path}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return refuse(405, f"{path} takes {allowed}, not {request.method}", headers=error.headers)
    return refuse(error.status_code, str(error.detail), headers=error.headers)


async def _defect(_: Request, error: Exception) -> Response:
    return defect()
