"""`pause`: healing and scaling stop, traffic goes on."""

from __future__ import annotations

import click

from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.parameters import Duration
from hasupervisor.ctl.render import local_now, pause_sentence
from hasupervisor.ctl.screen import emit_json, say


@click.command(cls=Command)
@click.option("--for", "for_s", type=Duration(), metavar="S", help="End by itself after so long.")
@click.option("--reason", help="Why; everybody who asks for the status reads it.")
@click.pass_context
def command(ctx: click.Context, for_s: float | None, reason: str | None) -> int:
    """Stop healing and scaling; everything else goes on.

    Traffic goes on, and so do commands by hand.

    \b
    chatglm-hactl pause --for 30m --reason "new driver"
    """
    settings = Settings.of(ctx)
    asked = {"for_s": for_s, "reason": reason}
    paused = settings.client.post("/v1/pause", {key: value for key, value in asked.items() if value is not None})
    if settings.json:
        emit_json(paused.raw)
    else:
        say(pause_sentence(paused, local_now()), "to end it: chatglm-hactl resume")
    return Exit.DONE
