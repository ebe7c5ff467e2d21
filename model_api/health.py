"""/health and its parts: is it alive, is it ready, does it get on. Never waits for the model."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from model_api.service import SICK_AFTER, Phase, Service

LOW_GPU_MEMORY_GB = 2.0  # the original design's limit
NO_WORK = {"in_flight": 0, "queued": 0, "steps": 0, "tokens": 0, "step_running_s": 0.0, "idle_s": 0.0}


def report(service: Service) -> tuple[int, dict[str, Any]]:
    """(HTTP status, body of GET /health): 200 healthy, 503 loading or unhealthy with a reason."""
    name = service.settings.model_name
    if service.phase is Phase.LOADING:
        seconds = round(time.monotonic() - service.started, 1)
        return 503, {"status": "loading", "reason": f"loading for {seconds} s", "model": name, "progress": NO_WORK}
    reason = _unhealthy_reason(service)
    progress = service.progress()
    return (503 if reason else 200), {
        "status": "unhealthy" if reason else "healthy",
        **({"reason": reason} if reason else {}),
        "model": name,
        "gpu_memory_gb": service.gpu_memory_gb(),
        "warnings": _warnings(service),
        "progress": asdict(progress) if progress else NO_WORK,
    }


def _unhealthy_reason(service: Service) -> str | None:
    if service.phase is Phase.DRAINING:
        return f"draining: {service.admission.inside} requests to finish"
    if (lost := service.gpu_lost()) is not None:
        return lost
    if (trouble := service.trouble).failures >= SICK_AFTER:
        return f"the last {trouble.failures} steps failed, those of a prompt known to be good too: {trouble.words}"
    return None


def _warnings(service: Service) -> list[str]:
    """What an operator should know although requests are answered."""
    free = service.gpu_memory_gb()
    if free is not None and free < LOW_GPU_MEMORY_GB:
        return [f"{free:.1f} GB of GPU memory free, less than {LOW_GPU_MEMORY_GB:g}: long dialogues may fail"]
    return []


def health(service: Service, request: HttpRequest) -> Response:
    """GET /health."""
    status, body = report(service)
    return JSONResponse(body, status_code=status)


def live(service: Service, request: HttpRequest) -> Response:
    """GET /health/live: 200 as long as the process answers; what cannot go on exits by itself."""
    return JSONResponse({"status": "alive", "phase": str(service.phase)})


def ready(service: Service, request: HttpRequest) -> Response:
    """GET /health/ready: 200 if a request would be taken into the server, busy or not; else 503 and why."""
    status, body = report(service)
    return JSONResponse({key: body[key] for key in ("status", "reason") if key in body}, status_code=status)
