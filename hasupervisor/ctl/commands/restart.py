"""`restart`: one instance, or all of them one after another."""

from __future__ import annotations

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.parameters import instance_argument
from hasupervisor.ctl.waiting import carry_out, waiting_options


@click.command(cls=Command)
@instance_argument(required=False)
@click.option("--all", "all_", is_flag=True, help="Every instance, one after another.")
@waiting_options
@click.option("--force", is_flag=True, help="Even where nothing serves meanwhile, or no GPU has room for it again.")
@click.pass_context
def command(ctx: click.Context, name: str | None, all_: bool, no_wait: bool, timeout: float | None, force: bool) -> int:
    """Drain an instance, start it anew, wait until it serves.

    \b
    chatglm-hactl restart chatglm-02
    """
    if (name is None) != all_:
        raise click.UsageError("name one instance, or say --all", ctx=ctx)
    settings = Settings.of(ctx)
    target = "/v1/restart" if name is None else f"/v1/instances/{segment(name)}/restart"
    operation = settings.client.post(target, {"force": force})
    return carry_out(settings, operation, wait=not no_wait, timeout=timeout)
