"""`resume`: end a pause."""

from __future__ import annotations

import click

from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.screen import emit_json, say


@click.command(cls=Command)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Heal and scale again after a pause.

    \b
    chatglm-hactl resume
    """
    settings = Settings.of(ctx)
    answer = settings.client.post("/v1/resume")
    if settings.json:
        emit_json(answer.raw)
    else:
        say("healing and scaling go on" if answer.flag("was_paused") else "it was not paused")
    return Exit.DONE
