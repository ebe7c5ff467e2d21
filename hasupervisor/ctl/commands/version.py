"""`version`: of this tool and of the daemon."""

from __future__ import annotations

import click

from hasupervisor import __version__
from hasupervisor.ctl.commandline import PROGRAM, Command, Settings
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.render import local_now
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import number, since


@click.command(cls=Command)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Print the versions of this tool and of the daemon.

    \b
    chatglm-hactl version
    """
    settings = Settings.of(ctx)
    try:
        daemon = settings.client.get("/v1/version")
    except Failure:
        if settings.json:
            emit_json({"hactl": __version__, "daemon": None})
        else:
            emit(f"{PROGRAM}  {__version__}")
        raise
    if settings.json:
        emit_json({"hactl": __version__, "daemon": daemon.raw})
        return Exit.DONE
    version, running = daemon.text("version"), since(daemon.text("started"), local_now())
    pid, api = number(daemon.maybe_number("pid")), number(daemon.maybe_number("api"))
    emit(f"{PROGRAM}  {__version__}", f"chatglm-had    {version}, api {api}, pid {pid}, runs for {running}")
    if version != __version__:
        say("they differ: systemctl restart chatglm-ha  after an upgrade; instances are not touched")
    return Exit.DONE
