"""`drill`: break something on purpose under a bounded load, and print what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import click
from click.shell_completion import CompletionItem

from hasupervisor.ctl.client import SLOW_ANSWER_S, Client, segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.parameters import Duration, instance_argument
from hasupervisor.ctl.screen import Progress, emit, emit_json, is_terminal, say
from hasupervisor.ctl.text import Cell, age, clean, clock, number, table
from hasupervisor.ctl.waiting import AWAY_S, PATIENCE_S, news, why_away

FAULTS = {
    "kill": "SIGKILL to an instance",
    "hang": "SIGSTOP to an instance, until it is fenced",
    "sick": "an instance answers errors (if it offers that)",
    "slow": "an instance gets a fifth of its time",
    "spike": "three times the load",
    "daemon": "SIGKILL to the daemon",
    "gateway": "SIGKILL to nginx's master",
}
RUNNING = "running"
_COLOURS = {"running": "yellow", "done": "green", "failed": "red"}
_SPARE = ("SHED", "SLOWEST", "STARTED", "BY")


def _faults(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(fault, help=words) for fault, words in FAULTS.items() if fault.startswith(incomplete)]


class FaultOrId(click.ParamType[str]):
    """One of the faults, or the id of a drill that has been begun."""

    name = "fault"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text in FAULTS or text.startswith("drill-"):
            return text
        self.fail(f"{text!r} is neither a fault ({', '.join(FAULTS)}) nor a drill such as drill-7", param, ctx)


@click.command(cls=Command)
@click.argument("fault", required=False, type=FaultOrId(), shell_complete=_faults)
@instance_argument(required=False)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="R", help="Prompts a second (10).")
@click.option("--seconds", type=Duration(), metavar="S", help="Of load at most; else as long as the fault needs.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; has to be said where there is no terminal.")
@click.option("--force", is_flag=True, help="Even if it could hurt.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and why it could hurt.")
@click.option("--no-wait", is_flag=True, help="Print the drill's id and come back at once.")
@click.option("--cancel", is_flag=True, help="With an id: end that drill, and undo its fault.")
@click.pass_context
def command(
    ctx: click.Context,
    fault: str | None,
    name: str | None,
    rate: float | None,
    seconds: float | None,
    yes: bool,
    force: bool,
    dry_run: bool,
    no_wait: bool,
    cancel: bool,
) -> int:
    """Break something on purpose, print what it cost.

    FAULT is kill, hang, sick or slow (an instance, which NAME may name), spike, daemon or gateway. The drill refuses
    where it could hurt, asks, sends prompts through the gateway, makes the fault, and waits until all serves again:
    then the table says how many requests failed, and how long it took.

    Exit code 1: something was not as promised. Without FAULT the last drills are listed; with an id in its place one
    is shown, or followed to its end. Ctrl-C calls the drill off.

    \b
    chatglm-hactl drill kill
    chatglm-hactl drill hang chatglm-02 --rate 20
    chatglm-hactl drill drill-7
    """
    settings = Settings.of(ctx)
    begins = fault in FAULTS
    if cancel and (begins or fault is None):
        raise click.UsageError("--cancel goes with the id of a drill: chatglm-hactl drill  lists them", ctx=ctx)
    if fault is None:
        return _list(settings)
    if not begins:
        return _show_one(settings, fault, cancel=cancel, wait=not no_wait)
    if name is not None and fault in ("spike", "daemon", "gateway"):
        raise click.UsageError(f"{fault} is no instance's fault, so it takes no name", ctx=ctx)
    asked = {"fault": fault, "name": name, "rate": rate, "seconds": seconds}
    body = {key: value for key, value in asked.items() if value is not None}
    if dry_run:
        return _show_plan(settings, _plan(settings, body))
    if not yes:
        _ask(ctx, _plan(settings, body), force=force)
    sheet = settings.client.post("/v1/drill", {**body, "force": force}, patience=SLOW_ANSWER_S)
    return _leave(settings, sheet) if no_wait else _follow_and_tell(settings, sheet)


# --- before it begins -------------------------------------------------------------------------------------------------


def _plan(settings: Settings, body: Mapping[str, object]) -> Document:
    return settings.client.post("/v1/drill", {**body, "dry_run": True}, patience=SLOW_ANSWER_S)


def _ask(ctx: click.Context, plan: Document, *, force: bool) -> None:
    problems = plan.texts("problems")
    if problems and not force:
        raise Failure(Exit.REFUSED, "it could hurt:", details=problems, hint=f"{_command(plan)} --force")
    say(clean(plan.text("what")), f"with {_load(plan)}")
    if problems:
        say("it could hurt:", *(f"  {clean(problem)}" for problem in problems))
    if not is_terminal(sys.stdin):
        raise click.UsageError("nobody can be asked here: say --yes", ctx=ctx)
    if not click.confirm("Begin?", err=True):
        raise Failure(Exit.REFUSED, "not begun, as you say")


def _show_plan(settings: Settings, plan: Document) -> int:
    if settings.json:
        emit_json(plan.raw)
    else:
        emit(clean(plan.text("what")), f"with {_load(plan)}")
    problems = plan.texts("problems")
    if problems:
        raise Failure(Exit.REFUSED, "it would be refused:", details=problems, hint=f"{_command(plan)} --force")
    return Exit.DONE


def _load(plan: Document) -> str:
    return f"{number(plan.number('rate'))} prompts a second for {number(plan.number('seconds'))} s at most"


def _command(plan: Document) -> str:
    return " ".join(filter(None, ["chatglm-hactl drill", plan.text("fault"), plan.maybe_text("name")]))


# --- while it goes on -------------------------------------------------------------------------------------------------


def _follow_and_tell(settings: Settings, sheet: Document) -> int:
    name = sheet.text("id")
    progress = Progress()
    try:
        sheet = _follow(settings.socket, sheet, progress)
    except KeyboardInterrupt:
        progress.clear()
        return _call_off(settings, name)
    finally:
        progress.clear()
    return _tell(settings, sheet)


def _follow(socket: str, sheet: Document, progress: Progress) -> Document:
    """The drill as it ended. The daemon may be away for some time: the drill may be of that."""
    name = sheet.text("id")
    began = time.monotonic()
    away_since: float | None = None
    for heard in chain([sheet], news(socket, f"/v1/drill/{segment(name)}")):
        now = time.monotonic()
        if isinstance(heard, Failure):
            away_since = now if away_since is None else away_since
            if now - away_since >= AWAY_S:
                raise Failure(heard.code, f"{heard.sentence}; {name} goes on without it", details=heard.details)
            progress.show(f"{_title(sheet)}: {why_away(heard)}", age(now - began))
            continue
        sheet, away_since = heard or sheet, None
        if sheet.text("state") != RUNNING:
            return sheet
        progress.show(f"{_title(sheet)}: {clean(sheet.text('sentence'))}", _so_far(sheet, now - began))
    raise AssertionError("news of a drill never end")


def _so_far(sheet: Document, seconds: float) -> str:
    load = sheet.part("load")
    return f"{number(load.number('sent'))} sent, {number(load.number('failed'))} failed, {age(seconds)}"


def _call_off(settings: Settings, name: str) -> int:
    try:
        sheet = Client(settings.socket, patience=4 * PATIENCE_S).delete(f"/v1/drill/{segment(name)}")
    except Failure as failure:
        say(f"{name} could not be called off: {failure.sentence}; it ends by itself", f"to see it: {_again(name)}")
        return Exit.INTERRUPTED
    say(f"{name} is called off: {clean(sheet.text('sentence'))}")
    return Exit.INTERRUPTED


def _leave(settings: Settings, sheet: Document) -> int:
    name = sheet.text("id")
    if settings.json:
        emit_json(sheet.raw)
    else:
        emit(name)
        say(f"to watch it:     {_again(name)}", f"to call it off:  {_again(name)} --cancel")
    return Exit.DONE


def _again(name: str) -> str:
    return f"chatglm-hactl drill {name}"


# --- after it has ended -----------------------------------------------------------------------------------------------


def _show_one(settings: Settings, name: str, *, cancel: bool, wait: bool) -> int:
    target = f"/v1/drill/{segment(name)}"
    if cancel:
        sheet = settings.client.delete(target)
        _print(settings, [sheet])
        say(f"{_title(sheet)} {sheet.text('state')}: {clean(sheet.text('sentence'))}")
        return Exit.DONE
    sheet = settings.client.get(target)
    if sheet.text("state") != RUNNING:
        return _tell(settings, sheet)
    if wait:
        return _follow_and_tell(settings, sheet)
    _print(settings, [sheet])
    return Exit.DONE


def _tell(settings: Settings, sheet: Document) -> int:
    """The table, and how it went."""
    _print(settings, [sheet])
    state, load = sheet.text("state"), sheet.part("load")
    failures = [f"{number(one.number('count'))} x {clean(one.text('what'))}" for one in load.parts("failures")]
    if state == "done":
        say(f"{_title(sheet)}: as promised", *(f"  {failure}" for failure in failures))
        return Exit.DONE
    raise Failure(
        Exit.FAILED,
        f"{_title(sheet)} {state}: {'; '.join(map(clean, sheet.texts('findings')))}",
        details=failures,
        hint=f"chatglm-hactl history --since {clean(sheet.text('started'))}",
    )


def _list(settings: Settings) -> int:
    answer = settings.client.get("/v1/drill")
    if settings.json:
        emit_json(answer.raw)
        return Exit.DONE
    drills = answer.parts("drills")
    if drills:
        emit(*_lines(settings, drills, listed=True))
    else:
        say("there has been no drill yet; chatglm-hactl drill -h  says how to begin one")
    return Exit.DONE


def _print(settings: Settings, sheets: Sequence[Document]) -> None:
    if settings.json:
        emit_json(sheets[0].raw)
    else:
        emit(*_lines(settings, sheets, listed=False))


def _lines(settings: Settings, sheets: Sequence[Document], *, listed: bool) -> list[str]:
    head = ["DRILL", "FAULT", "NAME", "STATE", "SENT", "FAILED", "SHED", "SLOWEST", "OUT OF ROTATION", "FENCED"]
    last = ["SERVING AGAIN"] if not listed else ["SERVING AGAIN", "STARTED", "BY"]
    rows = [_row(sheet) + (_whence(sheet) if listed else []) for sheet in sheets]
    return table([*head, *last], rows, settings.paint, columns=settings.columns, spare=_SPARE)


def _row(sheet: Document) -> list[Cell]:
    load, until, state = sheet.part("load"), sheet.part("until"), sheet.text("state")
    failed = load.number("failed")
    return [
        Cell(clean(sheet.text("id"))),
        Cell(sheet.text("fault")),
        Cell(clean(sheet.maybe_text("name") or "-")),
        Cell(state, _COLOURS.get(state, "")),
        Cell(number(load.number("sent")), right=True),
        Cell(number(failed), "red" if failed else "", right=True),
        Cell(number(load.number("shed")), right=True),
        Cell(_seconds(load.number("slowest_s")), right=True),
        Cell(_seconds(until.maybe_number("out_of_rotation_s")), right=True),
        Cell(_seconds(until.maybe_number("fenced_s")), right=True),
        Cell(_seconds(until.maybe_number("serving_again_s")), right=True),
    ]


def _whence(sheet: Document) -> list[Cell]:
    return [Cell(clock(sheet.text("started"))), Cell(clean(sheet.text("by")))]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _title(sheet: Document) -> str:
    return " ".join(filter(None, [sheet.text("id"), sheet.text("fault"), sheet.maybe_text("name")]))
