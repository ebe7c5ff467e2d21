"""The ASGI application: which path leads where."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from model_api import drill, health, legacy, openai
from model_api.problems import Problem
from model_api.service import Service
from model_api.web import Handler, Render, endpoint


def build_app(service: Service) -> Starlette:
    """All routes over one service."""
    routes = [
        _work(service, "/", "POST", legacy.answer, legacy.render, legacy.INVALID),
        _work(service, "/v1/models", "GET", openai.models, openai.render, openai.INVALID),
        _work(service, "/v1/models/{name:path}", "GET", openai.model, openai.render, openai.INVALID),
        _work(service, "/v1/chat/completions", "POST", openai.chat_completions, openai.render, openai.INVALID),
        _work(service, "/v1/completions", "POST", openai.completions, openai.render, openai.INVALID),
        _look(service, "/health", health.health),
        _look(service, "/health/live", health.live),
        _look(service, "/health/ready", health.ready),
        _look(service, "/metrics", _metrics),
        *(_drill_routes(service) if service.settings.drill else ()),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    # A path with a slash too many is told 404. Starlette would send the client to an address made of its Host header.
    app.router.redirect_slashes = False
    return app


def _work(service: Service, path: str, method: str, handler: Handler, render: Render, invalid: int) -> Route:
    # An object and not a function: Starlette takes it as an ASGI application and leaves receive and send to it.
    return Route(path, _App(endpoint(service, path, handler, render, invalid=invalid)), methods=[method])


class _App:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _look(service: Service, path: str, read: Callable[[Service, HttpRequest], Response]) -> Route:
    async def look(request: HttpRequest) -> Response:
        return read(service, request)

    return Route(path, look, methods=["GET"])


def _metrics(service: Service, request: HttpRequest) -> Response:
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _drill_routes(service: Service) -> list[Route]:
    async def answer(request: HttpRequest) -> Response:
        return await drill.answer(service, request)

    return [Route(drill.PATH, answer, methods=["GET", "POST"])]


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    render = openai.render if request.url.path.startswith("/v1") else legacy.render
    words = f"{request.method} {request.url.path}: {error.detail}"
    response = render(Problem(error.status_code, words, "not_found" if error.status_code == 404 else "bad_request"))
    response.headers.update(error.headers or {})
    return response
