"""`check`: one line and an exit code for Nagios and its like."""

from __future__ import annotations

import click

from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Failure
from hasupervisor.ctl.render import complaints, moment_of, pause_sentence, stale_sentence
from hasupervisor.ctl.screen import emit, emit_json
from hasupervisor.ctl.text import clean

_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


@click.command(cls=Command)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Print one line for Nagios and its like.

    Numbers are behind the bar. Exits 0 when every wanted instance serves, 1 degraded, 2 nothing serves, 3 unknown
    (also when the daemon does not answer, has just started, or may not be asked).

    \b
    chatglm-hactl check
    """
    settings = Settings.of(ctx)
    try:
        status = settings.client.get("/v1/status")
        code, sentence = _judge(status)
        numbers = _numbers(status)
    except Failure as failure:
        code, sentence, numbers = 3, f"{failure.sentence}{f' ({failure.hint})' if failure.hint else ''}", {}
    if settings.json:
        emit_json({"code": code, "word": _WORDS[code], "sentence": sentence, "numbers": numbers})
        return code
    data = " ".join(f"{name}={'U' if value is None else value}" for name, value in numbers.items())
    # A bar inside the sentence would begin the numbers too early.
    emit(f"{_WORDS[code]} - {clean(sentence).replace('|', '/')}" + (f" | {data}" if data else ""))
    return code


def _judge(status: Document) -> tuple[int, str]:
    if not status.flag("settled", absent=True):
        return 3, "the daemon has just started and has not asked everybody yet"
    serving, desired = status.number("serving"), status.number("desired")
    sentences = [status.text("summary"), *_limits(status), *_first_problem(status)]
    if desired > 0 and serving == 0:
        return 2, "; ".join(sentences)
    whole = serving >= desired and status.text("health") == "green" and status.maybe_part("stale") is None
    return 0 if whole else 1, "; ".join(sentences)


def _limits(status: Document) -> list[str]:
    paused, stale = status.maybe_part("paused"), status.maybe_part("stale")
    sentences = [pause_sentence(paused, moment_of(status))] if paused else []
    return [*sentences, stale_sentence(stale)] if stale else sentences


def _first_problem(status: Document) -> list[str]:
    problems = complaints(status)
    if not problems:
        return []
    subject, sentence, hint = problems[0]
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return [f"{subject}: {sentence}{f' ({hint})' if hint else ''}{more}"]


def _numbers(status: Document) -> dict[str, str | None]:
    """Performance data with the units that Nagios knows; None for what is not known."""
    numbers: dict[str, str | None] = {key: f"{status.number(key):g}" for key in ("serving", "desired")}
    traffic = status.maybe_part("traffic")
    if traffic is None:
        return numbers
    latency = traffic.maybe_part("latency_ms")
    found = {
        "in_flight": (traffic.maybe_number("in_flight"), "{:g}"),
        "qps": (traffic.maybe_number("qps"), "{:g}"),
        "p95": (latency.maybe_number("p95") if latency else None, "{:.0f}ms"),
        "error_rate": (traffic.maybe_number("error_rate"), "{:g}"),
    }
    return numbers | {name: None if value is None else form.format(value) for name, (value, form) in found.items()}
