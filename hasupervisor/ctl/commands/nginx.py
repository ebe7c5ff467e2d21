"""`nginx`: the gateway's configuration as it is on disk and as it runs."""

from __future__ import annotations

import click

from hasupervisor.ctl.client import SLOW_ANSWER_S
from hasupervisor.ctl.commandline import Group, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import number


@click.group(cls=Group)
def command() -> None:
    """Look at, test or reload the gateway.

    \b
    chatglm-hactl nginx show
    """


@command.command()
@click.pass_context
def show(ctx: click.Context) -> int:
    """Print the daemon's files for nginx, and which generation runs.

    \b
    chatglm-hactl nginx show
    """
    settings = Settings.of(ctx)
    nginx = settings.client.get("/v1/nginx")
    if settings.json:
        emit_json(nginx.raw)
        return Exit.DONE
    reason = nginx.maybe_text("reason")
    state = "ok" if nginx.flag("ok") else "NOT OK"
    emit(
        f"# nginx {state}, mode {nginx.text('mode')}, generation {number(nginx.maybe_number('generation'))} on disk, "
        f"{number(nginx.maybe_number('live_generation'))} runs{f': {reason}' if reason else ''}"
    )
    for name, content in nginx.part("files").raw.items():
        emit("", f"# {nginx.maybe_text('dir') or ''}/{name}", str(content).rstrip("\n"))
    return Exit.DONE


@command.command()
@click.pass_context
def test(ctx: click.Context) -> int:
    """Have nginx test its whole configuration, and print its own words.

    \b
    chatglm-hactl nginx test
    """
    settings = Settings.of(ctx)
    answer = settings.client.post("/v1/nginx/test", patience=SLOW_ANSWER_S)
    return _tell(settings, answer, "nginx accepts its configuration", "nginx does not accept its configuration")


@command.command()
@click.pass_context
def reload(ctx: click.Context) -> int:
    """Test, reload, and wait until the new generation answers.

    \b
    chatglm-hactl nginx reload
    """
    settings = Settings.of(ctx)
    answer = settings.client.post("/v1/nginx/reload", patience=SLOW_ANSWER_S)
    done = f"nginx runs generation {number(answer.maybe_number('generation'))}"
    return _tell(settings, answer, done, "nginx has not reloaded")


def _tell(settings: Settings, answer: Document, done: str, failed: str) -> int:
    output = (answer.maybe_text("output") or "").strip()
    if settings.json:
        emit_json(answer.raw)
    elif output:
        emit(output)
    if not answer.flag("ok"):
        raise Failure(Exit.FAILED, failed, hint="chatglm-hactl nginx show")
    say(done)
    return Exit.DONE
