"""`scale`: how many instances are wanted, set by hand."""

from __future__ import annotations

import click

from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import clean
from hasupervisor.ctl.waiting import carry_out, waiting_options


@click.command(cls=Command)
@click.argument("n", type=click.IntRange(min=0))
@waiting_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--force", is_flag=True, help="Leave service.min and service.max, or nothing serving.")
@click.pass_context
def command(ctx: click.Context, n: int, no_wait: bool, timeout: float | None, dry_run: bool, force: bool) -> int:
    """Want N instances, and wait until N serve.

    The count is then yours (mode manual) until `autoscale on` gives it back. What goes is drained first.

    \b
    chatglm-hactl scale 3 --timeout 10m
    """
    settings = Settings.of(ctx)
    answer = settings.client.post("/v1/scale", {"n": n, "force": force, "dry_run": dry_run})
    if dry_run:
        return _show_plan(settings, answer)
    say("the count is set by hand now (mode manual); chatglm-hactl autoscale on  gives it back")
    return carry_out(settings, answer, wait=not no_wait, timeout=timeout)


def _show_plan(settings: Settings, plan: Document) -> int:
    if settings.json:
        emit_json(plan.raw)
    else:
        emit(f"{plan.number('desired'):g} wanted now, {plan.number('wanted'):g} then:")
        emit(*([f"  {clean(step)}" for step in plan.texts("steps")] or ["  nothing to do"]))
    refused = plan.maybe_text("refused")
    if refused:
        by_force = f"chatglm-hactl scale {plan.number('wanted'):g} --force"
        raise Failure(Exit.REFUSED, f"it would be refused: {refused}", hint=by_force)
    return Exit.DONE
