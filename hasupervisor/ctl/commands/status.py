"""`status`: what serves, what does not, and what to do about it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import click

from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.parameters import instance_argument
from hasupervisor.ctl.render import detail, moment_of, picture, verdict, worst_first
from hasupervisor.ctl.screen import Redrawn, emit, emit_json, is_terminal, painter, say
from hasupervisor.ctl.text import age, clean

REDRAW_S = 1.0


@click.command(cls=Command)
@instance_argument(required=False)
@click.option("-w", "--watch", is_flag=True, help="Go on: redraw every second, or append what changes.")
@click.pass_context
def command(ctx: click.Context, name: str | None, watch: bool) -> int:
    """Show what serves, what does not, and what to do.

    The verdict, the problems with their next command, then every instance, the worst first; with NAME, all there is
    to know of one. A narrow terminal leaves out ENDPOINT, ERRORS, P95 and QPS, in this order; -o wide never does.

    \b
    chatglm-hactl status -w
    """
    settings = Settings.of(ctx)
    status = _ask(settings, name)
    if watch:
        return _watch(settings, status, name)
    if settings.json:
        emit_json(status.raw)
    else:
        emit(*_lines(settings, status, name))
    return Exit.DONE


def _ask(settings: Settings, name: str | None) -> Document:
    return settings.client.get("/v1/status", {"name": name} if name else None)


def _lines(settings: Settings, status: Document, name: str | None) -> list[str]:
    if name is None:
        return picture(status, settings.paint, columns=settings.columns, wide=settings.wide)
    found = [one for one in status.parts("instances") if one.text("name") == name]
    if not found:
        raise Failure(Exit.NO_SUCH, f"there is no instance {name}", hint="chatglm-hactl status")
    return detail(status, found[0], settings.paint)


def _watch(settings: Settings, status: Document, name: str | None) -> int:
    """Until Ctrl-C, which is how it ends and no failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of `finally`: the cursor returns
    try:
        if is_terminal(sys.stdout) and not settings.json:
            _redraw(settings, status, name)
        else:
            _append(settings, status, name)
    except KeyboardInterrupt:
        return Exit.DONE
    return Exit.DONE


def _redraw(settings: Settings, status: Document, name: str | None) -> None:
    with Redrawn() as screen:
        for picture_, failure, old in _pictures(settings, status, name):
            lines = _lines(settings, picture_, name)
            if failure:
                words = f"NO ANSWER for {age(old)}: {failure.sentence}. Below is what was last known."
                lines = [settings.paint(words, "red"), "", *lines]
            screen.draw(lines)


def _append(settings: Settings, status: Document, name: str | None) -> None:
    """One line for each change, or with JSON one document for each second."""
    known: dict[str, str] = {}
    away = False
    for picture_, failure, _ in _pictures(settings, status, name):
        if (failure is not None) != away:
            away = failure is not None
            say(failure.sentence if failure else "the daemon answers again")
        if failure:
            continue
        if settings.json:
            emit_json(picture_.raw, compact=True)
            continue
        told = _told(picture_)
        when = moment_of(picture_).astimezone().strftime("%H:%M:%S")
        gone = [f"{when} {subject}: gone" for subject in known if subject not in told]
        changed = [f"{when} {words}" for subject, words in told.items() if known.get(subject) != words]
        if gone or changed:
            emit(*changed, *gone)
        known = told


def _told(status: Document) -> dict[str, str]:
    """What is worth a line when it changes: the verdict and the states, not the numbers that always move."""
    instances = {one.text("name"): f"{one.text('name')} {one.text('state')}" for one in worst_first(status)}
    return {"": verdict(status, painter(color=False)), **{name: clean(words) for name, words in instances.items()}}


def _pictures(
    settings: Settings, status: Document, name: str | None
) -> Iterator[tuple[Document, Failure | None, float]]:
    """Every second the newest picture; where the daemon is away, why, and for how many seconds it has been."""
    failure: Failure | None = None
    seen = due = time.monotonic()
    while True:
        yield status, failure, time.monotonic() - seen
        due = max(due + REDRAW_S, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0))
        try:
            status, failure, seen = _ask(settings, name), None, time.monotonic()
        except Failure as error:
            if not error.passes:
                raise
            failure = error
