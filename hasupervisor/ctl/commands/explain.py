"""`explain`: why one instance is as it is, and what comes next."""

from __future__ import annotations

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.commands.history import entry_line
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.parameters import instance_argument
from hasupervisor.ctl.render import banners, local_now
from hasupervisor.ctl.screen import emit, emit_json
from hasupervisor.ctl.text import Paint, clean, clock, since


@click.command(cls=Command)
@instance_argument()
@click.pass_context
def command(ctx: click.Context, name: str) -> int:
    """Say why an instance is as it is, and what comes next.

    \b
    chatglm-hactl explain chatglm-02
    """
    settings = Settings.of(ctx)
    explanation = settings.client.get(f"/v1/instances/{segment(name)}/explain")
    if settings.json:
        emit_json(explanation.raw)
        return Exit.DONE
    above = banners(settings.client.get("/v1/status", {"name": name}), settings.paint)  # a pause explains a lot
    emit(*_head(explanation, settings.paint), *above, *_evidence(explanation))
    return Exit.DONE


def _head(explanation: Document, paint: Paint) -> list[str]:
    colour, name = explanation.text("colour"), explanation.text("name")
    how_long = since(explanation.text("since"), local_now())
    verdict = explanation.maybe_text("verdict")
    return [
        f"{paint(colour.upper(), colour)} {name}: {explanation.text('state')} for {how_long}"
        + (f", verdict {verdict}" if verdict else ""),
        clean(explanation.text("reason")),
        f"next: {clean(explanation.maybe_text('next') or 'nothing')}",
    ]


def _evidence(explanation: Document) -> list[str]:
    evidence = explanation.texts("evidence")
    lines = ["", "evidence:", *(f"  {clean(sentence)}" for sentence in evidence)] if evidence else []
    lines += _last_failure(explanation, explanation.text("name"))
    entries = explanation.parts("history")
    if entries:
        lines += ["", "history:", *(f"  {entry_line(entry)}" for entry in entries)]
    return lines


def _last_failure(explanation: Document, name: str) -> list[str]:
    failure = explanation.maybe_part("last_failure")
    if failure is None:
        return []
    at = failure.text("at")
    tail = (failure.maybe_text("tail") or "").splitlines()
    return [
        "",
        f"last failure, {since(at, local_now())} ago ({clock(at)}): {clean(failure.text('reason'))}",
        *(f"  | {clean(line)}" for line in tail),
        *([f"    chatglm-hactl logs {name} --last-failure"] if tail else []),
    ]
