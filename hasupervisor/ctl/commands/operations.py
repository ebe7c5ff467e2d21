"""`operations`: the long commands that people have given."""

from __future__ import annotations

from datetime import datetime

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.render import local_now
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import Cell, age, clean, moment, since, table
from hasupervisor.ctl.waiting import carry_out, tell_end, waiting_options

_COLOURS = {"running": "yellow", "done": "green", "failed": "red"}
_SPARE = ("TOOK", "BY")


@click.command(cls=Command)
@click.argument("id", required=False)
@click.option("--cancel", is_flag=True, help="Call it off; what is done already stays done.")
@waiting_options
@click.pass_context
def command(ctx: click.Context, id: str | None, cancel: bool, no_wait: bool, timeout: float | None) -> int:
    """List the last operations, or watch one to its end.

    With ID the exit code is the operation's own: 0 done, 1 failed or cancelled. With --no-wait it is only shown.

    \b
    chatglm-hactl operations op-7
    chatglm-hactl operations op-7 --cancel
    """
    settings = Settings.of(ctx)
    if id is None:
        if cancel:
            raise click.UsageError("say which one to cancel: chatglm-hactl operations  lists them", ctx=ctx)
        return _list(settings)
    if cancel:
        operation = settings.client.delete(f"/v1/operations/{segment(id)}")
        if settings.json:
            emit_json(operation.raw)
        say(f"{operation.text('id')} {operation.text('kind')} {operation.text('state')}: {operation.text('sentence')}")
        return Exit.DONE
    operation = settings.client.get(f"/v1/operations/{segment(id)}")
    if no_wait:
        _show(settings, [operation])
        return Exit.DONE
    if operation.text("state") == "running":
        return carry_out(settings, operation, wait=True, timeout=timeout)
    if settings.json:
        emit_json(operation.raw)
    return tell_end(operation, _took(operation, local_now()))


def _list(settings: Settings) -> int:
    answer = settings.client.get("/v1/operations")
    if settings.json:
        emit_json(answer.raw)
        return Exit.DONE
    operations = answer.parts("operations")
    if operations:
        _show(settings, operations)
    else:
        say("nobody has given a long command yet")
    return Exit.DONE


def _show(settings: Settings, operations: list[Document]) -> None:
    if settings.json:
        emit_json(operations[0].raw)
        return
    now = local_now()
    rows = [
        [
            Cell(clean(one.text("id"))),
            Cell(one.text("kind")),
            Cell(one.text("state"), _COLOURS.get(one.text("state"), "")),
            Cell(since(one.text("started"), now)),
            Cell(_took(one, now)),
            Cell(clean(one.text("by"))),
            Cell(clean(one.text("sentence"))),
        ]
        for one in operations
    ]
    head = ["ID", "KIND", "STATE", "AGE", "TOOK", "BY", "SENTENCE"]
    emit(*table(head, rows, settings.paint, columns=settings.columns, spare=_SPARE))


def _took(operation: Document, now: datetime) -> str:
    began = moment(operation.text("started"))
    ended = moment(operation.maybe_text("ended") or "") or now
    return age((ended - began).total_seconds()) if began else "-"
