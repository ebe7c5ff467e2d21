"""How one more answer, failure or prompt changes what is known of an instance. Pure."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.model import Miss, ProbeView, Progress, Said
from hasupervisor.observe.answers import Health


def answered(view: ProbeView, health: Health, now: float, asked_at: float) -> ProbeView:
    """The view after an answer that came at `now` to a question that was put at `asked_at`."""
    progress = health.progress if health.progress is not None else view.progress
    return replace(
        view,
        said=health.said,
        reason=health.reason,
        answered_at=now,
        ended_at=now,
        asked_at=asked_at if health.said is Said.HEALTHY else view.asked_at,
        successes=view.successes + 1 if health.said is Said.HEALTHY else 0,
        unhealthies=view.unhealthies + 1 if health.said is Said.UNHEALTHY else 0,
        late_since=None,
        failures=0,
        first_failure_at=None,
        progress=progress,
        progress_at=now if health.progress is not None else view.progress_at,
        progressed_at=now if _moved(view.progress, health.progress) else view.progressed_at,
        unasked="",
        unasked_since=None,
    )


def missed(view: ProbeView, miss: Miss, words: str, now: float) -> ProbeView:
    """The view after a failure that was noticed at `now`."""
    return replace(
        view,
        ended_at=now,
        successes=0,
        failures=view.failures + 1,
        first_failure_at=now if view.first_failure_at is None else view.first_failure_at,
        miss=miss,
        error=words,
        unasked="",
        unasked_since=None,
    )


def late(view: ProbeView, asked_at: float) -> ProbeView:
    """The view while a question that was put at `asked_at` waits for its answer for longer than answers take."""
    return view if view.late_since is not None else replace(view, late_since=asked_at)


def unasked(view: ProbeView, why: str, now: float) -> ProbeView:
    """The view after a question that could not be put: nothing is known anew, and what is known grows old."""
    since = now if view.unasked_since is None else view.unasked_since
    return replace(view, unasked=why, unasked_since=since, late_since=None)


def lost(view: ProbeView, why: str, now: float) -> ProbeView:
    """The view after the watch itself broke: what it knew may be wrong, so nothing is known since then."""
    return unasked(ProbeView(view.runtime_id, unasked_since=view.unasked_since), why, now)


def lost_prompt(view: ProbeView, why: str, now: float) -> ProbeView:
    """The view after the prompts broke: whether it answers one is not known since then."""
    return replace(view, prompted_at=None, prompt_ok=None, prompt_error="", prompt_failures=0)


def prompted(view: ProbeView, fault: str, now: float) -> ProbeView:
    """The view after a synthetic prompt that ended at `now`; `fault` is "" when its answer was good."""
    return replace(
        view,
        prompted_at=now,
        prompt_ok=not fault,
        prompt_error=fault,
        prompt_failures=view.prompt_failures + 1 if fault else 0,
        progressed_at=view.progressed_at if fault else now,
    )


def counted(view: ProbeView, before: float | None, value: float, now: float) -> ProbeView:
    """The view after reading the progress counter; `before` is its last value, None the first time."""
    return view if value == before else replace(view, progressed_at=now)


def _moved(before: Progress | None, told: Progress | None) -> bool:
    """Whether a report shows progress. The first one does: from it on the time without progress is counted.

    A count that fell has begun anew, which is a life sign too.
    """
    if told is None:
        return False
    if before is None or (told.in_flight == 0 and told.queued == 0):
        return True
    return (told.steps, told.tokens) != (before.steps, before.tokens)


def news(before: ProbeView, after: ProbeView) -> bool:
    """Whether decisions may come out differently: more than times and counts of what goes on as it did."""
    return _essence(before) != _essence(after)


_COUNTED = 5  # successes in a row beyond this wake nobody: the next cycle sees them soon enough


def _essence(view: ProbeView) -> tuple[object, ...]:
    return (
        view.said,
        view.reason,
        min(view.successes, _COUNTED),
        view.unhealthies,
        view.late_since is None,
        view.failures,
        view.miss,
        view.prompt_ok,
        view.prompt_failures,
        view.progressed_at is None,
        view.unasked_since is None,
    )
