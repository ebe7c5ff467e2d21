"""`drain`: take an instance out of service by hand."""

from __future__ import annotations

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.parameters import instance_argument
from hasupervisor.ctl.waiting import carry_out, waiting_options


@click.command(cls=Command)
@instance_argument()
@waiting_options
@click.option("--force", is_flag=True, help="Even where nothing would be left serving.")
@click.pass_context
def command(ctx: click.Context, name: str, no_wait: bool, timeout: float | None, force: bool) -> int:
    """Take an instance out of service.

    It gets no new requests; the command waits until it has answered those that it has. It stays out until `undrain`.

    \b
    chatglm-hactl drain chatglm-02
    """
    settings = Settings.of(ctx)
    operation = settings.client.post(f"/v1/instances/{segment(name)}/drain", {"force": force})
    return carry_out(settings, operation, wait=not no_wait, timeout=timeout)
