"""`autoscale`: whether the daemon or a person sets the count."""

from __future__ import annotations

import click

from hasupervisor.ctl.commandline import Group, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.render import banners
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import clean, number


@click.group(cls=Group)
def command() -> None:
    """Let the daemon set the count, or keep it as it is.

    \b
    chatglm-hactl autoscale status
    """


@command.command()
@click.pass_context
def status(ctx: click.Context) -> int:
    """Say what the autoscaler wants, and from which numbers.

    \b
    chatglm-hactl autoscale status
    """
    settings = Settings.of(ctx)
    autoscale = settings.client.get("/v1/autoscale")
    if settings.json:
        emit_json(autoscale.raw)
        return Exit.DONE
    emit(_sentence(autoscale), *banners(settings.client.get("/v1/status"), settings.paint))
    inputs = autoscale.maybe_part("inputs")
    emit(*(f"  {key:<24} {clean(str(value))}" for key, value in (inputs.raw if inputs else {}).items()))
    return Exit.DONE


@command.command()
@click.pass_context
def on(ctx: click.Context) -> int:
    """Give the count to the autoscaler (mode auto).

    \b
    chatglm-hactl autoscale on
    """
    return _switch(Settings.of(ctx), enabled=True)


@command.command()
@click.pass_context
def off(ctx: click.Context) -> int:
    """Keep the count as it is (mode manual).

    \b
    chatglm-hactl autoscale off
    """
    return _switch(Settings.of(ctx), enabled=False)


def _switch(settings: Settings, *, enabled: bool) -> int:
    autoscale = settings.client.post("/v1/autoscale", {"enabled": enabled})
    if settings.json:
        emit_json(autoscale.raw)
    else:
        say(_sentence(autoscale))
    return Exit.DONE


def _sentence(autoscale: Document) -> str:
    wanted = number(autoscale.maybe_number("desired"))
    policy = f"policy {autoscale.maybe_text('policy') or '-'}"
    return f"mode {autoscale.text('mode')}, {policy}, wanted {wanted}: {clean(autoscale.maybe_text('sentence') or '-')}"
