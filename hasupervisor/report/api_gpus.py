"""The requests about GPUs on the control socket (docs/control-api.md)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from hasupervisor.model.gpu import CardJudged
from hasupervisor.report import gpus, parameters
from hasupervisor.report.answers import answer
from hasupervisor.report.desk import Desk
from hasupervisor.report.peer import UserNames


class GpuRequests:
    """One method for each request. A card is named by its UUID, the beginning of it, or its index."""

    def __init__(self, desk: Desk, names: UserNames) -> None:
        self._desk = desk
        self._names = names

    async def list(self, request: Request) -> Response:
        parameters.query(request, parameters.Nothing)
        return answer(gpus.whole(self._desk.status()))

    async def quarantine(self, request: Request) -> Response:
        wanted = await parameters.body(request, parameters.Quarantine)
        judged = self._card(request)
        by = await self._names.describe(request.state.peer)
        await self._desk.quarantine_gpu(judged.record.uuid, wanted.reason, by=by)
        return self._answer(judged)

    async def clear(self, request: Request) -> Response:
        await parameters.body(request, parameters.Nothing)
        judged = self._card(request)
        by = await self._names.describe(request.state.peer)
        await self._desk.clear_gpu(judged.record.uuid, by=by)
        return self._answer(judged)

    def _card(self, request: Request) -> CardJudged:
        return gpus.named(self._desk.status().gpus, request.path_params["gpu"])

    def _answer(self, judged: CardJudged) -> Response:
        """The card as it is now; one that vanished meanwhile as it was."""
        snapshot = self._desk.status()
        cards = snapshot.gpus.cards if snapshot.gpus is not None else ()
        now = next((one for one in cards if one.record.uuid == judged.record.uuid), judged)
        return answer(gpus.card(now, snapshot.now))
