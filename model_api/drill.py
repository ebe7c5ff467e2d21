"""The hook of `chatglm-hactl drill sick`: answers every prompt with 500 for a while, where it was started so.

Without DRILL=1 there is nothing of it. With it, a request that has come through a proxy is told 404 all the same: the
gateway sets X-Forwarded-For on whatever it passes on, so none of its clients can make an instance sick.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from model_api.problems import Problem, Unanswerable
from model_api.service import Service
from model_api.web import CLIENT_GONE

log = logging.getLogger(__name__)

PATH = "/drill"
INVALID = 422
LONGEST = 3600.0  # seconds; a server whose drill was forgotten is well again after that
MAX_BODY = 4096  # bytes
OFFERED = {"faults": ["sick"]}


async def answer(service: Service, request: HttpRequest) -> Response:
    """GET names the faults that can be made here; POST makes one (docs/drills.md).

    Asks for no key: whoever drills has none, and started the server with DRILL=1. Raises HTTPException (404) for what
    has come through a proxy.
    """
    if "x-forwarded-for" in request.headers:
        raise HTTPException(404)
    if request.method == "POST":
        try:
            _make(service, parse(await service.bodies.read(request, MAX_BODY)))
        except Unanswerable as error:
            body = {"error": error.problem.words, "status": error.problem.status}
            return JSONResponse(body, status_code=error.problem.status)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
    return JSONResponse(OFFERED)


def _make(service: Service, seconds: float) -> None:
    service.make_sick(seconds)
    if seconds:
        log.warning('drill: every prompt is answered 500 for %g s; POST %s {"fault": null} ends it', seconds, PATH)
    else:
        log.warning("drill: ended, prompts are answered again")


def parse(body: bytes) -> float:
    """For how many seconds to be sick; 0: not any more. Raises Unanswerable."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"the body is not JSON: {error}") from None
    if not isinstance(told, Mapping) or "fault" not in told:
        raise _wrong('a JSON object with "fault" was meant: "sick", or null to end it')
    if told["fault"] is None:
        return 0.0
    if told["fault"] != "sick":
        raise _wrong(f'fault: {told["fault"]!r} cannot be made here; "sick" can')
    seconds = told.get("for_s", LONGEST)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST:
        raise _wrong(f"for_s: must be a number of seconds, more than 0 and at most {LONGEST:g}")
    return float(seconds)


def _wrong(words: str) -> Unanswerable:
    return Unanswerable(Problem(INVALID, words, "invalid_value"))
