"""`undrain`: give a drained instance its requests again."""

from __future__ import annotations

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.parameters import instance_argument
from hasupervisor.ctl.waiting import carry_out, waiting_options


@click.command(cls=Command)
@instance_argument()
@waiting_options
@click.pass_context
def command(ctx: click.Context, name: str, no_wait: bool, timeout: float | None) -> int:
    """Bring a drained instance back, wait until it serves.

    \b
    chatglm-hactl undrain chatglm-02
    """
    settings = Settings.of(ctx)
    operation = settings.client.post(f"/v1/instances/{segment(name)}/undrain")
    return carry_out(settings, operation, wait=not no_wait, timeout=timeout)
