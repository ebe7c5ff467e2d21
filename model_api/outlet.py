"""What the engine has to say to the requests, kept until it may be handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model_api.job import Job
from model_api.request import Event, Failed, Finished, Why


def deliver_directly(events: Sequence[tuple[Job, Event]]) -> None:
    """Hands events over in the engine's own thread."""
    for job, event in events:
        job.deliver(event)


class Outlet:
    """Collects events, and hands over all of them at once. Belongs to the engine's thread."""

    def __init__(self, outbox: Callable[[Sequence[tuple[Job, Event]]], None]) -> None:
        self._outbox = outbox
        self._events: list[tuple[Job, Event]] = []

    def emit(self, job: Job, event: Event) -> None:
        """Says `event` to a request, unless it was cancelled."""
        if not job.cancelled:
            self._events.append((job, event))

    def finish(self, job: Job, reason: str) -> None:
        """Ends a request with its answer; `reason` is stop or length."""
        job.ended = True
        text = job.unshown + job.assembler.finish()
        self.emit(job, Finished(text, "stop" if job.assembler.stopped else reason, len(job.generated)))

    def fail(self, job: Job, why: Why, words: str) -> None:
        """Ends a request without an answer."""
        job.ended = True
        self.emit(job, Failed(why, words))

    def flush(self) -> None:
        """Hands over what was collected."""
        if self._events:
            events, self._events = self._events, []
            self._outbox(events)
